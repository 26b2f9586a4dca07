"""Shapes of the rows a comparison leaves behind, and how text from a model or a machine is made fit to show."""

import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PureWindowsPath
from typing import Any, Literal, NamedTuple, TypedDict

from znatok.eval.labels import labels, number

ARMS = ("base", "tuned")
MODES = ("sampled", "greedy")
SETS = ("seed", "user", "heldout")  # in the order they are shown


class Answer(TypedDict):
    """One line of ``compare/answers.jsonl``."""

    id: str
    set: Literal["seed", "heldout", "user"]
    question: str
    reference: str | None
    mode: Literal["sampled", "greedy"]
    arm: Literal["base", "tuned"]
    text: str
    tokens: int
    stop: Literal["end", "length"]
    seconds: float
    seed: int


class Manifest(TypedDict, total=False):
    """What reports read about a run, in the order they show it; other keys are left alone, missing ones left out."""

    model_name: str
    base_sha256: str | None
    adapter_sha256: str | None
    data_path: str | None
    data_sha256: str | None
    pairs: int | None
    heldout: str | None  # file of the held-out pairs
    seed: int
    sampling: Mapping[str, Any]  # temperature, top_p, max_new_tokens …
    engine: str | None
    dtype: str | None
    machine: str | Mapping[str, Any]
    versions: Mapping[str, str] | None
    command: str | Sequence[str] | None
    seconds: float | None  # of training
    compare_seconds: float | None
    created: str | None


class Fact(NamedTuple):
    """One line about a run: what it is called in the reader's language, and its value."""

    key: str
    label: str
    value: str


class Question(NamedTuple):
    """A question with its answers by (mode, arm), in the order they were drawn."""

    set: str
    id: str
    text: str
    reference: str | None
    answers: dict[tuple[str, str], list[Answer]]


def questions(answers: Iterable[Answer]) -> list[Question]:
    """Group answers by question: the five of the seed document first, then the user's, then the held-out ones."""
    found: dict[tuple[str, str], Question] = {}
    for row in answers:
        key = (row["set"], row["id"])
        question = found.setdefault(key, Question(*key, row["question"], row["reference"], {}))
        question.answers.setdefault((row["mode"], row["arm"]), []).append(row)
    return sorted(found.values(), key=lambda question: SETS.index(question.set))  # stable: order of asking is kept


def visible(text: str) -> str:
    """Return ``text`` without control, format and private characters; line ends become LF, tabs stay.

    What a model writes goes into files that people open: no escape sequence, no right-to-left override, no surrogate.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c for c in text if c in "\n\t" or not unicodedata.category(c).startswith("C"))


_ROOTED = re.compile(
    r"(?<![\w.~/\\])"  # not inside a relative path, an «owner/name» or an address
    r"(?:[A-Za-z]:[\\/]|\\\\|/(?=[^\s/]))"
    r"(?:[^\s'\"=,;:\\/]*[\\/])*"
    r"([^\s'\"=,;:\\/]*)"
)


def portable(text: str) -> str:
    """Return ``text`` with every absolute path cut to its last part: whose home it was is nobody's business."""
    return _ROOTED.sub(lambda match: match.group(1), text.replace("file://", ""))


def portable_command(command: str | Sequence[str]) -> str:
    """Return a command line as typed into a shell, without absolute paths."""
    if isinstance(command, str):
        return portable(visible(command))
    return shlex.join(_portable_word(visible(str(word))) for word in command)


def _portable_word(word: str) -> str:
    flag, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    if value.startswith(("/", "\\", "file://")) or re.match(r"[A-Za-z]:[\\/]", value):
        value = PureWindowsPath(value).name  # both kinds of slash, and a folder with spaces in one piece
    return flag + equals + portable(value)


def run_facts(manifest: Manifest, language: str) -> list[Fact]:
    """Return what a reader needs to repeat a run, in a fixed order, leaving out what the manifest doesn't say."""
    words = labels(language)
    values: dict[str, str] = {}
    for key in Manifest.__annotations__:
        value: Any = manifest.get(key)
        if value is None:
            continue
        if key == "command":
            values[key] = portable_command(value)
        elif key in {"seconds", "compare_seconds"}:
            values[key] = duration(value, language)
        else:
            values[key] = _flat(value)
    return [Fact(key, words["fact." + key], value) for key, value in values.items()]


def _flat(value: Any) -> str:
    if not isinstance(value, Mapping):
        return _portable_word(visible(str(value)))
    items = {visible(str(key)): _flat(item) for key, item in value.items() if item is not None}
    return ", ".join(f"{key} {item}" for key, item in items.items())


def duration(seconds: float, language: str) -> str:
    """Return a time as people say it: «48 s», «12 min», «2.5 h»."""
    words = labels(language)
    if seconds < 90:
        return f"{number(seconds, 0, language)} {words['unit.s']}"
    if seconds < 90 * 60:
        return f"{number(seconds / 60, 0, language)} {words['unit.min']}"
    return f"{number(seconds / 3600, 1, language)} {words['unit.h']}"
