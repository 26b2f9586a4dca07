"""Products with frozen weights, forward and backward, in int8 or float.

A LoRA run multiplies by the same weights in both directions and never changes them, so they can be rounded once. The
recipe, chosen by measurement (docs/experiments.md):

    W' = round(R_out W R_in)        int8, one step per row; R is a Hadamard rotation of interleaved blocks of 64
    y  = R_out [(round(x R_in) W'ᵀ) · step_x · step_W]
    dx = R_in  [(round(dy R_out · step_W) W') · step_dy]

One int8 copy serves both directions: the steps of its rows are folded into dy before dy is rounded. The rotations
spread outliers (of SwiGLU's output above all) over their block; without them the gradient's cosine with float32 is
0.90 instead of 0.997. Rows of activations and gradients have a step each; ``fast.product`` multiplies exactly.

Shapes: T tokens, K inputs, N outputs (of all projections of a group).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from znatok.fast.eager import Part, Raw, Rounding, Rows, block_of
from znatok.fast.kernels import kernels
from znatok.fast.product import INT_MM, ONEDNN, Times, Way, few_rows_laid_out


class FrozenWeight(Protocol):
    """One or more projections of the same input, side by side."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the outputs of each projection; their sum is N."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """Return the bias (N,) in float32, or None."""
        ...

    @property
    def rounded(self) -> Rounding | None:
        """Return how its input rows are made int8, or None where it wants plain rows in C."""
        ...

    def answering(self, rows: int) -> "FrozenWeight":
        """Return the same weights for products with few rows; each is the same among any others, up to ``rows``."""
        ...

    def parts(self, ups: Sequence[Tensor | None]) -> list[Part]:
        """Return the projections with their low-rank parts."""
        ...

    def encode(self, x_TK: Tensor) -> Rows | Tensor:
        """Return rows in the form :meth:`product` takes."""
        ...

    def product(self, rows: Rows | Tensor | None) -> Raw:
        """Return x Wᵀ, raw."""
        ...

    def encode_gradient(self, grad_TN: Tensor) -> Rows | Tensor:
        """Return rows in the form :meth:`transposed` takes."""
        ...

    def transposed(self, rows: Rows | Tensor | None) -> Raw:
        """Return dy W, raw; :meth:`input_part` says how to finish it."""
        ...

    def input_part(self, up: Tensor | None) -> list[Part]:
        """Return the one part of a finished input gradient."""
        ...


