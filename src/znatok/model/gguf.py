"""A GGUF file as an ordinary transformers model, ready to train.

The model is built on torch's meta device, which allocates nothing, and every weight goes from the file's blocks
straight into its final tensor in the wanted dtype: at the peak there is the model plus one chunk a thread. No quantiser
stays attached, so ``save_pretrained`` and PEFT see the model they expect. Before anything is allocated, the set of
tensors and every shape is compared with what the metadata promises.

What llama.cpp's converter changed is changed back: llama's q and k rows are permuted for its rotary layout, Gemma's
norm weights are stored plus one, and a tied head may be stored twice, in different precision: the finer one is taken.
"""

import contextlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gguf.constants import GGML_QUANT_SIZES
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from znatok.errors import ModelError
from znatok.model import dequant, gguf_config
from znatok.model.gguf_header import Header, Tensor, read_header
from znatok.model.gguf_names import tensor_names
from znatok.model.gguf_tokenizer import build_tokenizer

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
TIED_BELOW = 0.1
"""Relative difference between head and embedding under which they are one matrix, rounded differently; two trained
matrices differ by more than their own norm, and Q4_K against Q6_K of one matrix by 4 to 8 %."""


@dataclass(frozen=True)
class Gguf:
    """What came out of a file."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    architecture: str


def load_gguf(path: Path, dtype: torch.dtype, *, tied: bool | None = None) -> Gguf:
    """Read a model and its tokenizer.

    Args:
        path: a GGUF file of the architecture qwen2, llama or gemma3.
        dtype: what the weights become; norms too, as ``from_pretrained(dtype=...)`` does it.
        tied: whether head and embedding are one matrix; None decides by comparing them.

    Raises:
        ModelError: the file is missing, damaged, or of a kind znatok can't read.
    """
    header = read_header(path)
    architecture = gguf_config.architecture_of(header)
    tied = is_tied(header) if tied is None or HEAD not in header.tensors else tied
    tokenizer = build_tokenizer(header)
    config = gguf_config.build(header, tied=tied)
    with torch.device("meta"):
        model: PreTrainedModel = gguf_config.MODELS[architecture](config)
    weights = _weights(header, model, dtype, tied=tied)
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    compute_buffers(model)
    refuse_unfilled(model)
    model.generation_config = GenerationConfig(**gguf_config.token_ids(header))
    model.config.dtype = dtype
    return Gguf(model.eval().requires_grad_(False), tokenizer, architecture)


def _weights(header: Header, model: PreTrainedModel, dtype: torch.dtype, *, tied: bool) -> dict[str, nn.Parameter]:
    """Read every weight the model needs; ``tied`` reads one matrix for embedding and head."""
    largest_first = sorted(weight_sources(header, model, tied=tied).items(), key=lambda item: -item[1].nbytes)
    with single_threaded() as workers, ThreadPoolExecutor(workers) as pool:
        filled = pool.map(lambda item: read_weight(header, item[1], dtype), largest_first)
        return {name: weight for (name, _tensor), weight in zip(largest_first, filled, strict=True)}


def weight_sources(header: Header, model: PreTrainedModel, *, tied: bool) -> dict[str, Tensor]:
    """Return where each weight of the model stands in the file; ModelError unless the file has exactly those."""
    names = tensor_names(gguf_config.architecture_of(header), model.config.num_hidden_layers)
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    sources = {hf: header.tensors[ours] for ours, hf in names.items() if ours in header.tensors}
    if tied:
        sources[names[EMBEDDING]] = finer(header)
        sources.pop(names[HEAD], None)
    _compare(header, expected, sources, set(names))
    return sources


def read_weight(header: Header, tensor: Tensor, dtype: torch.dtype) -> nn.Parameter:
    """Read one tensor and undo what llama.cpp's converter did to it."""
    with header.path.open("rb") as file:
        filled = read_tensor(file, tensor, dtype, header.path, shift=gguf_config.shift(header, tensor.name))
    heads = gguf_config.permuted_heads(header, tensor.name)
    return nn.Parameter(unpermute(filled, heads) if heads else filled, requires_grad=False)


