"""int8 is earned: the engine compares itself with float before it trains.

A way to multiply that does not give exact integers is not used at all (``fast.product``). Then, on the user's own first
batch, loss and gradients of all adapters are compared with those of float weights, read from the checkpoint layer by
layer. Where they differ too much, the projections with the largest error of their own go back to float; where that
does not help, the whole model does.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from znatok.fast.backbone import Backbone, Packed
from znatok.fast.block import Group, Layer
from znatok.fast.eager import Raw, Rows
from znatok.fast.kernels import kernels
from znatok.fast.linear import FloatWeight, FrozenWeight
from znatok.fast.loss import Head, row_loss

LOSS_LIMIT = 0.005
"""Largest relative difference of the loss."""
COSINE_LIMIT = 0.985
"""Smallest cosine between the gradients of all adapters, int8 and float."""
GROUPS = ("qkv", "out", "gate_up", "down")
START = 1e-3  # spread of the B matrices during the comparison: at their own zero, A has no gradient to compare


@dataclass(frozen=True)
class Verdict:
    """How int8 compares with float on one batch.

    Attributes:
        loss: per answer token, int8, in nats.
        reference: the same, float.
        cosine: of the gradients of all adapters together.
        worst: the smallest cosine of one group's gradients, and that group.
        floats: groups that are computed in float, e.g. ``3.down``.
    """

    loss: float
    reference: float
    cosine: float
    worst: tuple[float, str]
    floats: tuple[str, ...] = ()

    @property
    def difference(self) -> float:
        """Return the relative difference of the loss."""
        return self.loss / self.reference - 1

    @property
    def passed(self) -> bool:
        """Tell whether int8 may train."""
        return abs(self.difference) <= LOSS_LIMIT and self.cosine >= COSINE_LIMIT

    def to_json(self) -> dict[str, Any]:
        """Return a dict for the manifest."""
        return {
            "loss": round(self.loss, 6),
            "reference_loss": round(self.reference, 6),
            "gradient_cosine": round(self.cosine, 5),
            "worst_group": self.worst[1],
            "worst_group_cosine": round(self.worst[0], 5),
            "float_groups": list(self.floats),
        }


@dataclass(eq=False)
class Judged:
    """A float weight, read when it is needed and forgotten, that measures how far its int8 form is off.

    Attributes:
        read: returns the float weights (N, K).
        rival: the int8 form.
        measured: whether errors are wanted.
        errors: relative error of each product, forward and backward.
    """

    read: Callable[[], Tensor]
    rival: FrozenWeight
    measured: bool = False
    errors: list[float] = field(default_factory=list)
    rounded: None = None

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the outputs of each projection."""
        return self.rival.widths

    @property
    def bias(self) -> Tensor | None:
        """Return the bias (N,), or None."""
        return self.rival.bias

    def answering(self) -> "Judged":
        """Return itself."""
        return self

    def _plain(self) -> FloatWeight:
        return FloatWeight(self.read(), self.widths, self.bias)

    def parts(self, ups: Sequence[Tensor | None]) -> Any:
        """Return the projections with their low-rank parts."""
        return [part._replace(block=1) for part in self.rival.parts(ups)]

    def encode(self, x_TK: Tensor) -> Tensor:
        """Return the rows as they are."""
        return x_TK

    def product(self, rows: Rows | Tensor | None) -> Raw:
        """Return x Wᵀ."""
        assert isinstance(rows, Tensor)
        raw, rival = self._plain().product(rows), self.rival
        if self.measured:
            bare = rival.parts([None] * len(self.widths))
            self._note(raw, kernels().finish(rival.product(rival.encode(rows)), bare))
        return raw

    def encode_gradient(self, grad_TN: Tensor) -> Tensor:
        """Return the gradient in the weights' dtype."""
        return grad_TN

    def transposed(self, rows: Rows | Tensor | None) -> Raw:
        """Return dy W."""
        assert isinstance(rows, Tensor)
        weight = self._plain()
        raw, rival = weight.transposed(rows.to(weight.weight.dtype)), self.rival
        if self.measured:
            self._note(raw, kernels().finish(rival.transposed(rival.encode_gradient(rows)), rival.input_part(None)))
        return raw

    def input_part(self, up: Tensor | None) -> Any:
        """Return the one part of a finished input gradient."""
        return [part._replace(block=1) for part in self.rival.input_part(up)]

    def _note(self, raw: Raw, theirs: Tensor) -> None:
        ours = raw.acc.float()
        self.errors.append(float((theirs - ours).norm() / ours.norm().clamp(min=1e-20)))


Read = Callable[[int, str], Tensor]
"""(layer, group) -> its float weights (N, K)."""


