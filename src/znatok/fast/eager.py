"""The element-wise work between the matrix products of a decoder layer, in plain torch.

This is the meaning of every kernel and the reference its compiled twin (``kernels.cpp``) is tested against; it also
does the work where nothing can be compiled.

Shapes: T tokens, K inputs of a product, N outputs, D width of the model, F width of the MLP, R rank, E head width.
"C" is the compute dtype, bfloat16 where the processor has it and float32 elsewhere; everything not called C is float32.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 64
"""Channels mixed by the rotation; widths that it does not divide use the largest power of two that does."""


class Part(NamedTuple):
    """One projection of a fused group.

    Attributes:
        width: its outputs.
        block: of the rotation of its outputs; 1 for none.
        up: its low-rank part (rank, width), float32 and contiguous, the adapter's scale included; None without adapter.
    """

    width: int
    block: int = 1
    up: Tensor | None = None

    @property
    def rank(self) -> int:
        """Return how many columns of the low-rank input belong to this part."""
        return 0 if self.up is None else self.up.shape[0]


class Dropout(NamedTuple):
    """Which elements of an adapter's input are dropped: the same seed drops the same again, whatever the threads."""

    p: float = 0.0
    seed: int = 0

    @property
    def threshold(self) -> int:
        """Return the 32-bit number below which a draw drops its element."""
        return min(round(self.p * 2**32), 2**32 - 1)

    @property
    def keep(self) -> float:
        """Return the factor of what is not dropped."""
        return 1.0 / (1.0 - self.p)


NO_DROPOUT = Dropout()


class Rounding(NamedTuple):
    """How rows become int8: the block of their rotation, and the largest magnitude (the processor may want 63)."""

    block: int
    levels: int = 127


class Rows(NamedTuple):
    """Rotated rows as int8 (T, K) and the float32 step of each row (T,)."""

    q: Tensor
    step: Tensor


class Raw(NamedTuple):
    """A matrix product before it means something.

    Attributes:
        acc: (T, N), int32, or float where weights are float.
        row: factor of each row (T,), or None.
        column: factor of each column (N,), or None.
    """

    acc: Tensor
    row: Tensor | None = None
    column: Tensor | None = None


class Normalised(NamedTuple):
    """What a norm leaves: 1/rms of each row (T,), and its output in the forms that were asked for."""

    rstd: Tensor
    rows: Rows | None
    plain: Tensor | None
    dropped: Tensor | None


class Gated(NamedTuple):
    """SwiGLU's output in the forms asked for, and its inputs (T, 2F) in C for the backward pass."""

    gate_up: Tensor | None
    rows: Rows | None
    plain: Tensor | None
    dropped: Tensor | None


def block_of(width: int) -> int:
    """Return the block of the rotation for vectors of this width."""
    return math.gcd(width, BLOCK)


