"""What is shown: differences between arms with their intervals, and the criteria that were written before training.

The unit is a question, the cluster a fact; with several training seeds a tuned arm's score of a question is its mean
over them. A claim is shown when its inequality holds at 95 %, worse when the opposite does, else not shown; nothing is
dropped for coming out badly. Method: Miller, arXiv 2411.00640; criteria: ``docs/evaluation.md``.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple, Self

import numpy as np

from znatok.eval.stats import Interval, bootstrap_mean, holm, paired_difference
from znatok.eval.summary import Verdict
from znatok.exam.criteria import CRITERIA
from znatok.exam.scores import Cell, Pick, Row, Scores, ended, number, prefers, recall, verdict_is
from znatok.exam.table import table
from znatok.prose import FORGOTTEN

GAIN = 0.15  # of claim recall on T1, at least
CONTRADICTIONS, CONTRADICTIONS_FAR = 0.02, 0.05  # more per answer than the base, at most
RECALL_LOST = -0.05  # of claim recall on held-out facts, at most
STOPS = 0.98
GENERAL_LOST = -0.03  # of general questions, at most
ALPHA = 0.05


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
class Proof:
    """All claims, the table of arms, what each training seed came to, and the seed the intervals were drawn with."""

    claims: tuple[Claim, ...]
    cells: tuple[Cell, ...]
    by_run: tuple[Cell, ...]
    runs: tuple[str, ...]
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object without NaN."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` made."""

        def cells(name: str) -> tuple[Cell, ...]:
            return tuple(Cell(**{**row, "value": Interval(**row["value"])}) for row in value[name])

        claims = []
        for row in value["claims"]:
            intervals = {name: Interval(**row[name]) for name in ("before", "after", "difference")}
            claims.append(Claim(**{**row, **intervals, "verdict": Verdict(row["verdict"])}))
        return cls(tuple(claims), cells("cells"), cells("by_run"), tuple(value["runs"]), value["seed"])


@dataclass(frozen=True, slots=True)
class Rule:
    """An inequality in words, and what it makes of a claim's before, after and difference."""

    text: str
    judge: Callable[[Interval, Interval, Interval], Verdict]


class Ends(NamedTuple):
    """A difference that could be estimated, with the ends of its interval."""

    value: float
    low: float
    high: float


def _on_difference(text: str, holds: Callable[[Ends], bool], fails: Callable[[Ends], bool]) -> Rule:
    def judge(_before: Interval, _after: Interval, difference: Interval) -> Verdict:
        if difference.value is None or difference.low is None or difference.high is None:
            return Verdict.NOT_SHOWN
        ends = Ends(difference.value, difference.low, difference.high)
        if holds(ends):
            return Verdict.SHOWN
        return Verdict.WORSE if fails(ends) else Verdict.NOT_SHOWN

    return Rule(text, judge)


def _on_rate(text: str, holds: Callable[[float], bool]) -> Rule:
    def judge(_before: Interval, after: Interval, _difference: Interval) -> Verdict:
        return Verdict.SHOWN if after.value is not None and holds(after.value) else Verdict.NOT_SHOWN

    return Rule(text, judge)


RISES = _on_difference("low > 0", lambda d: d.low > 0, lambda d: d.high < 0)
FALLS = _on_difference("high < 0", lambda d: d.high < 0, lambda d: d.low > 0)
GAINS = _on_difference(f"low > 0, gain ≥ {GAIN}", lambda d: d.low > 0 and d.value >= GAIN, lambda d: d.high < 0)
NO_WORSE = _on_difference("not worse: low ≤ 0", lambda d: d.low <= 0, lambda d: d.low > 0)
KEPT = _on_difference(
    f"point ≥ {GENERAL_LOST}, not worse at 95 %",
    lambda d: d.value >= GENERAL_LOST and d.high >= 0,
    lambda d: d.high < 0,
)
HELD_OUT_KEPT = _on_difference(f"low > {RECALL_LOST}", lambda d: d.low > RECALL_LOST, lambda d: d.high < 0)


def _at_most(limit: float) -> Rule:
    return _on_difference(f"high ≤ +{limit}", lambda d: d.high <= limit, lambda d: d.low > 0)


