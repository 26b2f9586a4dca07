"""Exact products of int8 matrices, in the way this processor does them fast.

torch has two. ``torch._int_mm`` takes both matrices as they are, so one copy of the weights serves both directions; it
is fast where the processor has VNNI or AMX and a plain loop elsewhere. oneDNN's quantised linear layer wants weights
laid out beforehand, one copy for each direction; it is fast on AVX2, too, but there sums of two products are cut off
at 16 bits without a word, unless activations keep to 7 bits. It is also the faster of the two for few rows.

No claim of a processor is taken on trust: :func:`fastest` multiplies and compares first.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FAST_INT8 = ("avx512_vnni", "amx_int8")
"""Instruction sets with which ``torch._int_mm`` is faster than float."""

Times = Callable[[Tensor], Tensor]
"""int8 rows (T, K) -> their products with every row of a matrix (T, N), whole numbers in int32 or float32."""


@dataclass(frozen=True)
class Way:
    """A way to multiply.

    Attributes:
        name: for people.
        levels: the largest magnitude an activation may have; weights have up to 127.
        prepare: takes the weights (N, K) in int8 and returns what multiplies rows by them.
    """

    name: str
    levels: int
    prepare: Callable[[Tensor], Times]

    def exact(self) -> bool:
        """Tell whether it gives the same numbers as integer arithmetic, for both directions of one matrix."""
        generator = torch.Generator().manual_seed(0)
        w = torch.randint(-127, 128, (64, 64), generator=generator, dtype=torch.int8)
        x = torch.randint(-self.levels, self.levels + 1, (32, 64), generator=generator, dtype=torch.int8)
        w[0], w[:, 0] = 127, 127
        x[0], x[1] = self.levels, -self.levels
        return all(torch.equal(self.prepare(m)(x).long(), x.long() @ m.long().t()) for m in (w, w.t()))


def _plain(w_NK: Tensor) -> Times:
    return lambda x_TK: _int_product(x_TK, w_NK.t())


def _int_product(x_TK: Tensor, w_KN: Tensor) -> Tensor:
    short = 17 - len(x_TK)  # torch._int_mm refuses fewer rows
    if short <= 0:
        return torch._int_mm(x_TK, w_KN)
    return torch._int_mm(F.pad(x_TK, (0, 0, 0, short)), w_KN)[:-short]


def _laid_out(zero: int) -> Callable[[Tensor], Times]:
    """Return the oneDNN way for rows that become unsigned by adding ``zero``: signed ones take a plain loop there."""

    def prepare(w_NK: Tensor) -> Times:
        operations: Any = torch.ops.onednn
        count = len(w_NK)
        packed = operations.qlinear_prepack(w_NK.contiguous(), None)  # a strided matrix would be misread
        steps, zeros = torch.ones(count), torch.zeros(count, dtype=torch.int64)
        add = zero - 256 if zero > 127 else zero  # int8 wraps around: the same bits

        def times(x_TK: Tensor) -> Tensor:
            rows = x_TK.add(add).view(torch.uint8)
            out: Tensor = operations.qlinear_pointwise(
                rows, 1.0, zero, packed, steps, zeros, None, 1.0, 0, torch.float32, "none", [], ""
            )
            return out

        return times

    return prepare


INT_MM = Way("VNNI or AMX", 127, _plain)
ONEDNN = Way("oneDNN", 127, _laid_out(128))
ONEDNN_7 = Way("oneDNN, 7 bits", 63, _laid_out(64))


@cache
def few_rows_laid_out() -> bool:
    """Tell whether :data:`ONEDNN` is exact here.

    It is the faster one for few rows (the projections of Qwen2.5-1.5B and 32 rows: 122 ms against 178,
    docs/experiments.md), at the price of a second copy of the weights.
    """
    return torch.backends.mkldnn.is_available() and ONEDNN.exact()


def fastest(capabilities: Mapping[str, Any]) -> Way | None:
    """Return how to multiply on a processor that can do this much, or None where float is as fast or int8 is inexact.

    Args:
        capabilities: torch's own names of instruction sets, true where present.
    """
    if any(capabilities.get(name) for name in FAST_INT8) and INT_MM.exact():
        return INT_MM
    if capabilities.get("avx2") and torch.backends.mkldnn.is_available():
        return next((way for way in (ONEDNN, ONEDNN_7) if way.exact()), None)
    return None
