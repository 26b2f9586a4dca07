"""Does a person judge as the rules do? Blinded answers to be labelled, and the agreement when they are.

The sheet holds answers of base and tuned in equal parts, shuffled, with question and reference and without the arm, the
run or the verdict. A person writes one of the four verdicts beside each. The key that joins a line to its answer is a
hash, so the order tells nothing.
"""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from znatok.errors import DataError
from znatok.eval.stats import Interval
from znatok.exam.claims import Verdict
from znatok.files import write_text

COLUMNS = ("key", "question", "reference", "answer", "label")
DRAWS = 2000
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Agreement:
    """How a person's labels and the rules agree.

    Attributes:
        n: labelled answers.
        same: share of equal verdicts.
        kappa: Cohen's, with its bootstrap interval.
        confusion: counts by (person, rules).
    """

    n: int
    same: float
    kappa: Interval
    confusion: dict[str, dict[str, int]]


def key_of(row: Row) -> str:
    """Return what joins a line of the sheet to an answer."""
    return hashlib.sha256("\x00".join((row["arm"], row["run"], row["id"], row["text"])).encode()).hexdigest()[:16]


def blind_sheet(rows: Iterable[Row], seed: int, count: int = 60) -> str:
    """Return a CSV of ``count`` answers, half base and half tuned, in an order that tells nothing.

    Raises:
        DataError: there are not that many answers.
    """
    rng = np.random.default_rng(seed)
    chosen: list[Row] = []
    asked = [row for row in rows if row["kind"] == "open" and row["split"] not in {"T0", "T5"}]
    for arm in ("base", "tuned"):
        own = sorted((row for row in asked if row["arm"] == arm), key=key_of)
        if len(own) < count // 2:
            raise DataError(
                "a blinded sheet of {count} needs {half} answers of {arm}; there are {n}",
                count=count, half=count // 2, arm=arm, n=len(own),
            )  # fmt: skip
        chosen += [own[i] for i in rng.permutation(len(own))[: count // 2]]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in sorted(chosen, key=key_of):
        writer.writerow([key_of(row), row["question"], row["reference"], row["text"], ""])
    return buffer.getvalue()


def write_sheet(rows: Iterable[Row], path: Path, seed: int) -> None:
    """Write the sheet; a byte order mark lets spreadsheets read its Russian."""
    write_text(path, "\ufeff" + blind_sheet(rows, seed))


def read_labels(path: Path) -> dict[str, str]:
    """Read a labelled sheet: verdict by key, lines without a label left out.

    Raises:
        DataError: the file can't be read, lacks a column, or holds a label that is no verdict.
    """
    try:
        lines = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError("{path}: {error}", path=path, error=error) from None
    labels = {}
    for number, line in enumerate(lines, 2):
        if line.get("key") is None or line.get("label") is None:
            raise DataError("{path}: expected the columns {columns}", path=path, columns=", ".join(COLUMNS))
        label = line["label"].strip().lower()
        if label and label not in set(Verdict):
            raise DataError(
                "{path}:{line}: label {label}: expected one of {known}",
                path=path, line=number, label=label, known=", ".join(Verdict),
            )  # fmt: skip
        if label:
            labels[line["key"]] = label
    return labels


def agreement(rows: Iterable[Row], labels: Mapping[str, str], seed: int) -> Agreement:
    """Compare a person's verdicts with those of the rules.

    Raises:
        DataError: no label belongs to one of these answers.
    """
    pairs = [(labels[key], row["verdict"]) for row in rows if row["kind"] == "open" and (key := key_of(row)) in labels]
    if not pairs:
        raise DataError("no label belongs to an answer of this examination; was the sheet written by another one?")
    rng = np.random.default_rng(seed)
    drawn = [[pairs[i] for i in rng.integers(len(pairs), size=len(pairs))] for _ in range(DRAWS)]
    low, high = np.quantile([kappa(sample) for sample in drawn], [0.025, 0.975])
    confusion: dict[str, dict[str, int]] = {}
    for (person, rules), count in sorted(Counter(pairs).items()):
        confusion.setdefault(person, {})[rules] = count
    same = sum(person == rules for person, rules in pairs) / len(pairs)
    return Agreement(len(pairs), same, Interval(kappa(pairs), float(low), float(high), len(pairs)), confusion)


def kappa(pairs: Sequence[tuple[str, str]]) -> float:
    """Return Cohen's kappa: agreement beyond what the two would share by chance; 1 where both always say the same."""
    n = len(pairs)
    same = sum(a == b for a, b in pairs) / n
    first, second = Counter(a for a, _b in pairs), Counter(b for _a, b in pairs)
    chance = sum(first[name] * second[name] for name in first) / n**2
    return 1.0 if chance == 1 else (same - chance) / (1 - chance)
