"""Reading a data file: JSON Lines in UTF-8, one record a line.

Every problem is collected with its line; nothing is dropped in silence.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from znatok.data import formats
from znatok.data.lines import BLANK, JsonLines
from znatok.data.schema import Pair, parse_record, quoted, shown_path, unknown_keys
from znatok.errors import DataError, SystemFault, _
from znatok.files import replacing

MAX_PROBLEMS = 10_000  # a file with more of them is no file of pairs, and its errors need not fill the memory
SHOWN_PROBLEMS = 20
MARK = b"\xef\xbb\xbf"


class BadRecords(DataError):
    """A file with bad records: ``problems`` holds an error for each, the text shows the first twenty."""

    @property
    def problems(self) -> tuple[DataError, ...]:
        """Every problem of the file, in its order."""
        return cast("tuple[DataError, ...]", self.fields["problems"])

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return str(self.problems[0])
        lines = [super().__str__(), *map(str, self.problems[:SHOWN_PROBLEMS])]
        if (more := len(self.problems) - SHOWN_PROBLEMS) > 0:
            lines.append(_("… and {more} more; znatok data check lists all of them", more=more))
        return "\n".join(lines)


@dataclass(frozen=True)
class Dataset:
    """The pairs of a file and everything worth saying about it.

    Attributes:
        pairs: The good records, in file order.
        notes: Remarks, translated, one line each.
        problems: An error for every record that was left out.
        sha256: The hash of the file's bytes as they were read.
    """

    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]
    problems: tuple[DataError, ...]
    sha256: str


def read_pairs(path: Path, *, skip_bad: bool = False) -> Dataset:
    """Read a file of pairs.

    Args:
        path: A regular file.
        skip_bad: Leave bad records out (each is in ``problems``) instead of refusing the file.

    Returns:
        At least one pair, with notes and problems.

    Raises:
        DataError: The file can't be read, or holds no records, or is not JSON Lines at all.
        BadRecords: Some records are bad and ``skip_bad`` is off, or all of them are.
    """
    data = scan(path)
    if data.problems and not (skip_bad and data.pairs):
        raise BadRecords(
            "{path}: records that can't be used: {count}",
            path=shown_path(path),
            count=len(data.problems),
            problems=data.problems,
        )
    if data.problems:
        left_out = _("{path}: bad records left out: {count}", path=shown_path(path), count=len(data.problems))
        return replace(data, notes=(*data.notes, left_out))
    return data


def scan(path: Path) -> Dataset:
    """Read a file as :func:`read_pairs` does, but leave bad records to the caller, even where all of them are bad."""
    reader = _Reader(path)
    for number, raw in reader.lines:
        reader.take(number, raw)
    return reader.result()


def copy_lines(source: Path, target: Path, lines: Collection[int]) -> None:
    """Write some lines of a file that was read before to another, byte for byte but for marks and line ends.

    Raises:
        DataError: The file can't be read.
        SystemFault: The other can't be written.
    """
    try:
        with replacing(target) as temporary, temporary.open("wb") as copy:
            for number, raw in JsonLines(source):
                if raw is not None and number in lines:
                    copy.write(raw.removeprefix(MARK).rstrip(b"\r\n") + b"\n")
    except OSError as exc:
        raise SystemFault("{path}: can't be written: {why}", path=shown_path(target), why=exc.strerror) from exc


class _Reader:
    """Takes lines one by one; at the end says what the file was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = JsonLines(path)
        self.pairs: list[Pair] = []
        self.problems: list[DataError] = []
        self.unknown: Counter[str] = Counter()
        self.records_with_unknown = 0

    def take(self, number: int, raw: bytes | None) -> None:
        """Turn a line into a pair, a problem, or nothing where it is blank."""
        try:
            pair = self._record(number, raw)
        except DataError as problem:
            problem.__context__ = problem.__traceback__ = None  # what is kept must not hold the line it is about
            self.problems.append(problem)
        else:
            self.pairs += [pair] if pair else []
        if len(self.problems) >= MAX_PROBLEMS:
            self._refuse_whole()
            raise DataError(
                "{path}:{line}: {count} bad records up to here, reading stopped; is this a file of pairs?",
                path=self.lines.name,
                line=number,
                count=MAX_PROBLEMS,
            )

    def result(self) -> Dataset:
        """Return what was read; refuse a file that holds nothing or is something else."""
        if not self.pairs and not self.problems:
            raise DataError(
                '{path}: no records; expected {{"prompt": …, "response": …}} on each line', path=self.lines.name
            )
        self._refuse_whole()
        notes = []
        if self.lines.marks:
            notes.append(_("{path}: a byte order mark is ignored; UTF-8 needs none", path=self.lines.name))
        if count := self.records_with_unknown:
            keys = quoted(sorted(self.unknown))
            notes.append(
                _(
                    "{path}: unknown keys are not read: {keys}; records with them: {count}",
                    path=self.lines.name,
                    keys=keys,
                    count=count,
                )
            )
        return Dataset(tuple(self.pairs), tuple(notes), tuple(self.problems), self.lines.digest.hexdigest())

    def _refuse_whole(self) -> None:
        self.lines.refuse_encoding()
        first = self.lines.first_text
        if first and not self.lines.any_json and (first == "{" or not first.startswith("{")):
            formats.refuse_text(self.path, first)

    def _record(self, number: int, raw: bytes | None) -> Pair | None:
        value = self.lines.value(number, raw)
        if value is BLANK:
            return None
        if unknown := unknown_keys(value):
            self.unknown.update(unknown)
            self.records_with_unknown += 1
        return parse_record(value, self.path, number)
