"""From a model's name to a model ready for adapters: frozen, in evaluation mode, with its tokenizer and its origin."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from znatok.config import ModelOptions
from znatok.errors import ModelError, UsageError, _
from znatok.fast.loss import Int8Head
from znatok.fast.memory import keep_few_shapes
from znatok.fast.product import Way, fastest
from znatok.model import directory, gguf
from znatok.model.backbone import FAMILY
from znatok.model.gguf_header import read_header
from znatok.model.gguf_tokenizer import build_tokenizer
from znatok.model.quantised import load_quantised
from znatok.model.source import Kind, Source, resolve

__all__ = ["Dtype", "Kind", "Loaded", "Source", "choose_dtype", "load_base", "machine_capabilities", "resolve"]

Say = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A base model and where it came from; no parameter of ``model`` is trainable.

    ``dtype`` is the one of activations, and of weights unless ``int8``.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: Source
    dtype: torch.dtype
    dtype_reason: str
    head: Int8Head | None = None

    @property
    def format(self) -> str:
        """Return the number format of the weights in a word."""
        return "int8" if self.int8 else str(self.dtype).removeprefix("torch.")

    @property
    def int8(self) -> bool:
        """Tell whether the projections are rounded; the head is then, too."""
        return self.head is not None


class Dtype(NamedTuple):
    """A number format and why it was chosen."""

    dtype: torch.dtype
    reason: str


def load_base(options: ModelOptions, *, training: bool = False, say: Say = lambda _text: None) -> Loaded:
    """Find, fetch if need be, check and load a base model.

    Args:
        options: the model's name and the wanted dtype.
        training: whether ``auto`` may choose int8.
        say: receives a line about each step that takes time and about a doubtful choice.

    Raises:
        ModelError: the model can't be had or can't be used.
        UsageError: int8 is asked for and can't be.
        SystemFault: the disk is full or not writable.
    """
    keep_few_shapes()
    source = resolve(options.model_name, say=say)
    choice = choose_dtype(options.dtype)
    int8 = options.dtype == "int8" or (training and options.dtype == "auto")
    if int8 and (why := int8_obstacle(source)):
        if options.dtype == "int8":
            raise UsageError("--dtype int8: {why}; use --dtype auto", why=why)
        int8 = False
    if int8:
        choice = Dtype(choice.dtype, _("int8: {how}", how=_int8_way().name))
    say(_("loading {name}; {reason}", name=source.name, reason=choice.reason))
    head: Int8Head | None = None
    if int8:
        (model, head), tokenizer = load_quantised(source, choice.dtype, _int8_way(), say=say), load_tokenizer_of(source)
    elif source.path.is_file():
        got = gguf.load_gguf(source.path, choice.dtype, tied=source.tied)
        model, tokenizer = got.model, got.tokenizer
    else:
        transformers.utils.logging.disable_progress_bar()  # a line was said above
        model, tokenizer = load_directory(source.path, choice.dtype)
    if source.path.is_file():
        source = replace(source, architecture=type(model).__name__)
    refuse_mismatch(source.name, model, tokenizer)
    model.config._name_or_path = source.base_name  # PEFT copies it into adapters: never a path of this machine
    model.requires_grad_(False)
    return Loaded(
        model=model.eval(),
        tokenizer=tokenizer,
        source=source,
        dtype=choice.dtype,
        dtype_reason=choice.reason,
        head=head,
    )


def load_tokenizer_of(source: Source) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a GGUF file or of a directory."""
    return build_tokenizer(read_header(source.path)) if source.path.is_file() else load_tokenizer(source.path)


def int8_obstacle(source: Source) -> str:
    """Return why this model is not to be computed in int8 on this machine, or an empty string."""
    if torch.cuda.is_available():
        return _("int8 is for CPUs")
    if source.architecture not in {kind.__name__ for kind in FAMILY}:
        return _("{name} is not built like Llama", name=source.architecture)
    if fastest(machine_capabilities()) is None:
        return _("this processor has no int8 product that is exact and faster than float")
    return ""


def _int8_way() -> Way:
    way = fastest(machine_capabilities())
    assert way is not None  # int8_obstacle said nothing
    return way


def machine_capabilities() -> Mapping[str, Any]:
    """Return what decides about number formats: torch's CPU capabilities, the platform and CUDA's bfloat16."""
    cuda = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return {**torch.cpu.get_capabilities(), "platform": sys.platform, "cuda_bf16": cuda}


def choose_dtype(requested: str, capabilities: Mapping[str, Any] | None = None) -> Dtype:
    """Return the dtype for ``requested`` (auto, float32, bfloat16); ``capabilities`` are this machine's by default.

    Where the CPU has no bfloat16 arithmetic, torch emulates it at less than half of float32's speed, while its own
    question ``_is_mkldnn_bf16_supported`` says yes; so the instruction sets themselves are asked for.
    """
    native = _native_bfloat16(machine_capabilities() if capabilities is None else capabilities)
    if requested == "float32":
        return Dtype(torch.float32, _("float32 as requested"))
    if requested == "bfloat16" and not native:
        reason = _("bfloat16 as requested, but this machine emulates it: expect less than half of float32's speed")
        return Dtype(torch.bfloat16, reason)
    if requested == "bfloat16":
        return Dtype(torch.bfloat16, _("bfloat16 as requested, native here ({how})", how=native))
    if native:
        return Dtype(torch.bfloat16, _("bfloat16: native here ({how}), half the memory", how=native))
    return Dtype(torch.float32, _("float32: this machine has no native bfloat16"))


def _native_bfloat16(capabilities: Mapping[str, Any]) -> str | None:
    for name in ("cuda_bf16", "amx_bf16", "avx512_bf16"):
        if capabilities.get(name):
            return name
    # macOS reports bf16 from the M2 on, but torch has no kernels that use it there
    return "arm bf16" if capabilities.get("bf16") and capabilities.get("platform") == "linux" else None


def load_directory(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a checked model directory and its tokenizer; ModelError where it is not a plain model of its kind."""
    checked = directory.check_directory(path)
    kind: Any = directory.ARCHITECTURES[checked.architecture]
    try:
        model, info = kind.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError("{path}: can't be loaded: {why}", path=path, why=_short(error)) from error
    for key in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if names := sorted(map(str, info[key])):
            raise ModelError(
                "{path}: {count} {what}, the first is {name}; expected the weights of a plain {architecture}",
                path=path,
                count=len(names),
                what=key.replace("_", " "),
                name=names[0],
                architecture=checked.architecture,
            )
    return model, load_tokenizer(path)


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a directory; ModelError where it has none or a damaged one."""
    if not any((path / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        raise ModelError("{path}: no tokenizer; expected tokenizer.json", path=path)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        raise ModelError("{path}: its tokenizer can't be loaded: {why}", path=path, why=_short(error)) from error
    return tokenizer


def refuse_mismatch(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ModelError where the tokenizer makes ids the embedding has no row for."""
    rows = model.get_input_embeddings().weight.shape[0]
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= rows or highest < 0:
        raise ModelError(
            "{name}: tokenizer ids reach {highest}, the embedding has {rows} rows;"
            " the tokenizer belongs to another model",
            name=name,
            highest=highest,
            rows=rows,
        )


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
