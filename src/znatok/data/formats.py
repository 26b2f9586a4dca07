"""Files that are not JSON Lines in UTF-8: what they are, and the command that makes them readable."""

import difflib
import itertools
import json
import re
import shlex
import stat
from pathlib import Path

from znatok.data.schema import quoted, shown, shown_path
from znatok.errors import DataError, _

MAX_FILE = 1 << 30  # bytes

COMPRESSED = {
    b"\x1f\x8b": "gunzip -k",
    b"PK\x03\x04": "unzip",
    b"PK\x05\x06": "unzip",
    b"\x28\xb5\x2f\xfd": "zstd -d",
    b"\xfd7zXZ\x00": "xz -dk",
    b"BZh": "bunzip2 -k",
}
MARKS = {  # the longer marks first: that of UTF-32 begins with that of UTF-16
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
LEGACY_ENCODINGS = ("cp1251", "koi8-r", "cp866")


def refuse_irregular(path: Path) -> None:
    """Refuse what is no regular file, before it is opened: opening a pipe waits, and opening a device may do anything.

    Raises:
        DataError: There is no such file, or it is not a regular one, or it is too large.
    """
    name = shown_path(path)
    try:
        info = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError) as exc:  # ValueError: a NUL in the name
        raise DataError("{path}: no such file{hint}", path=name, hint=_nearby(path)) from exc
    except OSError as exc:
        raise DataError("{path}: can't be read: {why}", path=name, why=exc.strerror) from exc
    if stat.S_ISDIR(info.st_mode):
        raise DataError("{path}: a directory; expected a file in JSON Lines", path=name)
    if not stat.S_ISREG(info.st_mode):
        raise DataError("{path}: a device, a pipe or a socket; expected a regular file", path=name)
    refuse_size(path, info.st_size)


def refuse_size(path: Path, size: int) -> None:
    """Refuse a file of more than :data:`MAX_FILE` bytes."""
    if size > MAX_FILE:
        raise DataError("{path}: larger than {limit} bytes; split the file", path=shown_path(path), limit=MAX_FILE)


def refuse_head(path: Path, head: bytes) -> None:
    """Refuse a file whose first bytes say that no line of it can be read.

    Raises:
        DataError: The file is compressed, UTF-16 or UTF-32, or one JSON array.
    """
    _refuse_foreign(path, head)
    if _begins_array(head):
        code = "import json,sys; [print(json.dumps(r, ensure_ascii=False)) for r in json.load(sys.stdin)]"
        fix = f'python3 -c "{code}" < {_argument(path)} > {_argument(path, ".jsonl")}'
        raise DataError(
            "{path}: one JSON array; expected JSON Lines, an object on each line; convert it: {command}",
            path=shown_path(path),
            command=fix,
        )


def _refuse_foreign(path: Path, head: bytes) -> None:
    for magic, command in COMPRESSED.items():
        if head.startswith(magic):
            fix = f"{command} {_argument(path)}"
            raise DataError("{path}: compressed; unpack it first: {command}", path=shown_path(path), command=fix)
    marks = (encoding for mark, encoding in MARKS.items() if head.startswith(mark))
    if encoding := next(marks, "") or _wide_encoding(head):
        refuse_encoding(path, encoding)


def _begins_array(head: bytes) -> bool:
    """Tell one JSON array from a list on a line of its own with lines after it, which is a problem of that line."""
    first, _end, rest = head.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")
    return first.startswith(b"[") and not (rest.strip() and _is_json(first))


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, without its byte order mark.

    Raises:
        DataError: It is no regular file, compressed, or can't be read; or is in another encoding, which is named.
    """
    refuse_irregular(path)
    try:
        raw = path.read_bytes()
    except OSError as exc:
        raise DataError("{path}: can't be read: {why}", path=shown_path(path), why=exc.strerror) from exc
    _refuse_foreign(path, raw)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        if encoding := guess_encoding(raw):
            refuse_encoding(path, encoding)
        raise DataError(
            "{path}: not UTF-8 at byte {at}; convert it first", path=shown_path(path), at=exc.start
        ) from exc


def _wide_encoding(head: bytes) -> str:
    """Return the encoding that the NULs between the first letters betray, or an empty string."""
    encoding = json.detect_encoding(head)
    if not encoding.startswith(("utf-16-", "utf-32-")):
        return ""
    start = head.decode(encoding, errors="ignore").lstrip()[:1]
    # «utf-16-le» is Python's spelling, «utf-16le» the one that iconv knows as well
    return encoding.replace("-le", "le").replace("-be", "be") if start in tuple('{["') else ""


def refuse_encoding(path: Path, encoding: str) -> None:
    """Raise DataError with the command that converts the file to UTF-8."""
    fix = f"iconv -f {encoding} -t utf-8 {_argument(path)} > {_argument(path, '.utf8')}"
    raise DataError(
        "{path}: in {encoding}; expected UTF-8; convert it: {command}",
        path=shown_path(path),
        encoding=encoding,
        command=fix,
    )


def guess_encoding(line: bytes) -> str:
    """Return the one-byte Cyrillic encoding in which ``line`` reads as lower-case words, or an empty string.

    Only runs of four bytes beyond ASCII are looked at: Latin encodings have lone accented letters, and a broken byte
    stands alone. In UTF-8 every other byte of a Cyrillic word is 0xD0 or 0xD1, which is no small letter in cp1251 and
    too few of them elsewhere.
    """
    runs = b"".join(re.findall(rb"[\x80-\xff]{4,}", line))
    shares = {name: _small_letters(runs.decode(name, errors="replace")) for name in LEGACY_ENCODINGS}
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] > 0.6 else ""


def _small_letters(text: str) -> float:
    return sum("а" <= c <= "я" or c == "ё" for c in text) / max(1, len(text))


def refuse_text(path: Path, first: str) -> None:
    """Raise DataError for a text file of another kind, told by its first line."""
    raise DataError(
        '{path}: not JSON Lines{kind}: starts with {start}; expected {{"prompt": …, "response": …}} on each line',
        path=shown_path(path),
        kind=_guess_kind(first),
        start=shown(first),
    )


def _guess_kind(first: str) -> str:
    if first == "{":
        return _(" (a record must stand on one line)")
    if first.startswith("<"):
        return _(" (HTML or XML?)")
    if first.startswith("---") or re.match(r"(- )?\w+:(\s|$)", first):
        return _(" (YAML?)")
    return _(" (CSV?)") if re.search(r"[,;\t]", first) else ""


def _nearby(path: Path) -> str:
    """Name the files beside a missing one that may have been meant."""
    try:
        names = [entry.name for entry in itertools.islice(path.parent.iterdir(), 10_000)]
    except (OSError, ValueError):
        return ""
    found = difflib.get_close_matches(path.name, names, n=3) or sorted(n for n in names if n.endswith(".jsonl"))[:3]
    return _("; beside it: {names}", names=quoted(found)) if found else ""


def _argument(path: Path, ending: str = "") -> str:
    """Return the path as one shell word which no command takes for an option."""
    name = f"{path}{ending}"
    return shlex.quote(f"./{name}" if name.startswith("-") else name) if name.isprintable() else ascii(name)
