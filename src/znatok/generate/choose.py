"""Which engine answers, and why; and the head of a GGUF file without the libraries that load whole models."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from znatok.config import ModelOptions
from znatok.errors import ModelError, SystemFault, UsageError, ZnatokError, _
from znatok.generate import llamacpp
from znatok.generate.embedding import FileEmbedding
from znatok.model import catalogue, digests
from znatok.model.gguf_header import Header, read_header
from znatok.model.gguf_names import ARCHITECTURES
from znatok.model.lora_gguf import lora_gguf
from znatok.tokens.chat import ChatFormat, choose_format

Say = Callable[[str], object]


@dataclass(frozen=True)
class GgufBase:
    """A base that is one GGUF file on this machine; ``tied`` whether head and embedding are one, where known."""

    name: str
    sha256: str
    tied: bool | None
    header: Header

    @property
    def kind(self) -> str:
        """The number format of most of its weights, like Q4_K."""
        bytes_by_kind = Counter[str]()
        for tensor in self.header.tensors.values():
            bytes_by_kind[tensor.kind.name] += tensor.nbytes
        return bytes_by_kind.most_common(1)[0][0]


def gguf_base(name: str, say: Say) -> GgufBase | None:
    """Return the GGUF file that ``source.resolve`` would find under this name; None where it is none.

    It costs milliseconds where ``source`` imports transformers' models, three seconds before a fast chat can start.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return None
    if path.suffix == ".gguf" and path.is_file():
        path = path.resolve()
        digest = digests.sha256(path)
        entry = catalogue.by_sha256(digest)
    elif name in {entry.name for entry in catalogue.entries()}:
        entry = catalogue.find(name)
        path, digest = catalogue.get(name, say=say), entry.sha256
    else:
        return None
    return GgufBase(name, digest, entry.tied if entry else None, read_header(path))


def file_format(base: GgufBase, asked: str) -> ChatFormat:
    """Return the chat format of a GGUF file, the one ``choose_format`` finds for the loaded model."""
    from znatok.model.gguf_tokenizer import build_tokenizer

    tied = base.tied
    if tied is None:
        from znatok.model.gguf import is_tied

        tied = is_tied(base.header)
    tokenizer = build_tokenizer(base.header)
    rows: Any = FileEmbedding(base.header, tied=tied)  # does all of a tensor that is asked of it
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # llama.cpp is reading the model: two would wait for one another, five times as long
    try:
        return choose_format(tokenizer, rows, asked)
    finally:
        torch.set_num_threads(threads)


def misfit(options: ModelOptions, base: GgufBase | None, *, cuda: bool) -> ZnatokError | None:
    """Return why llama.cpp can't or should not answer for this base; None where it fits."""
    if base is None:
        return UsageError("the model is no GGUF file")
    if not llamacpp.installed():
        return SystemFault("it is not installed: pip install 'znatok[llamacpp]'")
    if cuda:
        return UsageError("there is a CUDA device, where torch is faster")
    if options.dtype != "auto":
        return UsageError("--dtype {dtype} is for torch", dtype=options.dtype)
    architecture = base.header.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        return UsageError("the architecture {name} was never tested with it", name=str(architecture)[:40])
    return None


@dataclass(frozen=True)
class Choice:
    """The engine that answers: llama.cpp on ``base`` with ``adapter``, or torch, which then has no base here.

    ``reason`` says why ``auto`` took torch; empty where there is nothing to explain.
    """

    base: GgufBase | None = None
    adapter: Path | None = None
    reason: str = ""

    @property
    def engine(self) -> str:
        """The engine's name."""
        return "torch" if self.base is None else llamacpp.LlamaCppEngine.name


def choose(asked: str, options: ModelOptions, base: GgufBase | None, adapter_dir: Path | None, *, cuda: bool) -> Choice:
    """Choose the engine.

    Args:
        asked: ``auto``, ``torch`` or ``llamacpp``.
        options: the base and its number format.
        base: what ``gguf_base`` found.
        adapter_dir: a PEFT adapter, or None.
        cuda: whether torch has a CUDA device.

    Raises:
        ZnatokError: llama.cpp is asked for and can't answer; the error says why.
    """
    if asked == "torch":
        return Choice()
    why = misfit(options, base, cuda=cuda)
    adapter = None
    if why is None and base is not None and adapter_dir is not None:
        try:
            adapter = lora_gguf(adapter_dir, base.header, base.sha256)
        except (ModelError, SystemFault) as error:
            why = error
    if why is None:
        return Choice(base, adapter)
    if asked == "llamacpp":
        if isinstance(why, SystemFault):
            raise SystemFault("--engine llamacpp: {why}", why=str(why)) from why
        if isinstance(why, ModelError):
            raise ModelError("--engine llamacpp: {why}", why=str(why)) from why
        raise UsageError("--engine llamacpp: {why}", why=str(why)) from why
    return Choice(reason=_("llama.cpp can't: {why}", why=str(why)))
