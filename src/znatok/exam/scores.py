"""Rows of an examination as scores of questions: which numbers there are, their means and differences with intervals.

The unit is a question, the cluster a fact; with several training seeds a tuned arm's score of a question is its mean
over them. Method: Miller, arXiv 2411.00640.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from znatok.eval.stats import Interval, PairedResult, bootstrap_mean, paired_difference, wilson

MEMORISED = "T0"  # the training questions word for word: never part of a claim

Row = Mapping[str, Any]
Pick = Callable[[Row], float | None]


@dataclass(frozen=True)
class Cell:
    """A number of the table: an arm, a split, a measure."""

    arm: str
    split: str
    measure: str
    value: Interval


class Scores:
    """Rows by kind, arm and item; a tuned arm's value is its mean over runs."""

    def __init__(self, rows: Iterable[Row], seed: int) -> None:
        self.rows = list(rows)
        self.seed = seed
        self.arms = tuple(dict.fromkeys(row["arm"] for row in self.rows if row["kind"] == "open"))

    def values(
        self, kind: str, arm: str, splits: Sequence[str], pick: Pick, kind_of_question: str = ""
    ) -> dict[str, tuple[float, str]]:
        """Return (mean over runs, cluster) of each item that has the value."""
        found: dict[str, list[float]] = {}
        clusters: dict[str, str] = {}
        for row in self.rows:
            if row["kind"] == kind and row["arm"] == arm and row["split"] in splits:
                if kind_of_question and row["type"] != kind_of_question:
                    continue
                value = pick(row)
                if value is not None:
                    found.setdefault(row["id"], []).append(float(value))
                    clusters[row["id"]] = row["cluster"]
        return {name: (fmean(values), clusters[name]) for name, values in found.items()}

    def mean(self, name: str, values: Mapping[str, tuple[float, str]]) -> Interval:
        """Return a mean with its clustered bootstrap interval.

        Of yes-and-no values it is Wilson's where each fact is asked once; and where all answers are alike, for the
        facts that were asked: no draw of them would show that the next one may be another.
        """
        numbers, clusters = [v for v, _c in values.values()], [c for _v, c in values.values()]
        facts = len(set(clusters))
        if numbers and set(numbers) <= {0.0, 1.0} and facts == len(numbers):
            return wilson(int(sum(numbers)), len(numbers))
        if numbers and (alike := numbers[0]) in {0.0, 1.0} and set(numbers) == {alike}:
            return replace(wilson(int(alike) * facts, facts), n=len(numbers))
        return bootstrap_mean(numbers, self.rng(name), clusters=clusters)

    def paired(self, name: str, a: Mapping[str, tuple[float, str]], b: Mapping[str, tuple[float, str]]) -> PairedResult:
        """Return the mean difference b - a over the items both have."""
        shared = [item for item in a if item in b]
        return paired_difference(
            [a[item][0] for item in shared],
            [b[item][0] for item in shared],
            self.rng(name),
            [a[item][1] for item in shared],
        )

    def rng(self, name: str) -> np.random.Generator:
        """Return a generator of a name's own, so that one more claim changes no other."""
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])


def recall(row: Row) -> float | None:
    """Return claim recall."""
    value: float | None = row["recall"]
    return value


def number(key: str) -> Pick:
    """Pick a number, None where there is none."""
    return lambda row: None if row[key] is None else float(row[key])


def verdict_is(verdict: str) -> Pick:
    """Pick whether the verdict is this one."""
    return lambda row: float(row["verdict"] == verdict)


def ended(row: Row) -> float:
    """Return whether the model ended its answer itself."""
    return float(row["stop"] == "end")


def prefers(row: Row) -> float:
    """Return whether the true statement is the likelier one."""
    return float(row["margin"] > 0)
