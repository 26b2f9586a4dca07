"""The number formats of a GGUF file: what each tensor becomes, and how its values are rounded.

Vectors stay float32 whatever the format. ``q4_k_m`` is llama.cpp's mixture of that name (``llama_tensor_get_type`` in
its ``llama-quant.cpp``): four bits, six where it costs most to lose them, and coarser blocks where rows don't fill
those of 256 values.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import gguf
import numpy as np
from gguf.quants import quantize
from torch import Tensor

from znatok.errors import SystemFault, UsageError

Kind = gguf.GGMLQuantizationType
Named = gguf.LlamaFileType


class Place(NamedTuple):
    """A tensor of the file: its GGUF name, its shape, how many layers there are, whether it serves as the head too."""

    name: str
    shape: tuple[int, ...]
    layers: int
    head: bool


def uniform(kind: Any) -> Callable[[Place], Any]:
    """Return the format in which all matrices are of one kind."""
    return lambda _place: kind


def mixture(place: Place) -> Any:
    """Return what a matrix becomes in ``q4_k_m``."""
    if place.head:
        return Kind.Q6_K
    _blk, _dot, rest = place.name.partition("blk.")
    layer, _dot, leaf = rest.partition(".")
    finer = leaf in {"attn_v.weight", "ffn_down.weight"} and has_more_bits(int(layer), place.layers)
    return Kind.Q6_K if finer else Kind.Q4_K


def has_more_bits(layer: int, layers: int) -> bool:
    """Tell the layers that get six bits: the first and last eighth, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


FORMATS: dict[str, tuple[Callable[[Place], Any], Any]] = {
    "f16": (uniform(Kind.F16), Named.MOSTLY_F16),
    "bf16": (uniform(Kind.BF16), Named.MOSTLY_BF16),
    "q8_0": (uniform(Kind.Q8_0), Named.MOSTLY_Q8_0),
    "q4_k_m": (mixture, Named.MOSTLY_Q4_K_M),
}
"""What matrices become, and what the file calls itself."""
COARSER = {Kind.Q4_K: Kind.Q5_0, Kind.Q6_K: Kind.Q8_0}
"""Of blocks of 256 values -> what llama.cpp takes where a row can't be cut into those: blocks of 32."""
K_QUANTS = {Kind.Q4_K, Kind.Q6_K}


def stored_kind(place: Place, quant: str) -> Any:
    """Return the number format of a tensor: vectors, and matrices whose rows fill no blocks, are not quantised."""
    if len(place.shape) < 2:
        return Kind.F32
    kind = FORMATS[quant][0](place)
    if not fits(place, kind):
        kind = COARSER.get(kind, kind)
    return kind if fits(place, kind) else Kind.F16


def fits(place: Place, kind: Any) -> bool:
    """Tell whether rows can be cut into the blocks of a format."""
    return place.shape[-1] % int(gguf.GGML_QUANT_SIZES[kind][0]) == 0


def byte_count(shape: tuple[int, ...], kind: Any) -> int:
    """Return how many bytes a tensor takes."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return int(np.prod(shape) // block * size)


def refuse_missing(quant: str) -> None:
    """Raise SystemFault where the library a format needs is not installed."""
    if quant == "q4_k_m" and find_spec("libgguf") is None:
        raise SystemFault("--quant q4_k_m: needs libgguf; install it with: pip install 'znatok[quant]'")


def as_stored(values: Tensor, kind: Any, name: str) -> Any:
    """Return the bytes of a tensor.

    Raises:
        UsageError: a value is too large for half precision.
    """
    array = values.contiguous().numpy()
    if kind not in {Kind.F32, Kind.BF16} and np.abs(array).max() > np.finfo(np.float16).max:  # scales of blocks, too
        raise UsageError("--quant: {name} holds values too large for float16; take --quant bf16", name=name)
    if kind in K_QUANTS:
        from libgguf import quantize_rows

        return quantize_rows(array, int(kind))
    return array if kind is Kind.F32 else quantize(array, kind)
