"""From answers and losses to a table of claims, each with its interval, its test and a computed verdict."""

import dataclasses
import zlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, Self

import numpy as np

from znatok.errors import DataError
from znatok.eval import metrics
from znatok.eval.labels import NOTHING, interval, labels, number
from znatok.eval.records import MODES, Answer
from znatok.eval.stats import (
    Interval,
    PairedResult,
    bootstrap_mean,
    holm,
    mcnemar_exact,
    newcombe,
    paired_difference,
    wilson,
)

ALPHA = 0.05
ARROWS = {"lower": " ↓", "higher": " ↑", "neither": ""}

Better = Literal["lower", "higher", "neither"]
Losses = Mapping[str, Sequence[tuple[str, float, int]]]


class Verdict(StrEnum):
    """What may be said about a row; only :func:`verdict` makes one."""

    SHOWN = "shown"
    NOT_SHOWN = "not shown"
    WORSE = "worse"
    NOT_JUDGED = "not judged"  # a measure that is neither good nor bad, such as length


@dataclass(frozen=True)
class Measure:
    """Something an answer has a number for."""

    key: str
    better: Better
    share: bool  # the numbers are 0 and 1
    of: Callable[[Answer], float]


MEASURES = (
    Measure("stop", "higher", True, lambda answer: float(answer["stop"] == "end")),
    Measure("tokens", "neither", False, lambda answer: float(answer["tokens"])),
    Measure("repetition", "lower", False, lambda answer: metrics.repetition(answer["text"])),
    Measure("cjk", "lower", True, lambda answer: float(metrics.has_cjk(answer["text"]))),
)
FORMATS = {"loss": (3, ""), "tokens": (1, "")}  # digits and unit; everything else is a share


@dataclass(frozen=True)
class Row:
    """One line of the table; ``p`` is Holm-adjusted for all rows but the first endpoint, the held-out loss."""

    key: str
    label: str
    n: int
    base: Interval
    tuned: Interval
    difference: Interval
    p: float | None
    better: Better
    verdict: Verdict


@dataclass(frozen=True)
class Summary:
    """The table, and the seed its intervals were drawn with."""

    rows: tuple[Row, ...]
    seed: int
    questions: int

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object without NaN."""
        return dataclasses.asdict(self) | {"rows": [dataclasses.asdict(row) for row in self.rows]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` made."""
        rows = []
        for row in value["rows"]:
            intervals = {name: Interval(**row[name]) for name in ("base", "tuned", "difference")}
            rows.append(Row(**{**row, **intervals, "verdict": Verdict(row["verdict"])}))
        return cls(tuple(rows), value["seed"], value["questions"])

    def cells(self, language: str) -> list[list[str]]:
        """Return the table as text: measure, n, base, tuned, difference, p, improvement."""
        return [_cells(row, language) for row in self.rows]

    def head(self, language: str) -> list[str]:
        """Return the captions of the columns of :meth:`cells`."""
        words = labels(language)
        keys = ("column.measure", "", "base", "tuned", "column.difference", "", "column.verdict")
        return [words[key] if key else symbol for key, symbol in zip(keys, ("", "n", "", "", "", "p", ""), strict=True)]

    def markdown(self, language: str) -> str:
        """Return the table in Markdown, with a note that says how its intervals and verdicts were made."""
        lines = [self.head(language), [":--", "--:", "--:", "--:", "--:", "--:", ":--"], *self.cells(language)]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"{table}\n\n{labels(language)['note']}\n"


def summarise(
    answers: Iterable[Answer], losses: Losses, *, seed: int, clusters: Mapping[str, str] | None = None
) -> Summary:
    """Compare the two arms.

    Args:
        answers: rows of ``answers.jsonl``; each answer needs its partner in the other arm.
        losses: for "base" and "tuned", the (id, loss sum, answer tokens) of each held-out item.
        seed: seed of the bootstrap and the permutation test.
        clusters: question id to what it is about (a fact); questions of one cluster are drawn together. Answers to
            one question always are.

    Raises:
        DataError: the arms don't hold the same questions or items.
    """
    rows = list(answers)
    belongs = clusters or {}
    table = [_loss_row(losses, belongs, seed)] if losses.get("base") or losses.get("tuned") else []
    for mode in MODES:
        pairs = _pairs([row for row in rows if row["mode"] == mode])
        keys = [belongs.get(base["id"], (base["set"], base["id"])) for base, _ in pairs]
        table += [_answer_row(measure, mode, pairs, keys, seed) for measure in MEASURES if pairs]
    count = len({(row["set"], row["id"]) for row in rows})
    return Summary(tuple(_judged(table)), seed, count)


def verdict(difference: Interval, p: float | None, better: Better) -> Verdict:
    """Say what a difference shows: the interval must leave zero out and the test must agree."""
    if better == "neither":
        return Verdict.NOT_JUDGED
    if p is None or p >= ALPHA or difference.side == 0:
        return Verdict.NOT_SHOWN
    return Verdict.SHOWN if (difference.side > 0) == (better == "higher") else Verdict.WORSE