@dataclass(frozen=True, slots=True)
class Criterion:
    """What is compared, and by which rule.

    Attributes:
        key: its name in the report.
        pick: the number of a row; None where the row has none.
        splits: of which items.
        rule: when it is shown.
        b: the arm held against the base.
        kind: of row: an answer (open), a choice or a pair.
        type: only questions of this type.
    """

    key: str
    pick: Pick
    splits: tuple[str, ...]
    rule: Rule
    b: str = "tuned"
    kind: str = "open"
    type: str = ""


ALL = ("T1", "T2", "T3", "T4", "T5", "mixed")
NEW = ("T2", "T3", "T4")
WRITTEN_BEFORE_TRAINING = (
    Criterion("P2", number("contradictions"), ("T1", "T2"), _at_most(CONTRADICTIONS)),
    Criterion("P2 far", number("contradictions"), ("T3", "T4"), _at_most(CONTRADICTIONS_FAR)),
    Criterion("P3", verdict_is("incorrect"), NEW, FALLS),
    Criterion("P3 retrieval", verdict_is("incorrect"), NEW, FALLS, b="tuned+retrieval"),
    Criterion("P4", recall, ("T2",), HELD_OUT_KEPT),
    Criterion("P5 choices", number("right"), ("T1",), RISES, kind="choice"),
    Criterion("P5 pairs", prefers, ("T1",), RISES, kind="pair"),
    Criterion("P6 stop", ended, ALL, _on_rate(f"rate ≥ {STOPS}", lambda rate: rate >= STOPS)),
    Criterion("P6 stop", ended, ALL, _on_rate(f"rate ≥ {STOPS}", lambda rate: rate >= STOPS), b="tuned+retrieval"),
    Criterion("P6 cjk", number("cjk"), ALL, _on_rate("rate = 0", lambda rate: rate == 0)),
    Criterion("P6 cjk", number("cjk"), ALL, _on_rate("rate = 0", lambda rate: rate == 0), b="tuned+retrieval"),
    Criterion("P6 repetition", number("repetition"), ALL, NO_WORSE),
    Criterion("P7 general", recall, ("T5",), KEPT, type="general"),
    Criterion("P7 format", recall, ("T5",), KEPT, type="format"),
    Criterion("P7 control pairs", prefers, ("control",), KEPT, kind="pair"),
)
FIVE = tuple(Criterion(f"P8 {name}", number(name), ("T1", "T2"), RISES) for name in CRITERIA)


def prove(rows: Iterable[Row], texts: Sequence[Row], seed: int) -> Proof:
    """Judge every criterion that the rows allow.

    Args:
        rows: of ``eval/items.jsonl``.
        texts: bits per byte, see :class:`znatok.exam.examine.Result`.
        seed: of the intervals and tests.
    """
    scores = Scores(rows, seed)
    claims = _knows_more(scores)
    for criterion in WRITTEN_BEFORE_TRAINING:
        claims += judged(scores, criterion)
    claims += _forgets_no_prose(texts, scores)
    claims += _five(scores)
    runs = tuple(sorted({row["run"] for row in scores.rows if row["run"]}))
    return Proof(tuple(claims), tuple(table(scores)), tuple(by_run(scores, runs)), runs, seed)


def judged(scores: Scores, criterion: Criterion, a: str = "base") -> list[Claim]:
    """Return the claim, or nothing where one of the arms was not asked."""
    first, second = (
        scores.values(criterion.kind, arm, criterion.splits, criterion.pick, criterion.type) for arm in (a, criterion.b)
    )
    if not first or not second:
        return []
    name = f"{criterion.key} {a} {criterion.b}"
    paired = scores.paired(name, first, second)
    before, after = scores.mean(f"{name} before", first), scores.mean(f"{name} after", second)
    verdict = criterion.rule.judge(before, after, paired.difference)
    return [
        Claim(
            criterion.key, a, criterion.b, paired.difference.n, before, after, paired.difference, paired.p,
            criterion.rule.text, verdict,
        )
    ]  # fmt: skip


def _knows_more(scores: Scores) -> list[Claim]:
    """P1, the first endpoint: T1 claim recall above the better of the base's two ways of being asked."""
    means = {
        arm: fmean(value for value, _cluster in values.values())
        for arm in ("base", "prompted")
        if (values := scores.values("open", arm, ("T1",), recall))
    }
    if not means:
        return []
    best = max(means, key=means.__getitem__)
    return judged(scores, Criterion("P1", recall, ("T1",), GAINS), a=best)


