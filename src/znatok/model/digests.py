"""SHA-256 of big files, computed once: the digest is remembered for as long as size and time stamp stay the same."""

import contextlib
import hashlib
from pathlib import Path

from znatok import files


def sha256(path: Path, *, fresh: bool = False) -> str:
    """Return the SHA-256 of ``path``; ``fresh`` reads the file even if the digest is known."""
    path = path.resolve()
    if not fresh and (known := _read(_note(path))) and {**_key(path), "sha256": known.get("sha256")} == known:
        return str(known["sha256"])
    digest = files.sha256(path)
    remember(path, digest)
    return digest


def remember(path: Path, digest: str) -> None:
    """Note that ``path``, as it is now, has this SHA-256."""
    path = path.resolve()
    with contextlib.suppress(OSError):  # a read-only home costs a second hashing, nothing else
        files.write_json(_note(path), {**_key(path), "sha256": digest})


def _key(path: Path) -> dict[str, object]:
    state = path.stat()
    return {"path": str(path), "bytes": state.st_size, "mtime_ns": state.st_mtime_ns}


def combined(paths: list[Path]) -> str:
    """Return one SHA-256 for several files: the hash of their names and hashes, in the order of names."""
    lines = sorted(f"{path.name} {sha256(path)}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _note(path: Path) -> Path:
    return files.cache_home() / "digests" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"


def _read(note: Path) -> dict[str, object] | None:
    try:
        return files.read_json(note)
    except (OSError, ValueError):  # ValueError: not JSON, or not UTF-8
        return None
