"""What is shown: differences between arms with their intervals, and the criteria that were written before training.

The unit is a question, the cluster a fact; with several training seeds a tuned arm's score of a question is its mean
over them. A claim is shown when its inequality holds at 95 %, worse when the opposite does, else not shown; nothing is
dropped for coming out badly. Method: Miller, arXiv 2411.00640; criteria: ``docs/evaluation.md``.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from znatok.eval.criteria import CRITERIA
from znatok.eval.stats import Interval, PairedResult, bootstrap_mean, holm, paired_difference, wilson
from znatok.eval.summary import Verdict

GAIN = 0.15  # of claim recall on T1, at least
CONTRADICTIONS, CONTRADICTIONS_FAR = 0.02, 0.05  # more per answer than the base, at most
RECALL_LOST = -0.05  # of claim recall on held-out facts, at most
STOPS = 0.98
FORGOTTEN = {"ru": 0.03, "en": 0.05}  # more bits per byte, at most
GENERAL_LOST = -0.03  # of general questions, at most
ALPHA = 0.05

Row = Mapping[str, Any]
Pick = Callable[[Row], float | None]


@dataclass(frozen=True, slots=True)
class Claim:
    """One sentence of the result.

    Attributes:
        key: which criterion.
        a, b: the arms compared, b against a; a is empty where only b is looked at.
        n: questions.
        before, after: the two means with their intervals.
        difference: b - a.
        p: two-sided; Holm-adjusted within P8; None where no test applies.
        rule: the inequality, with its numbers.
        verdict: what may be said.
    """

    key: str
    a: str
    b: str
    n: int
    before: Interval
    after: Interval
    difference: Interval
    p: float | None
    rule: str
    verdict: Verdict


@dataclass(frozen=True)
class Cell:
    """A number of the table: an arm, a split, a measure."""

    arm: str
    split: str
    measure: str
    value: Interval


@dataclass(frozen=True)
class Proof:
    """All claims, the table of arms, and the seed the intervals were drawn with."""

    claims: tuple[Claim, ...]
    cells: tuple[Cell, ...]
    runs: tuple[str, ...]
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object without NaN."""
        return dataclasses.asdict(self)


class Scores:
    """Rows by kind, arm and item; a tuned arm's value is its mean over runs."""

    def __init__(self, rows: Iterable[Row], seed: int) -> None:
        self.rows = list(rows)
        self.seed = seed
        self.arms = tuple(dict.fromkeys(row["arm"] for row in self.rows if row["kind"] == "open"))

    def values(
        self, kind: str, arm: str, splits: Sequence[str], pick: Pick, where: Callable[[Row], bool] = lambda row: True
    ) -> dict[str, tuple[float, str]]:
        """Return (mean over runs, cluster) of each item that has the value."""
        found: dict[str, list[float]] = {}
        clusters: dict[str, str] = {}
        for row in self.rows:
            if row["kind"] == kind and row["arm"] == arm and row["split"] in splits and where(row):
                value = pick(row)
                if value is not None:
                    found.setdefault(row["id"], []).append(float(value))
                    clusters[row["id"]] = row["cluster"]
        return {name: (fmean(values), clusters[name]) for name, values in found.items()}

    def mean(self, name: str, values: Mapping[str, tuple[float, str]]) -> Interval:
        """Return a mean with its clustered bootstrap interval; of yes-and-no values of one run Wilson's."""
        numbers, clusters = [v for v, _c in values.values()], [c for _v, c in values.values()]
        if numbers and set(numbers) <= {0.0, 1.0} and len(set(clusters)) == len(clusters):
            return wilson(int(sum(numbers)), len(numbers))
        return bootstrap_mean(numbers, self._rng(name), clusters=clusters)

    def paired(
        self, name: str, a: Mapping[str, tuple[float, str]], b: Mapping[str, tuple[float, str]]
    ) -> PairedResult:
        """Return the mean difference b - a over the items both have."""
        shared = [item for item in a if item in b]
        return paired_difference(
            [a[item][0] for item in shared], [b[item][0] for item in shared], self._rng(name), [a[item][1] for item in shared]
        )

    def _rng(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])