def judge(backbone: Backbone, pack: Packed, heads: tuple[Head, Head], read: Read) -> tuple[Backbone, Verdict]:
    """Compare int8 with float; return the backbone to train with, and how it compares.

    Args:
        backbone: with int8 projections and adapters.
        pack: examples of the user's own.
        heads: the output head, as it trains and in float.
        read: (layer, group) -> its float weights (N, K) in the compute dtype.

    The adapters' weights and gradients and the global random state are left as they were. A verdict that has not
    passed means that the model is to be trained in float.
    """
    with _Spread(backbone):
        reference_loss, reference = _gradients(_judged(backbone, read), pack, heads[1])
        loss, gradients = _gradients(backbone, pack, heads[0])
        verdict = _compare(loss, reference_loss, gradients, reference)
        if verdict.passed:
            return backbone, verdict
        ranking = _ranking(backbone, pack, heads[1], read)
        for share in (0.25, 0.5):
            floats = ranking[: round(share * len(ranking))]
            chosen = with_floats(backbone, floats, read)
            loss, gradients = _gradients(chosen, pack, heads[0])
            verdict = _compare(loss, reference_loss, gradients, reference, tuple(sorted(floats)))
            if verdict.passed:
                return chosen, verdict
    return backbone, verdict


def _ranking(backbone: Backbone, pack: Packed, head: Head, read: Read) -> list[str]:
    """Return the groups, the one with the largest error of its own product first."""
    judged = _judged(backbone, read, measured=True)
    _gradients(judged, pack, head)
    errors = {
        f"{number}.{group}": max(getattr(layer, group).weight.errors)
        for number, layer in enumerate(judged.layers)
        for group in GROUPS
    }
    return sorted(errors, key=lambda name: -errors[name])


def _judged(backbone: Backbone, read: Read, *, measured: bool = False) -> Backbone:
    def reader(number: int, group: str) -> Callable[[], Tensor]:
        return lambda: read(number, group)

    layers = []
    for number, layer in enumerate(backbone.layers):
        groups: dict[str, Any] = {
            group: replace(
                getattr(layer, group), weight=Judged(reader(number, group), getattr(layer, group).weight, measured)
            )
            for group in GROUPS
        }
        layers.append(replace(layer, **groups))
    return replace(backbone, layers=layers, training=False)


def with_floats(backbone: Backbone, names: Sequence[str], read: Read) -> Backbone:
    """Return the backbone with some groups in float."""
    layers: list[Layer] = list(backbone.layers)
    for name in names:
        number, group = int(name.split(".")[0]), name.split(".")[1]
        old: Group = getattr(layers[number], group)
        weight = FloatWeight(read(number, group), old.weight.widths, old.weight.bias)
        changed: dict[str, Any] = {group: replace(old, weight=weight)}
        layers[number] = replace(layers[number], **changed)
    return replace(backbone, layers=layers) if names else backbone


def _gradients(backbone: Backbone, pack: Packed, head: Head) -> tuple[float, dict[str, Tensor]]:
    """Return the loss per answer token and the gradients of each group's adapters, flattened; no dropout."""
    quiet = replace(backbone, training=False)
    with torch.random.fork_rng(devices=[]):  # the head rounds by draws: always the same ones here
        torch.manual_seed(0)
        loss = row_loss(quiet.hidden(pack), head, pack.targets_N) / len(pack.targets_N)
    groups = {
        f"{number}.{group}": [tensor for adapter in getattr(layer, group).adapters for tensor in (adapter.a, adapter.b)]
        for number, layer in enumerate(quiet.layers)
        for group in GROUPS
    }
    flat = torch.autograd.grad(loss, [tensor for tensors in groups.values() for tensor in tensors])
    taken = iter(flat)
    return float(loss.detach()), {
        name: torch.cat([next(taken).flatten() for _ in tensors]) for name, tensors in groups.items()
    }


def _compare(
    loss: float, reference_loss: float, ours: dict[str, Tensor], theirs: dict[str, Tensor], floats: tuple[str, ...] = ()
) -> Verdict:
    products = {name: _products(ours[name], theirs[name]) for name in ours}
    cosines = {name: _cosine(*found) for name, found in products.items()}
    whole = _cosine(*(sum(column) for column in zip(*products.values(), strict=True)))
    worst = min(cosines, key=lambda name: cosines[name])
    return Verdict(loss, reference_loss, whole, (cosines[worst], worst), floats)


def _products(x_N: Tensor, y_N: Tensor) -> tuple[float, float, float]:
    """Return x·y, x·x and y·y, summed in float64: over millions of values float32 sums are 0.1 % off."""
    x_N, y_N = x_N.double(), y_N.double()
    return float(x_N @ y_N), float(x_N @ x_N), float(y_N @ y_N)


def _cosine(xy: float, xx: float, yy: float) -> float:
    return xy / max(math.sqrt(xx * yy), 1e-30)


class _Spread:
    """Give the adapters' B matrices small random values inside, and their own back afterwards."""

    def __init__(self, backbone: Backbone) -> None:
        self._matrices = [
            adapter.b for layer in backbone.layers for group in GROUPS for adapter in getattr(layer, group).adapters
        ]

    def __enter__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._before = [matrix.detach().clone() for matrix in self._matrices]
        for matrix in self._matrices:
            matrix.data += torch.randn(matrix.shape, generator=generator) * START

    def __exit__(self, *_: object) -> None:
        for matrix, before in zip(self._matrices, self._before, strict=True):
            matrix.data.copy_(before)
