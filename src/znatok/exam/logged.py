"""What was weighed, item by item, for the report: choices, pairs and windows of prose, a column for each voice."""

from collections.abc import Sequence
from typing import NamedTuple

from znatok.eval.labels import labels, number
from znatok.exam.likelihood import shares
from znatok.exam.scores import Row


class Cell(NamedTuple):
    """A cell of the report's tables: its text, where it leads, how it looks, and the logs named after it."""

    text: str
    href: str = ""
    css: str = ""
    logs: tuple[str, ...] = ()


class Log(NamedTuple):
    """Everything of one kind and split: where it stands in the page, what it is, and its table."""

    anchor: str
    title: str
    note: str
    head: list[str]
    rows: list[list[Cell]]


def logs_of(rows: Sequence[Row], texts: Sequence[Row], language: str) -> list[Log]:
    """Return the logs of all that was weighed.

    Args:
        rows: of ``eval/items.jsonl``.
        texts: bits per byte, see :class:`znatok.exam.examine.Result`.
        language: of the captions.
    """
    words = labels(language)
    logs = []
    for kind, name, made in (("choice", "choices", _choice), ("pair", "pairs", _pair)):
        for split in sorted({row["split"] for row in rows if row["kind"] == kind}):
            own = [row for row in rows if row["kind"] == kind and row["split"] == split]
            found = [made(heard, language) for heard in _by(own, "id").values()]
            table = [row for item in found for row in item]
            title, head = f"{split}: {words[f'log.{name}']}", [words[f"log.{name}"], *_voices(own, language)]
            logs.append(Log(f"{split}-{name}", title, words[f"log.{name}.note"], head, table))
    for name, heard in _by(texts, "text").items():
        title, head = (
            f"{words['log.prose']}, {name}",
            [words["log.window"], words["log.bytes"], *_voices(heard, language)],
        )
        table = _prose(heard, words["log.whole"], language)
        logs.append(Log(f"prose-{name}", title, words["log.prose.note"], head, table))
    return logs


def _by(rows: Sequence[Row], key: str) -> dict[str, list[Row]]:
    """Return the rows of each item; within one they are in the order of the voices."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    return found


def _voices(rows: Sequence[Row], language: str) -> list[str]:
    words = labels(language)
    voices = dict.fromkeys((row["arm"], row["run"]) for row in rows)
    return [words[f"arm.{arm}"] + (f" · {run}" if run else "") for arm, run in voices]


def _choice(heard: Sequence[Row], language: str) -> list[list[Cell]]:
    """Return a row for the question and one for each option."""
    first = heard[0]
    share = [shares(row["losses"]) for row in heard]
    density = [_per_byte(row) for row in heard]
    rows = [[Cell(first["question"], css="asked"), *(Cell("") for _row in heard)]]
    for i, option in enumerate(first["options"]):
        right = i == first["answer"]
        cells = []
        for shown, nats in zip(share, density, strict=True):
            text = f"{number(shown[i], 2, language)} ({number(nats[i], 2, language)})"
            chosen = min(range(len(nats)), key=nats.__getitem__) == i
            cells.append(Cell(f"{text} {'✓' if right else '✗'}", css=_colour(right=right)) if chosen else Cell(text))
        rows.append([Cell(option, css="correct" if right else ""), *cells])
    return rows


def _per_byte(row: Row) -> list[float]:
    return [loss / len(option.encode()) for loss, option in zip(row["losses"], row["options"], strict=True)]


def _pair(heard: Sequence[Row], language: str) -> list[list[Cell]]:
    """Return a row for the true statement, with the margins, and one for the false."""
    first = heard[0]
    margins = [
        Cell(
            " ".join(
                (
                    number(row["margin"], 2, language, sign=True),
                    f"({number(row['margin_bare'], 2, language, sign=True)})",
                )
            ),
            css=_colour(right=row["margin"] > 0),
        )
        for row in heard
    ]
    return [[Cell(first["true"], css="asked"), *margins], [Cell(first["false"]), *(Cell("") for _row in heard)]]


def _colour(*, right: bool) -> str:
    return "correct" if right else "incorrect"


def _prose(heard: Sequence[Row], whole: str, language: str) -> list[list[Cell]]:
    """Return a row for each window and one for the whole text."""
    sizes = [size for _bits, size in heard[0]["windows"]]
    bits = [[bits for bits, _size in row["windows"]] for row in heard]
    lines = [(str(i + 1), size, [own[i] for own in bits]) for i, size in enumerate(sizes)]
    lines.append((whole, sum(sizes), [sum(own) for own in bits]))
    return [
        [Cell(name), Cell(str(size)), *(Cell(number(own / size, 3, language)) for own in found)]
        for name, size, found in lines
    ]
