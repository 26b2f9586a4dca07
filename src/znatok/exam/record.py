"""What an examination heard, kept so that anybody can judge it again: without weights, in seconds.

A record is a JSON Lines file of one voice: first a line about who was asked and what computed it, then a line for each
answer (``open``), each thing weighed (``choice``, ``pair``), each text read (``prose``) and each step trained
(``loss``). Every line holds what was asked word for word, so a record is never judged by questions it did not hear.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from znatok.data.schema import shown, shown_path
from znatok.errors import DataError, UsageError
from znatok.exam.items import ChoiceItem, Item, OpenItem
from znatok.files import write_jsonl

FORM = 1
"""Of the file; raised when an older reader would misread it."""
BASE = "base"
RECORDS = "records"
"""The folder of an examination's records."""
FREE = {"seed", "save_steps", "eval_steps", "keep_checkpoints"}
"""Options in which runs of one recipe may differ."""

COMPARABLE = ("base_sha256", "engine", "dtype", "sampling", "knowledge_sha256", "system")
"""What the base and a tuned voice must have alike."""

ADAPTER = "adapter_model.safetensors"

Line = Mapping[str, Any]


@dataclass(frozen=True)
class About:
    """Who was asked, and what computed the answers.

    Attributes:
        voice: ``base`` or ``tuned``.
        run: the run's name; empty for the base.
        model_name, base_sha256: the base model.
        adapter_sha256: of the tuned voice.
        engine, dtype: what computed, in which number format.
        train_seed, data_path, data_sha256, options: how the adapter was made; None for the base.
        knowledge_sha256: of the passages that two arms may look things up in.
        sampling, seed: how answers were drawn.
        machine: processor, threads, versions.
        system: the message that every arm but the prompted one heard; None in records that do not say it.
        items_sha256: of the files of questions; None in records that do not say it.
    """

    voice: str
    run: str
    model_name: str
    base_sha256: str
    adapter_sha256: str | None
    engine: str
    dtype: str | None
    train_seed: int | None
    data_path: str | None
    data_sha256: str | None
    options: Mapping[str, Any] | None
    knowledge_sha256: str | None
    sampling: Mapping[str, Any]
    seed: int
    machine: Mapping[str, Any]
    system: str | None = None
    items_sha256: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Record:
    """What one voice said and weighed, in lines as they stand in its file; ``place`` names it in errors."""

    about: About
    lines: Sequence[Line]
    place: str = ""
    _found: dict[tuple[str, str, str], Line] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._found.update({(line["kind"], line.get("arm", ""), line.get("id", "")): line for line in self.lines})

    def of(self, kind: str, arm: str, item: Item) -> Line:
        """Return what was heard on an item.

        Raises:
            DataError: the item was not asked, or in other words.
        """
        line = self._found.get((kind, arm, item.id))
        if line is None or line["asked"] != asked(item):
            raise DataError(
                "{place}: holds no answer to {id} in its present words (arm {arm}); examine the run itself, "
                "or name the questions of that time",
                place=self.place or self.about.run or BASE, id=item.id, arm=arm,
            )  # fmt: skip
        return line

    @property
    def file_name(self) -> str:
        """Return how its file is called in a folder of records."""
        return f"{self.about.run or BASE}.jsonl"

    def texts(self) -> list[dict[str, Any]]:
        """Return bits per byte of each window of prose."""
        who = {"arm": self.about.voice, "run": self.about.run}
        return [
            {"text": line["id"], **who, "windows": line["windows"]} for line in self.lines if line["kind"] == "prose"
        ]

    def prose(self) -> dict[str, tuple[str, list[int]]]:
        """Return the SHA-256 of each text and the sizes of its windows, by which windows of two records are paired."""
        return {
            line["id"]: (line["sha256"], [size for _bits, size in line["windows"]])
            for line in self.lines
            if line["kind"] == "prose"
        }

    def losses(self) -> list[Line]:
        """Return the rows of the training curve."""
        return [line for line in self.lines if line["kind"] == "loss"]


def asked(item: Item) -> str:
    """Return what a model is shown of an item, word for word."""
    if isinstance(item, OpenItem):
        return item.question
    parts = item.options if isinstance(item, ChoiceItem) else (item.true, item.false)
    return " | ".join((item.question, *parts))


