"""A decoder layer of frozen projections with LoRA, its backward pass written by hand.

What autograd would keep or recompute is decided here: for each token of a pack the input of each half (float32), the
adapters' inputs, queries, keys and values, and gate and up in C. Projections that share an input share its rounding and
one product, and their adapters' A matrices are stacked. SwiGLU's output is recomputed; the gradient of gate and up
takes their place.

Shapes: T tokens, D width, N outputs of a group, R ranks of all adapters of a group, r rank of one, K inputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from znatok.fast.eager import NO_DROPOUT, Dropout
from znatok.fast.kernels import kernels
from znatok.fast.linear import FrozenWeight, in_company


@dataclass(frozen=True, eq=False)
class Adapter:
    """LoRA matrices of one projection: a (r, K) and b (N, r), float32 parameters, and the scale of their product."""

    a: Tensor
    b: Tensor
    scale: float


class Settled(NamedTuple):
    """Adapters that no longer change, as products take them.

    Attributes:
        down_KR: all A matrices in C.
        ups: scale · Bᵀ of each.
        least: rows that are always computed together, if need be with idle ones; see :func:`in_company`.
    """

    down_KR: Tensor
    ups: Sequence[Tensor | None]
    least: int


@dataclass(frozen=True, eq=False)
class Group:
    """Frozen projections of one input, and their adapters (none, or one for each)."""

    weight: FrozenWeight
    adapters: tuple[Adapter, ...] = ()
    settled: Settled | None = None

    def answering(self, dtype: torch.dtype, rows: int) -> "Group":
        """Return the same, prepared for many products with few rows; ``dtype`` is C."""
        low = _Low(self, dtype)
        settled = Settled(low.down(), low.ups(), rows) if low else None
        return replace(self, weight=self.weight.answering(rows), settled=settled)


@dataclass(frozen=True, eq=False)
class Layer:
    """A decoder layer of the Llama family: RMSNorm, rotary attention, SwiGLU.

    Attributes:
        qkv: queries, keys and values.
        out: back from the heads.
        gate_up: into the MLP.
        down: back from it.
        norms: weights of the two norms (D,), float32.
        eps: of the norms.
        head: width of a head.
    """

    qkv: Group
    out: Group
    gate_up: Group
    down: Group
    norms: tuple[Tensor, Tensor]
    eps: float
    head: int


Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, queries (T, H, E), keys (T, G, E), values likewise), rotary positions applied -> (T, H · E)."""


@dataclass(frozen=True, eq=False)
class Place:
    """What every layer of a pass shares.

    Attributes:
        angles: cosine and sine of the rotary positions, each (T, E / 2) float32.
        attend: which tokens see which.
        dtype: C.
        p: share of an adapter's inputs that is dropped; 0 outside training.
        seeds: of the dropouts, four for each layer.
    """

    angles: tuple[Tensor, Tensor]
    attend: Attend
    dtype: torch.dtype
    p: float
    seeds: Sequence[int]

    def dropout(self, layer: int, site: int) -> Dropout:
        """Return the dropout of one of a layer's four groups."""
        return Dropout(self.p, self.seeds[4 * layer + site]) if self.p else NO_DROPOUT


def run_layer(x_TD: Tensor, layer: Layer, place: Place, number: int, rows_N: Tensor | None = None) -> Tensor:
    """Return the residual stream after a layer.

    Args:
        x_TD: before it, float32.
        layer: its weights.
        place: positions, attention, dropout.
        number: of the layer, counted from 0.
        rows_N: the only rows whose result is wanted (of the last layer); None for all.

    Returns:
        (T, D), or (N, D) of those rows.
    """
    projected: Tensor = _Heads.apply(x_TD, layer, place, place.dropout(number, 0), *_parameters(layer.qkv))  # type: ignore[no-untyped-call]
    q, k, v = projected.split(layer.qkv.weight.widths, dim=1)
    heads = [t.unflatten(1, (-1, layer.head)) for t in (q, k, v)]
    attended = place.attend(number, heads[0], heads[1], heads[2])
    if rows_N is not None:
        attended, x_TD = attended[rows_N], x_TD[rows_N]
    x_TD = _Out.apply(attended, x_TD, layer.out, place.dropout(number, 1), *_parameters(layer.out))  # type: ignore[no-untyped-call]
    drops = place.dropout(number, 2), place.dropout(number, 3)
    out: Tensor = _Mlp.apply(  # type: ignore[no-untyped-call]
        x_TD, layer, place.dtype, drops, *_parameters(layer.gate_up), *_parameters(layer.down)
    )
    return out


