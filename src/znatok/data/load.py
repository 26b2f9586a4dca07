"""Reading a data file: JSON Lines in UTF-8, one record a line.

The file is read once, line by line, hashed on the way, and no line is held beyond a limit. Every problem is collected
with its line; nothing is dropped in silence.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn, cast

from znatok.data import formats
from znatok.data.schema import Pair, parse_record, quoted, shown, shown_path, unknown_keys
from znatok.errors import DataError, SystemFault, _
from znatok.files import BLOCK, replacing

MAX_LINE = 4 << 20  # bytes; a thousand times a long answer
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
    formats.refuse_irregular(path)
    reader = _Reader(path)
    try:
        with path.open("rb") as file:
            formats.refuse_head(path, file.peek(4096))
            for number, raw in enumerate(reader.lines(file), 1):
                reader.take(number, raw)
    except OSError as exc:
        raise DataError("{path}: can't be read: {why}", path=shown_path(path), why=exc.strerror) from exc
    return reader.result()


def copy_lines(source: Path, target: Path, lines: Collection[int]) -> None:
    """Write some lines of a file that was read before to another, byte for byte but for marks and line ends.

    Raises:
        SystemFault: The other can't be written.
    """
    try:
        with source.open("rb") as file, replacing(target) as temporary, temporary.open("wb") as copy:
            for number, raw in enumerate(_Reader(source).lines(file), 1):
                if raw is not None and number in lines:
                    copy.write(raw.removeprefix(MARK).rstrip(b"\r\n") + b"\n")
    except OSError as exc:
        raise SystemFault("{path}: can't be written: {why}", path=shown_path(target), why=exc.strerror) from exc


class _Reader:
    """Takes lines one by one; at the end says what the file was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = shown_path(path)
        self.digest = hashlib.sha256()
        self.pairs: list[Pair] = []
        self.problems: list[DataError] = []
        self.unknown: Counter[str] = Counter()
        self.records_with_unknown = 0
        self.marks = 0
        self.first_text = ""
        self.any_json = False
        self.any_utf8 = False  # a valid line with letters beyond ASCII
        self.legacy_encoding = ""

    def lines(self, file: BufferedReader) -> Iterator[bytes | None]:
        """Yield lines with their ends, hashing them; None for one over the limit, which is never held whole."""
        total = 0
        while raw := file.readline(MAX_LINE + 1):
            too_long = len(raw) > MAX_LINE and not raw.endswith(b"\n")
            part = raw
            while part:
                self.digest.update(part)
                total += len(part)
                formats.refuse_size(self.path, total)  # once more: the file may grow while it is read
                part = file.readline(BLOCK) if too_long and not part.endswith(b"\n") else b""
            yield None if too_long else raw

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
                path=self.name,
                line=number,
                count=MAX_PROBLEMS,
            )

    def result(self) -> Dataset:
        """Return what was read; refuse a file that holds nothing or is something else."""
        if not self.pairs and not self.problems:
            raise DataError('{path}: no records; expected {{"prompt": …, "response": …}} on each line', path=self.name)
        self._refuse_whole()
        notes = []
        if self.marks:
            notes.append(_("{path}: a byte order mark is ignored; UTF-8 needs none", path=self.name))
        if count := self.records_with_unknown:
            keys = quoted(sorted(self.unknown))
            notes.append(
                _(
                    "{path}: unknown keys are not read: {keys}; records with them: {count}",
                    path=self.name,
                    keys=keys,
                    count=count,
                )
            )
        return Dataset(tuple(self.pairs), tuple(notes), tuple(self.problems), self.digest.hexdigest())

    def _refuse_whole(self) -> None:
        if self.legacy_encoding and not self.any_utf8:
            formats.refuse_encoding(self.path, self.legacy_encoding)
        if self.first_text and not self.any_json and (self.first_text == "{" or not self.first_text.startswith("{")):
            formats.refuse_text(self.path, self.first_text)

    def _record(self, number: int, raw: bytes | None) -> Pair | None:
        place = {"path": self.name, "line": number}
        if raw is None:
            raise DataError("{path}:{line}: longer than {limit} bytes; split the record", **place, limit=MAX_LINE)
        body = raw.removesuffix(b"\n").removesuffix(b"\r")
        if b"\r" in body:
            raise DataError("{path}:{line}: a lone CR; expected lines that end in LF or CRLF", **place)
        cut = not raw.endswith(b"\n")
        text = self._decode(body, place, cut=cut)
        if not text.strip():
            return None
        self.first_text = self.first_text or text.strip()[:80]
        value = _parse(text, place, cut=cut)
        self.any_json = True
        if unknown := unknown_keys(value):
            self.unknown.update(unknown)
            self.records_with_unknown += 1
        return parse_record(value, self.path, number)

    def _decode(self, body: bytes, place: dict[str, Any], *, cut: bool) -> str:
        try:
            text = body.decode("utf-8")
        except UnicodeDecodeError as exc:
            if cut and exc.reason == "unexpected end of data":
                raise DataError(
                    "{path}:{line}: cut short within a letter; complete the last line or delete it", **place
                ) from None
            encoding = formats.guess_encoding(body)
            self.legacy_encoding = self.legacy_encoding or encoding
            where = {**place, "offset": exc.start + 1, "byte": f"0x{body[exc.start]:02X}"}
            if encoding:
                raise DataError(
                    "{path}:{line}: byte {offset}, {byte}, is not UTF-8; the line looks like {encoding}, rewrite it",
                    **where,
                    encoding=encoding,
                ) from None
            raise DataError("{path}:{line}: byte {offset}, {byte}, is not UTF-8; rewrite the line", **where) from None
        self.any_utf8 = self.any_utf8 or not text.isascii()
        self.marks += text.startswith("\ufeff")
        return text.removeprefix("\ufeff")


# JSON, stricter than the standard library's


class _DuplicateKeyError(ValueError):
    pass


class _NotFiniteError(ValueError):
    pass


def _unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(items)
    if len(record) < len(items):
        counts = Counter(key for key, _value in items)
        raise _DuplicateKeyError(counts.most_common(1)[0][0])
    return record


def _not_finite(name: str) -> NoReturn:
    raise _NotFiniteError(name)


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise OverflowError(text)
    return value


def _parse(text: str, place: dict[str, Any], *, cut: bool) -> object:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_not_finite, parse_float=_finite)
    except RecursionError:
        raise DataError("{path}:{line}: nested too deep; expected an object of strings", **place) from None
    except json.JSONDecodeError as exc:
        why = {"column": exc.colno, "why": exc.msg}
        if cut:
            raise DataError(
                "{path}:{line}: cut short at character {column} ({why}); complete the last line or delete it",
                **place,
                **why,
            ) from None
        raise DataError("{path}:{line}: not JSON at character {column}: {why}", **place, **why) from None
    except _DuplicateKeyError as exc:
        key = quoted([str(exc)])
        raise DataError("{path}:{line}: the key {key} stands twice; keep one of them", **place, key=key) from None
    except _NotFiniteError as exc:
        raise DataError("{path}:{line}: {value} is not JSON; write a number or null", **place, value=str(exc)) from None
    except OverflowError as exc:  # 1e999
        value = shown(str(exc))
        raise DataError(
            "{path}:{line}: {value} is too large a number; write it as a string", **place, value=value
        ) from None
    except ValueError:  # int() refuses thousands of digits
        raise DataError("{path}:{line}: a number with too many digits; write it as a string", **place) from None