def prove(rows: Iterable[Row], texts: Sequence[Row], seed: int) -> Proof:
    """Judge every criterion that the rows allow.

    Args:
        rows: of ``eval/items.jsonl``.
        texts: bits per byte, see :class:`znatok.eval.evaluate.Result`.
        seed: of the intervals and tests.
    """
    scores = Scores(rows, seed)
    claims = [claim for part in (_p1, _p2, _p3, _p4, _p5, _p6, _p7_questions, _p8) for claim in part(scores)]
    claims += _p7_prose(texts, scores)
    runs = tuple(sorted({row["run"] for row in scores.rows if row["run"]}))
    return Proof(tuple(claims), tuple(table(scores)), runs, seed)


# The criteria


def _recall(row: Row) -> float | None:
    return row["recall"]  # type: ignore[no-any-return]


def _contradictions(row: Row) -> float:
    return float(row["contradictions"])


def _is(verdict: str) -> Pick:
    return lambda row: float(row["verdict"] == verdict)


def _p1(scores: Scores) -> list[Claim]:
    """Knows more: T1 claim recall above the best of the base's ways of being asked."""
    rivals = [arm for arm in ("base", "prompted") if arm in scores.arms]
    if "tuned" not in scores.arms or not rivals:
        return []
    values = {arm: scores.values("open", arm, ["T1"], _recall) for arm in (*rivals, "tuned")}
    best = max(rivals, key=lambda arm: fmean(v for v, _c in values[arm].values()) if values[arm] else 0.0)
    return _compared(
        scores, "P1", best, "tuned", values[best], values["tuned"],
        f"low > 0, gain ≥ {GAIN}", lambda d: d.low > 0 and d.value >= GAIN, lambda d: d.high < 0,
    )  # fmt: skip


def _p2(scores: Scores) -> list[Claim]:
    """Contradicts itself and the facts no more than before."""
    found = []
    for key, splits, most in (("P2", ["T1", "T2"], CONTRADICTIONS), ("P2 far", ["T3", "T4"], CONTRADICTIONS_FAR)):
        found += _arms(
            scores, key, "base", "tuned", splits, _contradictions,
            f"high ≤ +{most}", lambda d, most=most: d.high <= most, lambda d: d.low > 0,
        )  # fmt: skip
    return found


def _p3(scores: Scores) -> list[Claim]:
    """Invents less: the share of wrong answers on what was not trained falls."""
    found = []
    for arm in ("tuned", "tuned+retrieval"):
        found += _arms(
            scores, "P3" if arm == "tuned" else "P3 retrieval", "base", arm, ["T2", "T3", "T4"], _is("incorrect"),
            "high < 0", lambda d: d.high < 0, lambda d: d.low > 0,
        )  # fmt: skip
    return found


def _p4(scores: Scores) -> list[Claim]:
    """Loses nothing of what was held out."""
    return _arms(
        scores, "P4", "base", "tuned", ["T2"], _recall,
        f"low > {RECALL_LOST}", lambda d: d.low > RECALL_LOST, lambda d: d.high < 0,
    )  # fmt: skip


def _p5(scores: Scores) -> list[Claim]:
    """Holds the truth likelier: choices and minimal pairs about trained facts."""
    found = []
    for key, kind, pick in (
        ("P5 choices", "choice", lambda row: float(row["right"])),
        ("P5 pairs", "pair", lambda row: float(row["margin"] > 0)),
    ):
        a, b = (scores.values(kind, arm, ["T1"], pick) for arm in ("base", "tuned"))
        found += _compared(scores, key, "base", "tuned", a, b, "low > 0", lambda d: d.low > 0, lambda d: d.high < 0)
    return found


def _p6(scores: Scores) -> list[Claim]:
    """Behaves: ends its answers, leaks no other script, does not repeat itself."""
    asked = ["T1", "T2", "T3", "T4", "T5"]
    found = []
    stop = lambda row: float(row["stop"] == "end")  # noqa: E731
    cjk = lambda row: float(row["cjk"])  # noqa: E731
    for arm in (arm for arm in ("tuned", "tuned+retrieval") if arm in scores.arms):
        for key, pick, rule, holds in (
            ("P6 stop", stop, f"rate ≥ {STOPS}", lambda value: value >= STOPS),
            ("P6 cjk", cjk, "rate = 0", lambda value: value == 0),
        ):
            a, b = scores.values("open", "base", asked, pick), scores.values("open", arm, asked, pick)
            if b:
                after = scores.mean(f"{key} {arm}", b)
                difference = scores.paired(f"{key} {arm}", a, b) if a else PairedResult(_nothing(), None)
                verdict = Verdict.SHOWN if holds(after.value) else Verdict.NOT_SHOWN
                before = scores.mean(f"{key} base", a)
                found.append(Claim(key, "base", arm, len(b), before, after, difference.difference, None, rule, verdict))
    found += _arms(
        scores, "P6 repetition", "base", "tuned", asked, lambda row: row["repetition"],
        "not worse: low ≤ 0", lambda d: d.low <= 0, lambda d: d.low > 0,
    )  # fmt: skip
    return found