def _parameters(group: Group) -> tuple[Tensor, ...]:
    return (*(adapter.a for adapter in group.adapters), *(adapter.b for adapter in group.adapters))


class _Low:
    """The adapters of a group at work: inner values forward, their gradients backward."""

    def __init__(self, group: Group, dtype: torch.dtype) -> None:
        self.adapters = group.adapters
        self.dtype = dtype
        self.ranks = [len(adapter.a) for adapter in group.adapters]
        self.widths = group.weight.widths
        self.settled = group.settled

    def __bool__(self) -> bool:
        return bool(self.adapters)

    def stacked(self) -> Tensor:
        """Return all A matrices, (R, K) float32."""
        return torch.cat([adapter.a.detach() for adapter in self.adapters])

    def down(self) -> Tensor:
        """Return all A matrices as inputs are multiplied by them, (K, R) in C."""
        return self.settled.down_KR if self.settled else self.stacked().to(self.dtype).t()

    def inner(self, dropped_TK: Tensor | None) -> Tensor | None:
        """Return A x for all adapters, (T, R) float32."""
        if dropped_TK is None or not self:
            return None
        return in_company(dropped_TK, self.settled.least if self.settled else 0, self.down()).float()

    def ups(self) -> Sequence[Tensor | None]:
        """Return scale · Bᵀ of each adapter, (r, width) float32."""
        if not self:
            return [None] * len(self.widths)
        if self.settled:
            return self.settled.ups
        return [(adapter.b.detach() * adapter.scale).t().contiguous() for adapter in self.adapters]

    def backward(self, grad_TN: Tensor, low_TR: Tensor, dropped_TK: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the gradient of the inner values (T, R) in float32, and those of all A and all B matrices."""
        pieces = grad_TN.split(self.widths, dim=1)
        lows = low_TR.to(grad_TN.dtype).split(self.ranks, dim=1)
        inner, of_b = [], []
        for piece, low, adapter in zip(pieces, lows, self.adapters, strict=True):
            inner.append((piece @ adapter.b.detach().to(piece.dtype)) * adapter.scale)
            of_b.append((low.t() @ piece).t().float() * adapter.scale)  # this way round it takes half the time
        grad_low = torch.cat(inner, dim=1)
        of_a = (grad_low.t() @ dropped_TK.to(grad_low.dtype)).float()
        return grad_low.float(), [*of_a.split(self.ranks), *of_b]


class _Heads(torch.autograd.Function):
    """Norm, then queries, keys and values with their rotary positions, side by side in C."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Layer, place: Place, dropout: Dropout, *_: Tensor) -> Tensor:
        weight, low = layer.qkv.weight, _Low(layer.qkv, place.dtype)
        normed = _norm(x, layer, 0, low, dropout, place.dtype)
        inner = low.inner(normed.dropped)
        rows = normed.plain if weight.rounded is None else normed.rows
        out: Tensor = kernels().finish(
            weight.product(rows), weight.parts(low.ups()), bias_N=weight.bias, low_TR=inner, dtype=place.dtype
        )
        turned = weight.widths[0] + weight.widths[1]
        kernels().rope_(out[:, :turned], layer.head, *place.angles)
        ctx.layer, ctx.place, ctx.dropout = layer, place, dropout
        ctx.save_for_backward(x, normed.rstd, normed.dropped, inner)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        layer, place, weight = ctx.layer, ctx.place, ctx.layer.qkv.weight
        x, rstd, dropped, inner = ctx.saved_tensors
        low = _Low(layer.qkv, place.dtype)
        grad = grad.clone(memory_format=torch.contiguous_format)
        turned = weight.widths[0] + weight.widths[1]
        kernels().rope_(grad[:, :turned], layer.head, *place.angles, -1.0)
        grad_low, grads = low.backward(grad, inner, dropped) if low else (None, [])
        grad_x = None
        if ctx.needs_input_grad[0]:  # not below the first adapter: nothing there is trained
            raw = weight.transposed(weight.encode_gradient(grad))
            grad_x = _into_norm(raw, weight, low, grad_low, ctx.dropout, (x, rstd, layer.norms[0]), None)
        return grad_x, None, None, None, *grads


class _Out(torch.autograd.Function):
    """The heads' values projected back and added to the residual stream."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, x: Tensor, group: Group, dropout: Dropout, *_: Tensor) -> Tensor:
        low, weight = _Low(group, heads.dtype), group.weight
        dropped = kernels().drop(heads, dropout)
        inner = low.inner(dropped)
        raw = weight.product(weight.encode(heads))
        out: Tensor = kernels().finish(raw, weight.parts(low.ups()), bias_N=weight.bias, low_TR=inner, add_TN=x)
        ctx.group, ctx.dropout = group, dropout
        ctx.save_for_backward(dropped, inner)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        dropped, inner = ctx.saved_tensors
        weight, low = ctx.group.weight, _Low(ctx.group, dropped.dtype)
        grad_low, grads = low.backward(grad.to(dropped.dtype), inner, dropped) if low else (None, [])
        part = weight.input_part(low.stacked() if low else None)
        raw = weight.transposed(weight.encode_gradient(grad.contiguous()))
        grad_heads = kernels().finish(raw, part, low_TR=grad_low, dropout=ctx.dropout, dtype=dropped.dtype)
        return grad_heads, grad, None, None, *grads


class _Mlp(torch.autograd.Function):
    """Norm, gate and up, SwiGLU, down, added to the residual stream."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layer: Layer, dtype: torch.dtype, drops: tuple[Dropout, Dropout], *_: Tensor
    ) -> Tensor:
        into, back = layer.gate_up.weight, layer.down.weight
        low_into, low_back = _Low(layer.gate_up, dtype), _Low(layer.down, dtype)
        normed = _norm(x, layer, 1, low_into, drops[0], dtype)
        inner = low_into.inner(normed.dropped)
        gated = kernels().swiglu(
            into.product(normed.plain if into.rounded is None else normed.rows),
            into.parts(low_into.ups()),
            inner,
            rounded=back.rounded,
            dropout=drops[1] if low_back else None,
            plain=back.rounded is None,
            keep=any(ctx.needs_input_grad),
            dtype=dtype,
        )
        inner_back = low_back.inner(gated.dropped)
        raw = back.product(gated.plain if back.rounded is None else gated.rows)
        out: Tensor = kernels().finish(raw, back.parts(low_back.ups()), bias_N=back.bias, low_TR=inner_back, add_TN=x)
        ctx.layer, ctx.dtype, ctx.drops = layer, dtype, drops
        ctx.save_for_backward(x, normed.rstd, normed.dropped, inner, gated.gate_up, inner_back)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        layer, dtype = ctx.layer, ctx.dtype
        x, rstd, dropped, inner, gate_up, inner_back = ctx.saved_tensors
        into, back = layer.gate_up.weight, layer.down.weight
        low_into, low_back = _Low(layer.gate_up, dtype), _Low(layer.down, dtype)
        grad_C = grad.to(dtype)
        grad_low = grad_C.new_empty(0)
        if low_back:
            (adapter,) = low_back.adapters
            grad_low = (grad_C @ adapter.b.detach().to(dtype)).float() * adapter.scale
        raw = back.transposed(back.encode_gradient(grad.contiguous()))
        rows, again = kernels().swiglu_backward_(
            raw,
            back.input_part(None)[0].block,
            gate_up,
            low_TR=grad_low if low_back else None,
            down_RF=low_back.stacked() if low_back else None,
            dropout=ctx.drops[1],
            rounded=None if into.rounded is None else (into.parts([None, None]), into.step, into.rounded.levels),
            again=bool(low_back),
        )
        of_back = low_back.backward(grad_C, inner_back, again)[1] if low_back else []
        grad_into, of_into = low_into.backward(gate_up, inner, dropped) if low_into else (None, [])
        raw = into.transposed(gate_up if into.rounded is None else rows)
        grad_x = _into_norm(raw, into, low_into, grad_into, ctx.drops[0], (x, rstd, layer.norms[1]), grad)
        return grad_x, None, None, None, *of_into, *of_back


def _norm(x: Tensor, layer: Layer, which: int, low: _Low, dropout: Dropout, dtype: torch.dtype) -> Any:
    """Apply one of a layer's norms, in the forms its projections and their adapters take."""
    rounded = (layer.qkv, layer.gate_up)[which].weight.rounded
    return kernels().normalise(
        x,
        layer.norms[which],
        layer.eps,
        rounded=rounded,
        dropout=dropout if low else None,
        plain=rounded is None,
        dtype=dtype,
    )


def _into_norm(
    raw: Any,
    weight: FrozenWeight,
    low: _Low,
    grad_low: Tensor | None,
    dropout: Dropout,
    norm: tuple[Tensor, Tensor, Tensor],
    add: Tensor | None,
) -> Tensor:
    """Return the gradient of a norm's input from the raw gradient of its output, plus ``add``."""
    part = weight.input_part(low.stacked() if low else None)
    grad = kernels().finish(raw, part, low_TR=grad_low, dropout=dropout)
    out: Tensor = kernels().normalise_backward(grad, *norm, add)
    return out