def _forgets_no_prose(texts: Sequence[Row], scores: Scores) -> list[Claim]:
    """P7: bits per byte of prose, relative to the base; resampled by windows."""
    found = []
    for name, most in FORGOTTEN.items():
        base = next((row["windows"] for row in texts if row["arm"] == "base" and row["text"] == name), None)
        tuned = [row["windows"] for row in texts if row["arm"] == "tuned" and row["text"] == name]
        if not base or not tuned:
            continue
        sizes = [float(size) for _bits, size in base]
        before = [float(bits) for bits, _size in base]
        after = [fmean(windows[i][0] for windows in tuned) for i in range(len(base))]
        key = f"P7 prose {name}"
        paired = paired_difference(before, after, scores.rng(key), weights=sizes)
        relative = _scaled(paired.difference, sum(sizes) / sum(before))
        shown = relative.value is not None and relative.value <= most
        found.append(
            Claim(
                key, "base", "tuned", len(base),
                bootstrap_mean(before, scores.rng(f"{key} before"), weights=sizes),
                bootstrap_mean(after, scores.rng(f"{key} after"), weights=sizes),
                relative, paired.p, f"≤ +{most:.0%}", Verdict.SHOWN if shown else Verdict.WORSE,
            )
        )  # fmt: skip
    return found


def _scaled(value: Interval, by: float) -> Interval:
    value_, low, high = (None if end is None else end * by for end in (value.value, value.low, value.high))
    return Interval(value_, low, high, value.n)


def _five(scores: Scores) -> list[Claim]:
    """P8: the five criteria of the project's beginning, as one family; each must hold at equal length too."""
    found = [claim for criterion in FIVE for claim in judged(scores, criterion)]
    result = []
    for claim, p in zip(found, holm([1.0 if claim.p is None else claim.p for claim in found]), strict=True):
        even = gain_at_equal_length(scores, claim.key.removeprefix("P8 "))
        verdict = claim.verdict
        if verdict is Verdict.SHOWN and (p >= ALPHA or even is None or even <= 0):
            verdict = Verdict.NOT_SHOWN
        if verdict is Verdict.WORSE and p >= ALPHA:
            verdict = Verdict.NOT_SHOWN
        rule = "Holm p < 0.05, > 0 at equal length" + ("" if even is None else f" ({even:+.3f})")
        result.append(dataclasses.replace(claim, p=p, verdict=verdict, rule=rule))
    return result


def gain_at_equal_length(scores: Scores, name: str) -> float | None:
    """Return the gain in one of the five criteria that is left when the length of the answers is taken out.

    The difference of each pair of answers is regressed on the difference of their log lengths in words; what remains
    where the lengths are equal is the gain. None with fewer than three pairs.
    """
    base, tuned = (scores.values("open", arm, ("T1", "T2"), number(name)) for arm in ("base", "tuned"))
    short, long = (
        scores.values("open", arm, ("T1", "T2"), lambda row: math.log1p(row["words"])) for arm in ("base", "tuned")
    )
    shared = [item for item in base if item in tuned]
    if len(shared) < 3:
        return None
    gain = np.array([tuned[item][0] - base[item][0] for item in shared])
    longer = np.array([long[item][0] - short[item][0] for item in shared])
    spread = float(longer.var())
    slope = float(np.cov(gain, longer, bias=True)[0, 1]) / spread if spread > 1e-12 else 0.0
    return float(gain.mean() - slope * longer.mean())


BY_RUN = tuple(c for c in (Criterion("P1", recall, ("T1",), GAINS), *WRITTEN_BEFORE_TRAINING) if c.b == "tuned")
"""What is told of each training seed by itself."""


def by_run(scores: Scores, runs: Sequence[str]) -> list[Cell]:
    """Return the tuned arm's number of every criterion for each training seed by itself; the arm is the run."""
    cells = []
    for run in runs:
        own = Scores((row for row in scores.rows if row["run"] == run), scores.seed)
        for criterion in BY_RUN:
            values = own.values(criterion.kind, "tuned", criterion.splits, criterion.pick, criterion.type)
            if values:
                cells.append(Cell(run, "", criterion.key, own.mean(f"{run} {criterion.key}", values)))
    return cells