def curve(metrics: Iterable[Line]) -> list[Line]:
    """Return the lines of a training curve from the rows of ``metrics.jsonl``."""
    wanted = ("step", "epoch", "loss", "val_loss")
    rows = [row for row in metrics if "loss" in row or "val_loss" in row]
    return [{"kind": "loss", **{key: row[key] for key in wanted if key in row}} for row in rows]


def write_record(record: Record, path: Path) -> None:
    """Write a record as one file."""
    write_jsonl(path, [{"kind": "about", "form": FORM, **asdict(record.about)}, *map(dict, record.lines)])


def read_records(path: Path) -> list[Record]:
    """Return the record in a file, or all records in a folder.

    Raises:
        DataError: a file can't be read or is no record.
    """
    paths = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    return [_read(one) for one in paths]


def _refuse_another_training(record: Record, first: Record) -> None:
    """Raise UsageError where two runs differ in more than their seed: their mean would be nobody's."""
    ours, theirs = (_training(one.about) for one in (first, record))
    for key in ours.keys() & theirs.keys():
        if ours[key] != theirs[key]:
            raise UsageError(
                "{place}: {key} is {theirs}, in {first} {ours}; runs examined together differ in their seed only",
                place=record.place or record.about.run,
                key=key,
                theirs=_shown(key, theirs[key]),
                first=first.place or first.about.run,
                ours=_shown(key, ours[key]),
            )


def _training(about: About) -> dict[str, Any]:
    """Return what a run was trained on and how, as far as it decides what is learned and is known."""
    known = {"data_sha256": about.data_sha256, "system": about.system, **(about.options or {})}
    return {key: value for key, value in known.items() if key not in FREE and value is not None}


def _refuse_another_base(record: Record, base: Record) -> None:
    """Raise UsageError where a tuned voice was not asked as the base of the record was."""
    place = record.place or record.about.run
    for key in COMPARABLE:
        ours, theirs = getattr(base.about, key), getattr(record.about, key)
        if ours != theirs and not (key == "system" and None in {ours, theirs}):
            raise UsageError(
                "{place}: {key} is {theirs}, that of the base's record {ours}; they can't be compared",
                place=place, key=key, theirs=_shown(key, theirs), ours=_shown(key, ours),
            )  # fmt: skip
    ours, theirs = base.prose(), record.prose()
    for name in sorted(ours.keys() & theirs.keys()):
        if ours[name] != theirs[name]:
            raise UsageError(
                '{place}: prose "{name}" is another text than in the base\'s record (SHA-256 {theirs}… and {ours}…), '
                "or cut into other windows; leave that record out, and the base is asked again",
                place=place, name=name, theirs=theirs[name][0][:12], ours=ours[name][0][:12],
            )  # fmt: skip


def _shown(key: str, value: object) -> object:
    """Return a value for a message of one line: a system message may have many."""
    return shown(value, 80) if key == "system" and isinstance(value, str) else value


def _read(path: Path) -> Record:
    place = shown_path(path)
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        about, rest = dict(lines[0]), lines[1:]
        known = about.pop("kind") == "about" and about.pop("form") == FORM
        record = Record(About(**about), rest, place)
    except OSError as error:
        raise DataError("{path}: can't be read: {why}", path=place, why=error.strerror) from error
    except (ValueError, LookupError, TypeError, AttributeError):
        known, record = False, None
    if not known or record is None:
        raise DataError(
            "{path}: not a record of an examination, which znatok eval writes into eval/records", path=place
        )
    return record


def is_record(path: Path) -> bool:
    """Tell whether a path is meant as a record, or a folder of them, rather than as a run directory."""
    if path.is_dir():
        return any(path.glob("*.jsonl")) and not any((path / name).is_file() for name in ("run.toml", ADAPTER))
    return path.suffix == ".jsonl"


def together(records: Sequence[Record]) -> tuple[Record, list[Record]]:
    """Return the base's record and those of the tuned voices, fit to be compared.

    Raises:
        UsageError: there is no base, or no tuned voice, or they differ in what must be the same.
    """
    bases = [record for record in records if record.about.voice == BASE]
    tuned = [record for record in records if record.about.voice != BASE]
    if not bases or not tuned:
        raise UsageError(
            "a comparison needs the base's record and at least one of a tuned model; name the folder that holds both"
        )
    base = bases[0]
    for record in tuned:
        _refuse_another_base(record, base)
        _refuse_another_training(record, tuned[0])
    names = [record.about.run for record in tuned]
    for name in names:
        if names.count(name) > 1:
            raise UsageError("{name}: two runs of this name; rename one", name=name)
    return base, tuned