@dataclass(frozen=True, eq=False)
class Int8Weight:
    """Rotated int8 weights; see the module's formulas.

    Attributes:
        q: (N, K) int8, contiguous; may be mapped from a file.
        step: (N,) float32.
        widths: outputs of each projection.
        bias: (N,) float32, or None.
        turned: whether outputs are rotated too.
        way: how this machine multiplies.
    """

    q: Tensor
    step: Tensor
    widths: tuple[int, ...]
    bias: Tensor | None = None
    turned: bool = True
    way: Way = INT_MM

    @cached_property
    def _forward(self) -> Times:
        return self.way.prepare(self.q)

    @cached_property
    def _backward(self) -> Times:
        return self.way.prepare(self.q.t())

    @cached_property
    def _for_answers(self) -> "Int8Weight":
        return replace(self, way=ONEDNN)

    @property
    def rounded(self) -> Rounding:
        """Return how input rows are made int8."""
        return Rounding(block_of(self.q.shape[1]), self.way.levels)

    def answering(self, rows: int) -> "Int8Weight":  # whole numbers know no company
        """Return the same weights laid out for few rows, where that is exact; the second copy is kept."""
        return self._for_answers if self.way is INT_MM and few_rows_laid_out() else self

    def parts(self, ups: Sequence[Tensor | None]) -> list[Part]:
        """Return the projections with their low-rank parts."""
        blocks = [block_of(width) if self.turned else 1 for width in self.widths]
        return [Part(*part) for part in zip(self.widths, blocks, ups, strict=True)]

    def encode(self, x_TK: Tensor) -> Rows:
        """Round rows (float32 or C) to int8."""
        rows: Rows = kernels().quantise(x_TK, self.input_part(None), levels=self.way.levels)
        return rows

    def product(self, rows: Rows | Tensor | None) -> Raw:
        """Return x Wᵀ in whole numbers, with its steps."""
        assert isinstance(rows, Rows)
        return Raw(self._forward(rows.q), rows.step, self.step)

    def encode_gradient(self, grad_TN: Tensor) -> Rows:
        """Fold the steps of the weights in and round to int8."""
        rows: Rows = kernels().quantise(grad_TN, self.parts([None] * len(self.widths)), self.step, self.way.levels)
        return rows

    def transposed(self, rows: Rows | Tensor | None) -> Raw:
        """Return dy W in whole numbers, with its steps."""
        assert isinstance(rows, Rows)
        return Raw(self._backward(rows.q), rows.step)

    def input_part(self, up: Tensor | None) -> list[Part]:
        """Return the one part of a finished input gradient."""
        return [Part(self.q.shape[1], self.rounded.block, up)]

    def split(self) -> list["Int8Weight"]:
        """Return each projection alone, on the same memory."""
        biases = [None] * len(self.widths) if self.bias is None else self.bias.split(self.widths)
        rows, steps = self.q.split(self.widths), self.step.split(self.widths)
        return [
            replace(self, q=q, step=step, widths=(len(q),), bias=bias)
            for q, step, bias in zip(rows, steps, biases, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class FloatWeight:
    """Weights as they are, in bfloat16 or float32; fewer than ``least`` rows are multiplied as that many."""

    weight: Tensor
    widths: tuple[int, ...]
    bias: Tensor | None = None
    rounded: None = None
    least: int = 0

    def answering(self, rows: int) -> "FloatWeight":
        """Return the same weights, by which ``rows`` or fewer are always multiplied as that many."""
        return replace(self, least=rows)

    def parts(self, ups: Sequence[Tensor | None]) -> list[Part]:
        """Return the projections with their low-rank parts."""
        return [Part(width, 1, up) for width, up in zip(self.widths, ups, strict=True)]

    def encode(self, x_TK: Tensor) -> Tensor:
        """Return the rows in the dtype of the weights."""
        return x_TK.to(self.weight.dtype)

    def product(self, rows: Rows | Tensor | None) -> Raw:
        """Return x Wᵀ."""
        assert isinstance(rows, Tensor)
        return Raw(in_company(rows, self.least, self.weight.t()))

    def encode_gradient(self, grad_TN: Tensor) -> Tensor:
        """Return the gradient in the dtype of the weights."""
        return grad_TN.to(self.weight.dtype)

    def transposed(self, rows: Rows | Tensor | None) -> Raw:
        """Return dy W."""
        assert isinstance(rows, Tensor)
        return Raw(rows @ self.weight)

    def input_part(self, up: Tensor | None) -> list[Part]:
        """Return the one part of a finished input gradient."""
        return [Part(self.weight.shape[1], 1, up)]


def in_company(x_TK: Tensor, least: int, w_KN: Tensor) -> Tensor:
    """Return x w, computed with at least so many rows: a float product rounds rows by how many there are."""
    missing = least - len(x_TK)
    return x_TK @ w_KN if missing <= 0 else (F.pad(x_TK, (0, 0, 0, missing)) @ w_KN)[:-missing]


def quantise_weight(weight_NK: Tensor, *, turn: bool = True) -> tuple[Tensor, Tensor]:
    """Rotate a projection on both sides and round its rows to int8.

    Args:
        weight_NK: float32, contiguous; overwritten.
        turn: whether to rotate its outputs; inputs always are.

    Returns:
        The rotated weight (N, K) in int8 and the step of each row (N,) in float32.
    """
    rotated = kernels().rotate_long_(weight_NK, block_of(len(weight_NK))) if turn else weight_NK
    rows = kernels().quantise(rotated, [Part(weight_NK.shape[1], block_of(weight_NK.shape[1]))])
    return rows.q, rows.step


class _FrozenProduct(torch.autograd.Function):
    """A product with a frozen weight, differentiable in its input."""

    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, weight: FrozenWeight) -> Tensor:
        ctx.weight, ctx.dtype = weight, x_TK.dtype
        raw = weight.product(weight.encode(x_TK))
        bare = weight.parts([None] * len(weight.widths))
        out: Tensor = kernels().finish(raw, bare, bias_N=weight.bias, dtype=x_TK.dtype)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_TN: Tensor) -> tuple[Tensor, None]:
        weight = ctx.weight
        raw = weight.transposed(weight.encode_gradient(grad_TN))
        return kernels().finish(raw, weight.input_part(None), dtype=ctx.dtype), None


class FrozenLinear(nn.Linear):
    """An int8 projection in the place of an ``nn.Linear``, for whatever calls it one by one.

    PEFT takes it for the linear layer it stands for. Its ``weight`` has the right shape, no memory, and NaN for every
    value: whoever reads it instead of calling the layer finds out at once.
    """

    def __init__(self, group: Int8Weight, index: int, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.group = group
        self.frozen = frozen = group.split()[index]
        self.out_features, self.in_features = frozen.q.shape
        absent = torch.full((1, 1), torch.nan, dtype=dtype).expand(self.out_features, self.in_features)
        self.weight = nn.Parameter(absent, requires_grad=False)
        bias = None if frozen.bias is None else nn.Parameter(frozen.bias.to(dtype), requires_grad=False)
        self.register_parameter("bias", bias)

    def forward(self, input: Tensor) -> Tensor:  # torch's own name
        """Return W x + b in the input's dtype."""
        rows = input.reshape(-1, self.in_features)
        out: Tensor = _FrozenProduct.apply(rows, self.frozen)  # type: ignore[no-untyped-call]
        return out.view(*input.shape[:-1], self.out_features)
