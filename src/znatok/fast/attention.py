"""Exact causal attention over a pack, segment by segment, its backward pass written by hand.

A dense mask over the whole pack would spend most of its work on pairs that must not see each other; here every segment
is a small problem of its own: the prefix attends to itself, the rest of each example to the prefix and itself. Query
heads that share a key head are rows of one product. On two cores this takes about half the time of torch's flash
attention at these lengths (docs/experiments.md). Scores are float32: Qwen's key biases make them large, and bfloat16
would round away what tells them apart.

Shapes: T tokens of the pack, H query heads, G key heads, E head width, L tokens of a segment, S keys it sees (the
prefix's and its own), Q = H / G · L query rows of a key head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(eq=False)
class Segments:
    """How a pack falls into segments.

    Attributes:
        prefix: tokens at the start that every segment sees; may be 0.
        lengths: tokens of each segment after it.
    """

    prefix: int
    lengths: Sequence[int]
    _masks: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Yield first row, length, and how many tokens of the prefix are seen, of each segment."""
        if self.prefix:
            yield 0, self.prefix, 0
        start = self.prefix
        for length in self.lengths:
            yield start, length, self.prefix
            start += length

    def mask(self, length: int, seen: int) -> Tensor:
        """Return the additive mask (L, S): no token sees a later one. Made once for all layers."""
        key = (length, seen)
        if key not in self._masks:
            self._masks[key] = torch.full((length, seen + length), -torch.inf).triu_(seen + 1)
        return self._masks[key]


def pack_attention(q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, segments: Segments) -> Tensor:
    """Return what each token attends to, (T, H · E) in the dtype of the queries; differentiable.

    Args:
        q_THE: queries, rotary positions applied, bfloat16 or float32.
        k_TGE: keys; H is a multiple of G.
        v_TGE: values.
        segments: of the T tokens.
    """
    out: Tensor = _PackAttention.apply(q_THE, k_TGE, v_TGE, segments)  # type: ignore[no-untyped-call]
    return out


class _PackAttention(torch.autograd.Function):
    """Attention of every segment; keeps the shares."""

    @staticmethod
    def forward(ctx: Any, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, segments: Segments) -> Tensor:
        heads, width = q_THE.shape[1:]
        out = q_THE.new_empty(len(q_THE), heads * width)
        shares = []
        for start, length, seen in segments:
            q, k, v = (
                _rows(q_THE, start, length, k_TGE),
                _keys(k_TGE, start, length, seen),
                _keys(v_TGE, start, length, seen),
            )
            scores = torch.bmm(q.float(), k.float().transpose(1, 2)).mul_(width**-0.5)
            scores.unflatten(1, (-1, length)).add_(segments.mask(length, seen))
            share = scores.softmax(-1).to(q.dtype)
            out[start : start + length] = _tokens(torch.bmm(share, v), length)
            shares.append(share)
        ctx.segments = segments
        ctx.save_for_backward(q_THE, k_TGE, v_TGE, *shares)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_THE, k_TGE, v_TGE, *shares = ctx.saved_tensors
        scale = q_THE.shape[2] ** -0.5
        grad_q, grad_k, grad_v = torch.empty_like(q_THE), torch.zeros_like(k_TGE), torch.zeros_like(v_TGE)
        grad_THE = grad.unflatten(1, q_THE.shape[1:])
        for (start, length, seen), share in zip(ctx.segments, shares, strict=True):
            q, k, v = (
                _rows(q_THE, start, length, k_TGE),
                _keys(k_TGE, start, length, seen),
                _keys(v_TGE, start, length, seen),
            )
            grad_out = _rows(grad_THE, start, length, k_TGE)
            _add_keys(grad_v, torch.bmm(share.transpose(1, 2), grad_out), start, length, seen)
            grad_share = torch.bmm(grad_out, v.transpose(1, 2)).float()
            share = share.float()
            grad_score = grad_share.mul_(share)
            grad_score.sub_(share.mul_(grad_score.sum(-1, keepdim=True))).mul_(scale)
            grad_score = grad_score.to(q.dtype)
            grad_q[start : start + length] = _tokens(torch.bmm(grad_score, k), length).unflatten(1, q_THE.shape[1:])
            _add_keys(grad_k, torch.bmm(grad_score.transpose(1, 2), q), start, length, seen)
        return grad_q, grad_k, grad_v, None


def _rows(x_THE: Tensor, start: int, length: int, k_TGE: Tensor) -> Tensor:
    """Return a segment's query rows by key head, (G, Q, E)."""
    groups = x_THE[start : start + length].unflatten(1, (k_TGE.shape[1], -1))  # (L, G, H / G, E)
    rows: Tensor = groups.permute(1, 2, 0, 3).flatten(1, 2)
    return rows


def _tokens(x_GQE: Tensor, length: int) -> Tensor:
    """Return query rows as tokens again, (L, H · E)."""
    tokens: Tensor = x_GQE.unflatten(1, (-1, length)).permute(2, 0, 1, 3).flatten(1)
    return tokens


def _keys(x_TGE: Tensor, start: int, length: int, seen: int) -> Tensor:
    """Return what a segment sees of the keys or values, (G, S, E): the prefix, then its own."""
    own = x_TGE[start : start + length]
    return (torch.cat([x_TGE[:seen], own]) if seen else own).transpose(0, 1)


def _add_keys(total_TGE: Tensor, grad_GSE: Tensor, start: int, length: int, seen: int) -> None:
    """Add a segment's gradient to its own tokens and to the prefix."""
    grad = grad_GSE.transpose(0, 1)
    total_TGE[:seen] += grad[:seen]
    total_TGE[start : start + length] += grad[seen:]
