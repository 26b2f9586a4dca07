"""JSON Lines, read with suspicion: what no line may be is told with its place.

A file is read once, line by line, hashed on the way, and no line is held beyond a limit. JSON is taken more strictly
than by the standard library: a key stands once, and a number is one that a float can hold.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, Final, NoReturn

from znatok.data import formats
from znatok.data.schema import described, quoted, shown, shown_path
from znatok.errors import DataError
from znatok.files import BLOCK

MAX_LINE = 4 << 20  # bytes; a thousand times a long answer
BLANK: Final = object()
"""What stands in a line of white space: nothing, and not even null."""


class JsonLines:
    """The lines of a file, and what was seen of it on the way.

    Attributes:
        path: of the file.
        name: of the file, fit to be shown.
        digest: of the bytes read so far.
        marks: lines with a byte order mark.
        first_text: the beginning of the first line that holds anything.
        any_json: whether a line was JSON.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = shown_path(path)
        self.digest = hashlib.sha256()
        self.marks = 0
        self.first_text = ""
        self.any_json = False
        self._any_utf8 = False  # a valid line with letters beyond ASCII
        self._legacy_encoding = ""

    def __iter__(self) -> Iterator[tuple[int, bytes | None]]:
        """Yield each line's number, and the line with its end; None for one over the limit, which is never held whole.

        Raises:
            DataError: the file can't be read, or its first bytes say that no line of it can.
        """
        formats.refuse_irregular(self.path)
        try:
            with self.path.open("rb") as file:
                formats.refuse_head(self.path, file.peek(4096))
                yield from enumerate(self._lines(file), 1)
        except OSError as exc:
            raise DataError("{path}: can't be read: {why}", path=self.name, why=exc.strerror) from exc

    def objects(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the number and the object of each line that holds one.

        Raises:
            DataError: the file or a line can't be read, or holds anything but an object.
        """
        for number, raw in self:
            try:
                value = self.value(number, raw)
            except DataError:
                self.refuse_encoding()
                raise
            if value is BLANK:
                continue
            if not isinstance(value, dict):
                raise DataError(
                    "{path}:{line}: {found}; expected an object", path=self.name, line=number, found=described(value)
                )
            yield number, value

    def value(self, number: int, raw: bytes | None) -> Any:
        """Return what a line holds, :data:`BLANK` where it holds nothing.

        Raises:
            DataError: it is too long, not in UTF-8, or not JSON.
        """
        place = {"path": self.name, "line": number}
        if raw is None:
            raise DataError("{path}:{line}: longer than {limit} bytes; split the record", **place, limit=MAX_LINE)
        body = raw.removesuffix(b"\n").removesuffix(b"\r")
        if b"\r" in body:
            raise DataError("{path}:{line}: a lone CR; expected lines that end in LF or CRLF", **place)
        cut = not raw.endswith(b"\n")
        text = self._decode(body, place, cut=cut)
        if not text.strip():
            return BLANK
        self.first_text = self.first_text or text.strip()[:80]
        value = _parse(text, place, cut=cut)
        self.any_json = True
        return value

    def refuse_encoding(self) -> None:
        """Raise DataError where the lines that were not UTF-8 tell which encoding the file is in."""
        if self._legacy_encoding and not self._any_utf8:
            formats.refuse_encoding(self.path, self._legacy_encoding)

    def _lines(self, file: BufferedReader) -> Iterator[bytes | None]:
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

    def _decode(self, body: bytes, place: dict[str, Any], *, cut: bool) -> str:
        try:
            text = body.decode("utf-8")
        except UnicodeDecodeError as exc:
            if cut and exc.reason == "unexpected end of data":
                raise DataError(
                    "{path}:{line}: cut short within a letter; complete the last line or delete it", **place
                ) from None
            encoding = formats.guess_encoding(body)
            self._legacy_encoding = self._legacy_encoding or encoding
            where = {**place, "offset": exc.start + 1, "byte": f"0x{body[exc.start]:02X}"}
            if encoding:
                raise DataError(
                    "{path}:{line}: byte {offset}, {byte}, is not UTF-8; the line looks like {encoding}, rewrite it",
                    **where,
                    encoding=encoding,
                ) from None
            raise DataError("{path}:{line}: byte {offset}, {byte}, is not UTF-8; rewrite the line", **where) from None
        self._any_utf8 = self._any_utf8 or not text.isascii()
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