def _p7_questions(scores: Scores) -> list[Claim]:
    """Forgets nothing else: general questions, forms asked for, pairs of other fields."""
    found = []
    for key, kind in (("P7 general", "general"), ("P7 format", "format")):
        a, b = (
            scores.values("open", arm, ["T5"], _recall, lambda row, kind=kind: row["type"] == kind)
            for arm in ("base", "tuned")
        )
        found += _compared(
            scores, key, "base", "tuned", a, b, f"point ≥ {GENERAL_LOST}, not worse at 95 %",
            lambda d: d.value >= GENERAL_LOST and d.high >= 0, lambda d: d.high < 0,
        )  # fmt: skip
    a, b = (scores.values("pair", arm, ["control"], lambda row: float(row["margin"] > 0)) for arm in ("base", "tuned"))
    found += _compared(
        scores, "P7 control pairs", "base", "tuned", a, b, f"point ≥ {GENERAL_LOST}, not worse at 95 %",
        lambda d: d.value >= GENERAL_LOST and d.high >= 0, lambda d: d.high < 0,
    )  # fmt: skip
    return found


def _p7_prose(texts: Sequence[Row], scores: Scores) -> list[Claim]:
    """Bits per byte of prose, relative to the base; resampled by windows."""
    found = []
    for name, most in FORGOTTEN.items():
        base = next((row["windows"] for row in texts if row["arm"] == "base" and row["text"] == name), None)
        tuned = [row["windows"] for row in texts if row["arm"] == "tuned" and row["text"] == name]
        if not base or not tuned:
            continue
        sizes = [float(size) for _bits, size in base]
        before_bits = [bits for bits, _size in base]
        after_bits = [fmean(windows[i][0] for windows in tuned) for i in range(len(base))]
        rate = sum(before_bits) / sum(sizes)
        key = f"P7 prose {name}"
        paired = paired_difference(before_bits, after_bits, scores._rng(key), weights=sizes)
        relative = _scaled(paired.difference, 1 / rate)
        before = bootstrap_mean(before_bits, scores._rng(key), weights=sizes)
        after = bootstrap_mean(after_bits, scores._rng(key), weights=sizes)
        worse = (relative.value or 0) > most
        verdict = Verdict.WORSE if worse else Verdict.SHOWN
        found.append(Claim(key, "base", "tuned", len(base), before, after, relative, paired.p, f"≤ +{most:.0%}", verdict))
    return found


def _p8(scores: Scores) -> list[Claim]:
    """The five criteria of the project's beginning, on T1 and T2, as one family; each also at equal length."""
    found = []
    for name in CRITERIA:
        pick: Pick = lambda row, name=name: row[name]  # noqa: E731
        found += _arms(
            scores, f"P8 {name}", "base", "tuned", ["T1", "T2"], pick,
            "Holm p < 0.05, and at equal length > 0", lambda d: d.low > 0, lambda d: d.high < 0,
        )  # fmt: skip
    adjusted = holm([claim.p if claim.p is not None else 1.0 for claim in found])
    result = []
    for claim, p in zip(found, adjusted, strict=True):
        even = _at_equal_length(scores, claim.key.removeprefix("P8 "))
        shown = claim.verdict is Verdict.SHOWN and p < ALPHA and even is not None and even > 0
        verdict = Verdict.SHOWN if shown else claim.verdict if claim.verdict is Verdict.WORSE else Verdict.NOT_SHOWN
        rule = f"{claim.rule}; at equal length {even:+.3f}" if even is not None else claim.rule
        result.append(dataclasses.replace(claim, p=p, verdict=verdict, rule=rule))
    return result


