"""Files that are either the old one or the new one, never half of each."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from znatok.errors import DataError, SystemFault, _

BLOCK = 1 << 20


def cache_home() -> Path:
    """Return the folder for downloads: ``$ZNATOK_HOME``, else ``$XDG_CACHE_HOME/znatok`` or ``~/.cache/znatok``."""
    if own := os.environ.get("ZNATOK_HOME"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or home() / ".cache") / "znatok"


def home() -> Path:
    """Return the user's home directory.

    Raises:
        SystemFault: nobody says where it is.
    """
    try:
        return Path.home()
    except RuntimeError as error:
        raise SystemFault("no home directory is known for this user; set HOME") from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as lower-case hex, reading it in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is synced and renamed over ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def file_name(name: str) -> str:
    """Return a name whose bytes on the disk are UTF-8 whatever the locale; one of ASCII could not write it at all."""
    return os.fsdecode(name.encode())


def leftovers(path: Path) -> list[Path]:
    """Return the temporary files of ``path`` that killed writers left beside it, or one who is writing it now."""
    return list(path.parent.glob(f".{path.name}.????????{path.suffix}"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def prune(folder: Path, kept: int) -> None:
    """Remove all files of a cache but the newest; a process that has one open keeps it."""
    dated = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process prunes as well
            dated.append((path.stat().st_mtime_ns, path))
    for _time, path in sorted(dated, reverse=True)[kept:]:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically, with LF line ends."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one JSON document atomically; NaN is refused rather than written as non-JSON."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON Lines atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that this program wrote itself.

    Raises:
        DataError: it no longer is one.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError("{path}: damaged, {why}; bring back a copy, or make it anew", path=path, why=error) from error
    if not isinstance(value, dict):
        raise DataError("{path}: damaged, no JSON object; bring back a copy, or make it anew", path=path)
    return value


def read_jsonl(
    path: Path,
    *,
    fits: Callable[[dict[str, Any]], bool] = lambda _row: True,
    damaged: Callable[[DataError], object] | None = None,
) -> list[dict[str, Any]]:
    """Read JSON Lines that this program wrote itself, leaving out a last line cut short by a crash.

    Args:
        path: the file.
        fits: tells whether a row can be one of this file.
        damaged: hears of every damaged line, which is left out then; without it the first one is raised.

    Raises:
        DataError: a line is damaged.
    """
    raw = path.read_bytes()
    rows = []
    for number, line in enumerate(raw[: raw.rfind(b"\n") + 1].split(b"\n"), start=1):
        if line:
            try:
                rows.append(_row(line, fits))
            except (ValueError, RecursionError) as why:
                error = DataError(
                    "{path}:{line}: damaged, {why}; bring back a copy, or remove the line",
                    path=path, line=number, why=why,
                )  # fmt: skip
                if damaged is None:
                    raise error from why
                damaged(error)
    return rows


def _row(line: bytes, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    row = json.loads(line.decode("utf-8"))
    if not isinstance(row, dict) or not fits(row):
        raise ValueError(_("no row of this file"))
    return row


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Append one line in a single write, so that readers never see half a row.

    Raises:
        OSError: the file can't be written; a link is not followed, for a run may come from somebody else.
    """
    line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8", newline="\n") as file:
        file.write(line)