def rotate(x: Tensor, block: int) -> Tensor:
    """Mix channels by a Hadamard matrix; its own inverse.

    Elements width/block apart form a block. Rounding errors of an outlier then spread over its block instead of
    drowning its neighbours (QuaRot, arXiv 2404.00456, rotates for the same reason).

    Args:
        x: (..., width), float32.
        block: a power of two that divides the width.
    """
    if block <= 1:
        return x
    mixed = x.reshape(*x.shape[:-1], block, -1)
    half = 1
    while half < block:
        pairs = mixed.reshape(*x.shape[:-1], block // (2 * half), 2, half, -1)
        one, other = pairs.unbind(-3)
        mixed = torch.stack([one + other, one - other], dim=-3).reshape(*x.shape[:-1], block, -1)
        half *= 2
    return mixed.reshape(x.shape) * (1 / math.sqrt(block))


def _rotate_parts(x: Tensor, parts: Sequence[Part]) -> Tensor:
    pieces = x.split([part.width for part in parts], dim=-1)
    return torch.cat([rotate(piece, part.block) for piece, part in zip(pieces, parts, strict=True)], dim=-1)


def rotate_long_(x: Tensor, block: int) -> Tensor:
    """Rotate the first axis of a contiguous float32 matrix (N, K) in place."""
    flat = x.view(-1)
    return flat.copy_(rotate(flat, block)).view(x.shape)


def round_rows(x_TK: Tensor, levels: int = 127) -> Rows:
    """Round each row to int8, up to ``levels``, with a step of its own."""
    top = x_TK.abs().amax(-1, keepdim=True).clamp_(min=1e-20)
    return Rows((x_TK * (levels / top)).round_().to(torch.int8), (top / levels)[..., 0])


def quantise(x_TK: Tensor, parts: Sequence[Part], column_K: Tensor | None = None, levels: int = 127) -> Rows:
    """Rotate rows (float32 or C) part by part, scale their columns, and round them to int8."""
    rotated = _rotate_parts(x_TK.float(), parts)
    return round_rows(rotated if column_K is None else rotated * column_K, levels)


def keep_mask(shape: tuple[int, int], dropout: Dropout) -> Tensor:
    """Return what dropout keeps, bool."""
    return draws(shape, dropout.seed) >= dropout.threshold


def draws(shape: tuple[int, int], seed: int) -> Tensor:
    """Return 32-bit numbers (int64), a hash of seed, row and column, so that nothing has to be stored."""
    rows, columns = shape
    wrap = 2**64
    keys = []
    for t in range(rows):  # splitmix64 (Steele, Lea, Flood 2014) of the row
        z = (seed + (t + 1) * 0x9E3779B97F4A7C15) % wrap
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % wrap
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % wrap
        keys.append(z ^ (z >> 31))
    first = torch.tensor([key & 0xFFFFFFFF for key in keys])[:, None]
    second = torch.tensor([key >> 32 for key in keys])[:, None]
    x = ((torch.arange(columns) * 0x9E3779B1) & 0xFFFFFFFF)[None] ^ first
    x = (((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF) ^ second
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def drop(x_TK: Tensor, dropout: Dropout) -> Tensor:
    """Return rows with dropout, in their dtype; the rows themselves where nothing is dropped."""
    if not dropout.p:
        return x_TK
    kept = keep_mask((x_TK.shape[0], x_TK.shape[1]), dropout)
    return torch.where(kept, x_TK.float() * dropout.keep, 0.0).to(x_TK.dtype)


def normalise(
    x_TD: Tensor,
    gain_D: Tensor,
    eps: float,
    *,
    rounded: Rounding | None,
    dropout: Dropout | None,
    plain: bool,
    dtype: torch.dtype,
) -> Normalised:
    """Apply RMSNorm (arXiv 1910.07467).

    Args:
        x_TD: the residual stream, float32.
        gain_D: the norm's weight.
        eps: added to the mean square.
        rounded: how int8 rows are made; None for no such rows.
        dropout: for the adapter's input in C; None for no such output.
        plain: whether the output is wanted in C.
        dtype: C.
    """
    rstd = torch.rsqrt(x_TD.square().mean(-1) + eps)
    out = x_TD * rstd[:, None] * gain_D
    return Normalised(rstd, *_forms(out, rounded, dropout, plain=plain, dtype=dtype))


def _forms(
    x: Tensor, rounded: Rounding | None, dropout: Dropout | None, *, plain: bool, dtype: torch.dtype
) -> tuple[Rows | None, Tensor | None, Tensor | None]:
    return (
        None if rounded is None else round_rows(rotate(x, rounded.block), rounded.levels),
        x.to(dtype) if plain else None,
        None if dropout is None else drop(x, dropout).to(dtype),
    )


def normalise_backward(grad_TD: Tensor, x_TD: Tensor, rstd_T: Tensor, gain_D: Tensor, add: Tensor | None) -> Tensor:
    """Return the gradient of RMSNorm's input (T, D), plus ``add``."""
    pulled = grad_TD * gain_D
    rstd = rstd_T[:, None]
    out = pulled * rstd - x_TD * ((pulled * x_TD).mean(-1, keepdim=True) * rstd**3)
    return out if add is None else out + add


def _value(raw: Raw) -> Tensor:
    value = raw.acc.float()
    if raw.row is not None:
        value = value * raw.row[:, None]
    return value if raw.column is None else value * raw.column


def finish(
    raw: Raw,
    parts: Sequence[Part],
    *,
    bias_N: Tensor | None = None,
    low_TR: Tensor | None = None,
    dropout: Dropout = NO_DROPOUT,
    add_TN: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Turn a raw product into a layer's output: scale, rotate back, add low-rank part, bias and residual.

    Args:
        raw: the product.
        parts: what stands side by side in its columns; their widths add up to N, their ranks to R.
        bias_N: or None.
        low_TR: the adapters' inner values, part after part.
        dropout: of the low-rank part's output (the backward pass of dropout on an input).
        add_TN: float32, added last.
        dtype: of the result.
    """
    value = _rotate_parts(_value(raw), parts)
    if low_TR is not None:
        lows = low_TR.split([part.rank for part in parts], dim=1)
        pieces = [
            low.new_zeros(len(low), part.width) if part.up is None else drop(low @ part.up, dropout)
            for low, part in zip(lows, parts, strict=True)
        ]
        value = value + torch.cat(pieces, dim=-1)
    if bias_N is not None:
        value = value + bias_N
    return (value if add_TN is None else value + add_TN).to(dtype)


def swiglu(
    raw: Raw,
    parts: Sequence[Part],
    low_TR: Tensor | None,
    *,
    rounded: Rounding | None,
    dropout: Dropout | None,
    plain: bool,
    keep: bool,
    dtype: torch.dtype,
) -> Gated:
    """Finish the products of gate and up and return silu(gate) · up (arXiv 2002.05202).

    Args:
        raw: gate and up side by side (T, 2F).
        parts: the two.
        low_TR: their adapters' inner values.
        rounded: how int8 rows are made; None for no such rows.
        dropout: for the next adapter's input in C; None for no such output.
        plain: whether the output is wanted in C.
        keep: whether the backward pass will need gate and up.
        dtype: C.
    """
    both = finish(raw, parts, low_TR=low_TR)
    gate, up = both.chunk(2, dim=-1)
    out = gate * torch.sigmoid(gate) * up
    return Gated(both.to(dtype) if keep else None, *_forms(out, rounded, dropout, plain=plain, dtype=dtype))


def swiglu_backward_(
    raw: Raw,
    block: int,
    gate_up: Tensor,
    *,
    low_TR: Tensor | None,
    down_RF: Tensor | None,
    dropout: Dropout,
    rounded: tuple[Sequence[Part], Tensor, int] | None,
    again: bool,
) -> tuple[Rows | None, Tensor | None]:
    """Take the gradient through SwiGLU.

    Args:
        raw: the product that gives the gradient of SwiGLU's output (T, F).
        block: of that output's rotation.
        gate_up: (T, 2F) in C; the gradient of gate and up is written in its place.
        low_TR: the gradient of the next adapter's inner values, scale included.
        down_RF: that adapter's A.
        dropout: of that adapter's input.
        rounded: parts, column factors and levels for int8 rows of the gradient; None for no such rows.
        again: whether SwiGLU's output with dropout is wanted once more, in C.

    Returns:
        The gradient as int8 rows, and that output.
    """
    grad = rotate(_value(raw), block)
    if low_TR is not None and down_RF is not None:
        grad = grad + drop(low_TR @ down_RF, dropout)
    gate, up = gate_up.float().chunk(2, dim=-1)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    out = drop(silu * up, dropout).to(gate_up.dtype) if again else None
    grads = torch.cat([grad * up * (sigmoid + silu * (1 - sigmoid)), grad * silu], dim=-1)
    gate_up.copy_(grads)
    return (None if rounded is None else quantise(grads, *rounded)), out


def rope_(x_TN: Tensor, head: int, cosine: Tensor, sine: Tensor, sign: float = 1.0) -> Tensor:
    """Turn heads by their rotary positions (arXiv 2104.09864) in place; ``sign`` -1 turns them back.

    Args:
        x_TN: (T, heads · E) in C, rows may be part of longer ones.
        head: E.
        cosine: (T, E / 2) of the angles, float32.
        sine: likewise.
        sign: 1 or -1.
    """
    heads = x_TN.unflatten(1, (-1, head)).float()
    one, other = heads.chunk(2, dim=-1)
    cosine, turn = cosine[:, None], sign * sine[:, None]
    x_TN.copy_(torch.cat([one * cosine - other * turn, other * cosine + one * turn], dim=-1).flatten(1))
    return x_TN


class History(NamedTuple):
    """Keys and values of the rows being answered, each row in buffers of its own.

    Attributes:
        keys: (G, capacity, E) in C for each row, None for an idle one.
        values: likewise.
        lengths: tokens of each row, the one being computed included; 0 for an idle one.
    """

    keys: Sequence[Tensor | None]
    values: Sequence[Tensor | None]
    lengths: Sequence[int]


def attend_rows(q_RHE: Tensor, k_RGE: Tensor, v_RGE: Tensor, history: History) -> Tensor:
    """Put the keys and values of one token of each row into its buffers and attend to all that is there.

    Args:
        q_RHE: queries in C, rotary positions applied; rows may be part of longer ones, of one length for all three.
        k_RGE: keys.
        v_RGE: values.
        history: of the rows; its buffers are written to.

    Returns:
        (R, H · E) in C; zeros for idle rows.
    """
    rows, heads, width = q_RHE.shape
    out = q_RHE.new_zeros(rows, heads, width)
    for row, (keys, values, length) in enumerate(zip(*history, strict=True)):
        if keys is None or values is None or not length:
            continue
        keys[:, length - 1], values[:, length - 1] = k_RGE[row], v_RGE[row]
        q = q_RHE[row].float().unflatten(0, (len(keys), -1)) * width**-0.5  # (G, H / G, E)
        share = (q @ keys[:, :length].float().transpose(1, 2)).softmax(-1)
        out[row] = (share @ values[:, :length].float()).flatten(0, 1).to(out.dtype)
    return out.flatten(1)


def slope_(logits_TV: Tensor, target_T: Tensor) -> Tensor:
    """Return the cross-entropy of each row (T,) in float32 or finer; the logits become softmax minus one-hot."""
    scores = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
    norm = scores.logsumexp(dim=-1)
    loss: Tensor = norm - scores.gather(1, target_T[:, None])[:, 0]
    share = (scores - norm[:, None]).exp_()
    share[torch.arange(len(target_T), device=target_T.device), target_T] -= 1
    logits_TV.copy_(share)
    return loss


def _round_fairly(x_TV: Tensor, seed: int, levels: int) -> Rows:
    top = x_TV.amax(-1, keepdim=True).clamp_(min=1e-20)
    fraction = (draws((x_TV.shape[0], x_TV.shape[1]), seed) >> 8) / 2**24
    return Rows((x_TV * (levels / top) + fraction).clamp_(max=levels).to(torch.int8), (top / levels)[:, 0])


LARGE = 64
"""How many shares of a row are kept apart at most: those beyond 1 / LARGE."""


class Slope(NamedTuple):
    """What cross-entropy leaves for the product with the head's rows.

    Attributes:
        loss: of each row (T,).
        rows: small shares, times the steps of the head's rows, as int8 (T, V).
        at: int64 (T, LARGE), tokens whose slope is kept apart, the target first; padded with the target.
        large: their slopes (T, LARGE); padded with 0.
    """

    loss: Tensor
    rows: Rows
    at: Tensor
    large: Tensor


def slope_rounded(logits_TV: Tensor, target_T: Tensor, column_V: Tensor, seed: int, levels: int = 127) -> Slope:
    """Return the cross-entropy of each row, and its slope (softmax minus one-hot) as int8 rows and exact large parts.

    Rounded with the same step as a share near 1, all small shares would vanish; so the target and shares beyond
    1 / LARGE are kept apart. Of a model that is nearly sure the rest still lies below half a step, in all rows alike;
    so it is rounded up or down by a draw, and right on average (stochastic rounding, arXiv 1502.02551).
    """
    scores = logits_TV.float()
    norm = scores.logsumexp(dim=-1)
    share = (scores - norm[:, None]).exp_()
    target = target_T[:, None]
    own = share.gather(1, target)
    share.scatter_(1, target, 0.0)
    large, at = share.topk(min(LARGE - 1, share.shape[1]), dim=-1)
    kept = large > 1 / LARGE
    large, at = torch.where(kept, large, 0.0), torch.where(kept, at, target)
    share = torch.where(share > 1 / LARGE, 0.0, share)
    short = LARGE - 1 - large.shape[1]
    large = torch.cat([own - 1, large, large.new_zeros(len(large), short)], dim=1)
    at = torch.cat([target, at, target.expand(-1, short)], dim=1)
    return Slope(norm - scores.gather(1, target)[:, 0], _round_fairly(share * column_V, seed, levels), at, large)
