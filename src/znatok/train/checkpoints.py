"""Checkpoints that are complete or not there.

A checkpoint is written to a staging folder, described by a manifest of its files' SHA-256, and renamed into place. What
a crash leaves behind is a staging folder, which the next save clears; what a damaged disk leaves behind is a checkpoint
whose hashes don't match, which resuming passes over with a warning.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from znatok.errors import _
from znatok.files import read_json, sha256, write_json

SEAL = "complete.json"
STAGING = ".staging"
PREFIX = "step-"


def seal(staged: Path, folder: Path, step: int) -> Path:
    """Rename a staged checkpoint to ``folder/step-NNNNNN`` after hashing and syncing its files; return that path."""
    hashes = {}
    for file in sorted(p for p in staged.rglob("*") if p.is_file()):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
        hashes[file.relative_to(staged).as_posix()] = sha256(file)
    write_json(staged / SEAL, {"step": step, "sha256": hashes})
    target = folder / f"{PREFIX}{step:06d}"
    if target.exists():  # the same step saved again, after resuming from an older checkpoint
        shutil.rmtree(target)
    staged.replace(target)
    _sync_folder(folder)
    return target


def _sync_folder(folder: Path) -> None:
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def complete(folder: Path) -> list[Path]:
    """Return the sealed checkpoints, oldest first, without checking their hashes."""
    return sorted(path.parent for path in folder.glob(f"{PREFIX}*/{SEAL}"))


def step_of(checkpoint: Path) -> int:
    """Return the step a sealed checkpoint was saved after."""
    return int(read_json(checkpoint / SEAL)["step"])


def damage(checkpoint: Path) -> str:
    """Return what is wrong with a checkpoint, or an empty string."""
    try:
        expected = read_json(checkpoint / SEAL)["sha256"].items()
    except (OSError, ValueError, KeyError, AttributeError) as error:  # unreadable, not UTF-8, not JSON, no hashes
        return f"{SEAL}: {error}"
    for name, digest in expected:
        file = checkpoint / name
        if not file.is_file():
            return _("{name} is missing", name=name)
        if sha256(file) != digest:
            return _("{name} has changed since it was saved", name=name)
    return ""


def newest(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """Return the newest undamaged checkpoint; warn of every damaged one passed over."""
    for checkpoint in reversed(complete(folder)):
        why = damage(checkpoint)
        if not why:
            return checkpoint
        warn(_("{path}: skipped, {why}", path=checkpoint, why=why))
    return None


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints, and what a removal cut short left of earlier ones."""
    kept = complete(folder)[-keep:]
    for path in sorted(folder.glob(f"{PREFIX}*")):
        if path not in kept:
            # The seal goes first: a removal cut short must not leave something that looks complete.
            (path / SEAL).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def tidy(folder: Path, keep: int) -> None:
    """Leave what an undisturbed run leaves: the newest ``keep`` checkpoints, and nothing half done.

    Only once the adapter is safe: of the newest ones some may be damaged.
    """
    shutil.rmtree(folder / STAGING, ignore_errors=True)
    prune(folder, keep)


def staging(folder: Path) -> Path:
    """Return an empty staging folder."""
    path = folder / STAGING
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