def _at_equal_length(scores: Scores, name: str) -> float | None:
    """Return the gain that is left when the length of the answers is taken out: the intercept of a regression.

    The difference of each pair of answers is regressed on the difference of their log lengths; what remains at no
    difference of length is the gain.
    """
    arms = [
        scores.values("open", arm, ["T1", "T2"], lambda row: row[name])
        | {}
        for arm in ("base", "tuned")
    ]
    lengths = [
        scores.values("open", arm, ["T1", "T2"], lambda row: float(np.log1p(row["words"]))) for arm in ("base", "tuned")
    ]
    shared = [item for item in arms[0] if item in arms[1]]
    if len(shared) < 3:
        return None
    gain = np.array([arms[1][item][0] - arms[0][item][0] for item in shared])
    longer = np.array([lengths[1][item][0] - lengths[0][item][0] for item in shared])
    if float(longer.std()) < 1e-9:
        return float(gain.mean())
    slope = float(np.cov(gain, longer, bias=True)[0, 1] / longer.var())
    return float(gain.mean() - slope * longer.mean())


# What they are made of


def _arms(
    scores: Scores, key: str, a: str, b: str, splits: Sequence[str], pick: Pick, rule: str, holds: Any, fails: Any
) -> list[Claim]:
    first, second = (scores.values("open", arm, splits, pick) for arm in (a, b))
    return _compared(scores, key, a, b, first, second, rule, holds, fails)


def _compared(
    scores: Scores,
    key: str,
    a: str,
    b: str,
    first: Mapping[str, tuple[float, str]],
    second: Mapping[str, tuple[float, str]],
    rule: str,
    holds: Callable[[Any], bool],
    fails: Callable[[Any], bool],
) -> list[Claim]:
    """Return the claim, or nothing where one of the arms was not asked."""
    if not first or not second:
        return []
    paired = scores.paired(key, first, second)
    difference = paired.difference
    known = difference.low is not None and difference.high is not None
    verdict = Verdict.NOT_SHOWN
    if known and holds(difference):
        verdict = Verdict.SHOWN
    elif known and fails(difference):
        verdict = Verdict.WORSE
    before, after = scores.mean(f"{key} {a}", first), scores.mean(f"{key} {b}", second)
    return [Claim(key, a, b, difference.n, before, after, difference, paired.p, rule, verdict)]


def _nothing() -> Interval:
    return Interval(None, None, None, 0)


def _scaled(value: Interval, by: float) -> Interval:
    ends = [None if end is None else end * by for end in (value.value, value.low, value.high)]
    return Interval(*ends, value.n)


# The table

MEASURES: dict[str, Pick] = {
    "recall": _recall,
    "precision": lambda row: row["precision"],
    "correct": _is("correct"),
    "partial": _is("partial"),
    "incorrect": _is("incorrect"),
    "not attempted": _is("not attempted"),
    "contradictions": _contradictions,
    "tokens": lambda row: float(row["tokens"]),
    **{name: (lambda row, name=name: row[name]) for name in CRITERIA},
    "stop": lambda row: float(row["stop"] == "end"),
    "cjk": lambda row: float(row["cjk"]),
    "repetition": lambda row: float(row["repetition"]),
}


def table(scores: Scores) -> list[Cell]:
    """Return every measure of every arm and split."""
    cells = []
    splits = sorted({row["split"] for row in scores.rows if row["kind"] == "open"})
    for arm in scores.arms:
        for split in splits:
            for measure, pick in MEASURES.items():
                values = scores.values("open", arm, [split], pick)
                if values:
                    cells.append(Cell(arm, split, measure, scores.mean(f"{arm} {split} {measure}", values)))
    likelihoods: tuple[tuple[str, str, Pick], ...] = (
        ("choice", "choices", lambda row: float(row["right"])),
        ("choice", "brier", lambda row: row["brier"]),
        ("pair", "pairs", lambda row: float(row["margin"] > 0)),
        ("pair", "pairs, bare", lambda row: float(row["margin_bare"] > 0)),
    )
    for kind, measure, pick in likelihoods:
        for split in sorted({row["split"] for row in scores.rows if row["kind"] == kind}):
            for arm in ("base", "tuned"):
                values = scores.values(kind, arm, [split], pick)
                if values:
                    cells.append(Cell(arm, split, measure, scores.mean(f"{arm} {split} {measure}", values)))
    return cells
