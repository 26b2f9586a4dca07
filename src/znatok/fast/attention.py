"""Exact causal attention over a pack, segment by segment, its backward pass written by hand.

A dense mask over the whole pack would spend most of its work on pairs that must not see each other; here every segment
is a small problem of its own: the prefix attends to itself, the rest of each example to the prefix and itself. Query
heads that share a key head are rows of one product, and segments of about one length are computed together. Scores are
float32: Qwen's key biases make them large, and bfloat16 would round away what tells them apart.

Shapes: T tokens of the pack, H query heads, G key heads, E head width; for a bunch of B segments: L places of the
longest, P tokens of the prefix, S = P + L keys that a segment sees, Q = H / G · L query rows of a key head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

ALIKE = 1.25
"""The longest segment of a bunch has at most this many times the tokens of the shortest."""


@dataclass(frozen=True, eq=False)
class Bunch:
    """Segments of about one length that are computed together.

    Attributes:
        rows_BL: the row of the pack at each place; past a segment's end, its last one stands in. No token sees it:
            keys that come later than a query are hidden anyway.
        real_BL: which places are within their segment, bool.
        seen: tokens of the prefix in front, P.
    """

    rows_BL: Tensor
    real_BL: Tensor
    seen: int

    @cached_property
    def places_N(self) -> Tensor:
        """Return the real ones of the B · L places."""
        return self.real_BL.flatten().nonzero()[:, 0]

    @cached_property
    def rows_N(self) -> Tensor:
        """Return the rows of the pack at the real places."""
        return self.rows_BL.flatten()[self.places_N]

    @cached_property
    def mask_LS(self) -> Tensor:
        """Return what is added to scores: no token sees a later one."""
        length = self.rows_BL.shape[1]
        return torch.full((length, self.seen + length), -torch.inf).triu_(self.seen + 1)

    def queries(self, x_THE: Tensor, groups: int) -> Tensor:
        """Return rows of the pack as queries by key head, (B · G, Q, E)."""
        return _by_key_head(x_THE[self.rows_BL], groups)

    def gradients(self, x_THE: Tensor, groups: int) -> Tensor:
        """Return the same of the output's gradient: 0 past a segment's end."""
        return _by_key_head(x_THE[self.rows_BL].mul_(self.real_BL[:, :, None, None]), groups)

    def tokens(self, x_BQE: Tensor) -> Tensor:
        """Return query rows by key head as the real tokens again, (N, H · E)."""
        count, length = self.rows_BL.shape
        places = x_BQE.unflatten(1, (-1, length)).unflatten(0, (count, -1)).permute(0, 3, 1, 2, 4)
        rows: Tensor = places.reshape(count * length, -1)[self.places_N]
        return rows

    def keys(self, x_TGE: Tensor) -> Tensor:
        """Return what each segment sees of the keys or values, (B · G, S, E): the prefix, then its own."""
        own = x_TGE[self.rows_BL]
        if self.seen:
            own = torch.cat([x_TGE[: self.seen].expand(len(own), -1, -1, -1), own], dim=1)
        rows: Tensor = own.transpose(1, 2).flatten(0, 1)
        return rows

    def add_keys(self, total_TGE: Tensor, grad_BSE: Tensor) -> None:
        """Add gradients of what was seen to the segments' own tokens and to the prefix."""
        grad = grad_BSE.unflatten(0, (len(self.rows_BL), -1)).transpose(1, 2)  # (B, S, G, E)
        if self.seen:
            total_TGE[: self.seen] += grad[:, : self.seen].sum(0)
        total_TGE[self.rows_N] += grad[:, self.seen :].flatten(0, 1)[self.places_N]


def _by_key_head(x_BLHE: Tensor, groups: int) -> Tensor:
    places = x_BLHE.unflatten(2, (groups, -1))  # (B, L, G, H / G, E)
    rows: Tensor = places.permute(0, 2, 3, 1, 4).flatten(2, 3).flatten(0, 1)
    return rows


class Segments:
    """How a pack falls into segments.

    Args:
        prefix: tokens at the start that every segment sees; may be 0.
        lengths: tokens of each segment after it.
    """

    def __init__(self, prefix: int, lengths: Sequence[int]) -> None:
        starts = torch.tensor([0, *lengths]).cumsum(0).add_(prefix).tolist()
        order = sorted(range(len(lengths)), key=lambda segment: lengths[segment])
        bunches: list[list[int]] = []
        for segment in order:
            if not bunches or lengths[segment] > ALIKE * lengths[bunches[-1][0]]:
                bunches.append([])
            bunches[-1].append(segment)
        self._bunches = [_bunch([(0, prefix)], 0)] if prefix else []
        self._bunches += [_bunch([(starts[one], lengths[one]) for one in bunch], prefix) for bunch in bunches]

    def __iter__(self) -> Iterator[Bunch]:
        """Yield the bunches: the prefix first, if there is one."""
        return iter(self._bunches)


def _bunch(segments: Sequence[tuple[int, int]], seen: int) -> Bunch:
    """Return a bunch of segments given by their first row and length."""
    places = torch.arange(max(length for _start, length in segments))
    starts, lengths = torch.tensor(segments).t()[:, :, None]
    return Bunch(starts + places.minimum(lengths - 1), places < lengths, seen)


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
        for bunch in segments:
            q, k, v = bunch.queries(q_THE, k_TGE.shape[1]), bunch.keys(k_TGE), bunch.keys(v_TGE)
            scores = torch.bmm(q.float(), k.float().transpose(1, 2)).mul_(width**-0.5)
            scores.unflatten(1, (-1, len(bunch.mask_LS))).add_(bunch.mask_LS)
            share = scores.softmax(-1).to(q.dtype)
            out[bunch.rows_N] = bunch.tokens(torch.bmm(share, v))
            shares.append(share)
        ctx.segments = segments
        ctx.save_for_backward(q_THE, k_TGE, v_TGE, *shares)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_THE, k_TGE, v_TGE, *shares = ctx.saved_tensors
        scale, groups = q_THE.shape[2] ** -0.5, k_TGE.shape[1]
        grad_q, grad_k, grad_v = torch.empty_like(q_THE), torch.zeros_like(k_TGE), torch.zeros_like(v_TGE)
        grad_THE = grad.unflatten(1, q_THE.shape[1:])
        for bunch, share in zip(ctx.segments, shares, strict=True):
            q, k, v = bunch.queries(q_THE, groups), bunch.keys(k_TGE), bunch.keys(v_TGE)
            grad_out = bunch.gradients(grad_THE, groups)
            grad_score = torch.bmm(grad_out, v.transpose(1, 2)).float().mul_(share)
            grad_score.addcmul_(share.float(), grad_score.sum(-1, keepdim=True), value=-1).mul_(scale)
            grad_score = grad_score.to(q.dtype)
            bunch.add_keys(grad_v, torch.bmm(share.transpose(1, 2), grad_out))
            bunch.add_keys(grad_k, torch.bmm(grad_score.transpose(1, 2), q))
            grad_q[bunch.rows_N] = bunch.tokens(torch.bmm(grad_score, k)).unflatten(1, q_THE.shape[1:])
        return grad_q, grad_k, grad_v, None