def _judged(rows: list[Row]) -> list[Row]:
    family = [i for i, row in enumerate(rows) if row.key != "loss" and row.better != "neither" and row.p is not None]
    adjusted = dict(zip(family, holm([rows[i].p or 0.0 for i in family]), strict=True))
    result = []
    for i, row in enumerate(rows):
        p = adjusted.get(i, row.p)
        result.append(dataclasses.replace(row, p=p, verdict=verdict(row.difference, p, row.better)))
    return result


def _row(key: str, arms: tuple[Interval, Interval], paired: PairedResult, better: Better) -> Row:
    words = labels("en")
    name, _, mode = key.partition(".")
    label = words["row." + name] + (f", {words['mode.' + mode]}" if mode else "")
    return Row(key, label, paired.difference.n, *arms, paired.difference, paired.p, better, Verdict.NOT_JUDGED)


def _rng(seed: int, key: str) -> np.random.Generator:
    """Give each row its own generator, so that one more row doesn't change the others."""
    return np.random.default_rng([seed, zlib.crc32(key.encode())])


def _loss_row(losses: Losses, belongs: Mapping[str, str], seed: int) -> Row:
    arms = [{id_: (loss, tokens) for id_, loss, tokens in losses.get(arm, ())} for arm in ("base", "tuned")]
    base, tuned = arms
    if len(base) != len(losses.get("base", ())):
        raise DataError("held-out losses: two items have the same id; give each its own")
    if {id_: tokens for id_, (_, tokens) in base.items()} != {id_: tokens for id_, (_, tokens) in tuned.items()}:
        raise DataError("held-out losses: the two arms have different items or token counts; compare them again")
    ids = list(base)
    weights = [base[id_][1] for id_ in ids]
    keys = [belongs.get(id_, id_) for id_ in ids]
    sums = [[arm[id_][0] for id_ in ids] for arm in arms]
    rng = _rng(seed, "loss")
    means = [bootstrap_mean(values, rng, weights=weights, clusters=keys) for values in sums]
    paired = paired_difference(sums[0], sums[1], rng, keys, weights=weights)
    return _row("loss", (means[0], means[1]), paired, "lower")


def _pairs(rows: Sequence[Answer]) -> list[tuple[Answer, Answer]]:
    arms: dict[str, dict[Hashable, Answer]] = {"base": {}, "tuned": {}}
    for row in rows:
        key: Hashable = (row["set"], row["id"], row["seed"])
        if key in arms[row["arm"]]:
            raise DataError("answers: question {id} has two {mode} answers of one seed", id=row["id"], mode=row["mode"])
        arms[row["arm"]][key] = row
    for lone in arms["base"].keys() ^ arms["tuned"].keys():
        row = arms["base"].get(lone) or arms["tuned"][lone]
        raise DataError("answers: question {id} was answered by one model only; compare them again", id=row["id"])
    return [(base, arms["tuned"][key]) for key, base in arms["base"].items()]


def _answer_row(
    measure: Measure, mode: str, pairs: Sequence[tuple[Answer, Answer]], keys: Sequence[Hashable], seed: int
) -> Row:
    key = f"{measure.key}.{mode}"
    base, tuned = ([measure.of(pair[arm]) for pair in pairs] for arm in (0, 1))
    if measure.share and len(set(keys)) == len(keys):  # the formulas for shares want independent pairs
        return _row(key, *_shares(base, tuned), measure.better)
    rng = _rng(seed, key)
    arms = bootstrap_mean(base, rng, clusters=keys), bootstrap_mean(tuned, rng, clusters=keys)
    return _row(key, arms, paired_difference(base, tuned, rng, keys), measure.better)


def _shares(base: list[float], tuned: list[float]) -> tuple[tuple[Interval, Interval], PairedResult]:
    pairs = list(zip(base, tuned, strict=True))
    both, lost, won = (pairs.count(kind) for kind in ((1, 1), (1, 0), (0, 1)))
    n = len(pairs)
    difference = newcombe(both, lost, won, n - both - lost - won)
    return (wilson(both + lost, n), wilson(both + won, n)), PairedResult(difference, mcnemar_exact(lost, won))


def _cells(row: Row, language: str) -> list[str]:
    words = labels(language)
    name, _, mode = row.key.partition(".")
    label = words["row." + name] + (f", {words['mode.' + mode]}" if mode else "") + ARROWS[row.better]
    arms = [_value(name, value, language) for value in (row.base, row.tuned)]
    change = _value(name, row.difference, language, sign=True)
    return [label, str(row.n), *arms, change, _p(row.p, language), words["verdict." + row.verdict]]


def _value(name: str, shown: Interval, language: str, *, sign: bool = False) -> str:
    if name in FORMATS:
        digits, unit = FORMATS[name]
        return interval(shown, digits, language, sign=sign, unit=unit)
    value, low, high = (None if x is None else 100 * x for x in (shown.value, shown.low, shown.high))
    percent = Interval(value, low, high, shown.n)
    return interval(percent, 1, language, sign=sign, unit=labels(language)["unit.pp"] if sign else "%")


def _p(p: float | None, language: str) -> str:
    if p is None:
        return NOTHING
    return "<\u00a0" + number(0.001, 3, language) if p < 0.001 else number(p, 3, language)