@contextlib.contextmanager
def single_threaded() -> Iterator[int]:
    """Let threads started inside compute alone, each on a tensor of its own; yield how many cores there are for them.

    The work is thousands of operations of some 50 µs. If two cores share each one, they wait for one another after
    each, and any other busy process makes such a wait last a time slice: 0.5B then took 115 s instead of 4.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _compare(header: Header, expected: dict[str, torch.Size], sources: dict[str, Tensor], known: set[str]) -> None:
    """Raise ModelError unless the file has exactly the tensors the model needs, in their shapes."""
    if strangers := sorted(header.tensors.keys() - known):
        raise ModelError(
            "{path}: the tensor {name} has no place in a plain {architecture} model (scaled rotary embeddings, experts"
            " and adapters are not supported); take another file",
            path=header.path,
            name=strangers[0],
            architecture=gguf_config.architecture_of(header),
        )
    if missing := sorted(expected.keys() - sources.keys()):
        raise ModelError(
            "{path}: {count} tensors are missing, the first is {name}; get the file anew",
            path=header.path,
            count=len(missing),
            name=missing[0],
        )
    for name, tensor in sources.items():
        wanted = expected.get(name)
        if wanted is None or tuple(wanted) != tensor.shape:
            raise ModelError(
                "{path}: the tensor {name} has the shape {found}, its metadata promise {expected}; get the file anew",
                path=header.path,
                name=tensor.name,
                found=list(tensor.shape),
                expected=list(wanted or ()),
            )


def read_tensor(
    file: io.BufferedReader, tensor: Tensor, dtype: torch.dtype, path: Path, *, shift: float = 0.0
) -> torch.Tensor:
    """Read one tensor as ``dtype``, adding ``shift`` to each value before rounding."""
    target = torch.empty(tensor.shape, dtype=dtype)
    flat = target.view(-1)
    at = 0
    for values in _chunks(file, tensor, path):
        if shift:
            values.add_(shift)
        flat[at : at + values.numel()].copy_(values.view(-1))
        at += values.numel()
    return target


def _chunks(
    file: io.BufferedReader, tensor: Tensor, path: Path, *, first: int = 0, count: int | None = None
) -> Iterator[torch.Tensor]:
    """Yield the float32 values of ``count`` blocks from block ``first`` on, as many at once as fit the cache."""
    size = GGML_QUANT_SIZES[tensor.kind][1]
    left = tensor.nbytes // size - first if count is None else count
    step = dequant.chunk_blocks(tensor.kind)
    buffer = bytearray(step * size)
    file.seek(tensor.start + first * size)
    while left > 0:
        blocks = min(step, left)
        view = memoryview(buffer)[: blocks * size]
        if file.readinto(view) != len(view):  # the file shrank since its header was checked
            raise ModelError("{path}: it ends inside the tensor {name}; get it anew", path=path, name=tensor.name)
        raw_nb = torch.frombuffer(buffer, dtype=torch.uint8, count=blocks * size).view(blocks, size)
        values = dequant.dequantise(raw_nb, tensor.kind)
        if not values.sum().isfinite():  # one NaN or infinity is enough to get here
            raise ModelError(
                "{path}: the tensor {name} holds values that are not finite numbers; get the file anew",
                path=path,
                name=tensor.name,
            )
        yield values
        left -= blocks


def finer(header: Header) -> Tensor:
    """Return the head or the embedding, whichever the file stores in more bits."""
    embedding = header.tensors[EMBEDDING]
    head = header.tensors.get(HEAD, embedding)
    return max(head, embedding, key=lambda tensor: tensor.nbytes)


def is_tied(header: Header) -> bool:
    """Decide whether head and embedding are one matrix: there is one only, or they are nearly equal."""
    embedding, head = header.tensors.get(EMBEDDING), header.tensors.get(HEAD)
    if embedding is None or head is None or embedding.shape != head.shape:
        return head is None
    rows, columns = embedding.shape
    difference, norm = torch.zeros(()), torch.zeros(())
    with header.path.open("rb") as file:
        for row in range(0, rows, -(-rows // 64)):  # a sample: equal matrices are equal everywhere
            one, other = (
                torch.cat([chunk.reshape(-1) for chunk in _row(file, tensor, header.path, row, columns)])
                for tensor in (embedding, head)
            )
            difference += (one - other).square().sum()
            norm += other.square().sum()
    return bool(difference.sqrt() < TIED_BELOW * norm.sqrt())


def _row(file: io.BufferedReader, tensor: Tensor, path: Path, row: int, columns: int) -> Iterator[torch.Tensor]:
    blocks = columns // GGML_QUANT_SIZES[tensor.kind][0]
    return _chunks(file, tensor, path, first=row * blocks, count=blocks)


def unpermute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo llama.cpp's interleaving of the rotary halves in the rows of a q or k projection."""
    pairs = weight.shape[0] // heads // 2
    return weight.view(heads, pairs, 2, -1).transpose(1, 2).reshape(weight.shape)


def permute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Interleave the rotary halves as llama.cpp wants them; the inverse of :func:`unpermute`."""
    pairs = weight.shape[0] // heads // 2
    return weight.view(heads, 2, pairs, -1).transpose(1, 2).reshape(weight.shape)


def compute_buffers(model: PreTrainedModel) -> None:
    """Replace the buffers no checkpoint holds (rotary frequencies, Gemma's embedding scale) by computed ones."""
    backbone: Any = model.model
    backbone.rotary_emb = type(backbone.rotary_emb)(model.config)
    with contextlib.suppress(AttributeError):
        backbone.embed_tokens.embed_scale = torch.tensor(backbone.embed_tokens.scalar_embed_scale)


def refuse_unfilled(model: PreTrainedModel) -> None:
    """Raise ModelError where part of the model is left without values, on the meta device."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    unfilled = [name for name, tensor in tensors if tensor.device.type == "meta"]
    if unfilled:  # every architecture in the list is tested; a new transformers could add a buffer
        raise ModelError(
            "{kind}: the file holds no values for {names}; use the transformers version znatok was tested with",
            kind=type(model).__name__, names=", ".join(unfilled[:3]),
        )  # fmt: skip
