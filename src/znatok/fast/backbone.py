"""All layers of a model over a pack of examples, from token ids to the hidden states that predict answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from znatok.fast.attention import Segments
from znatok.fast.block import Layer, Place, run_layer


class Packed(Protocol):
    """Examples laid one after another; ``tokens.packing`` makes them."""

    @property
    def ids_T(self) -> Tensor:
        """Return the token ids, int64."""
        ...

    @property
    def positions_T(self) -> Tensor:
        """Return each token's place in its own example, int64."""
        ...

    @property
    def prefix(self) -> int:
        """Return how many tokens at the start all examples share."""
        ...

    @property
    def lengths(self) -> tuple[int, ...]:
        """Return the tokens of each example after the prefix."""
        ...

    @property
    def rows_N(self) -> Tensor:
        """Return the rows whose next token is trained, int64."""
        ...

    @property
    def targets_N(self) -> Tensor:
        """Return those tokens, int64."""
        ...


@dataclass(eq=False)
class Backbone:
    """A frozen decoder with trainable adapters.

    Attributes:
        embedding: (V, D), bfloat16 or float32.
        layers: from the first to the last.
        norm: weight of the last norm (D,), float32.
        eps: of the last norm.
        inverse_frequencies: of the rotary positions, (E / 2,) float32.
        dtype: C, of adapters' inputs and of attention.
        p: dropout on adapters' inputs while training.
        training: whether dropout is on.
    """

    embedding: Tensor
    layers: Sequence[Layer]
    norm: Tensor
    eps: float
    inverse_frequencies: Tensor
    dtype: torch.dtype
    p: float = 0.0
    training: bool = field(default=False)

    def hidden(self, pack: Packed) -> Tensor:
        """Return the hidden states (N, D) of ``pack.rows_N`` after the last norm.

        They are float32 and differentiable in the adapters.
        """
        angle = pack.positions_T[:, None].float() * self.inverse_frequencies
        p = self.p if self.training else 0.0
        # drawn from the global generator, which checkpoints keep: a resumed run drops what the whole run would have
        seeds = torch.randint(2**62, (4 * len(self.layers),)).tolist() if p else ()
        place = Place((angle.cos(), angle.sin()), Segments(pack.prefix, pack.lengths), self.dtype, p, seeds)
        x_TD = F.embedding(pack.ids_T, self.embedding).float()
        for number, layer in enumerate(self.layers):
            last = number == len(self.layers) - 1
            x_TD = run_layer(x_TD, layer, place, number, pack.rows_N if last else None)
        normed: Tensor = F.rms_norm(x_TD, self.norm.shape, self.norm, self.eps)
        return normed

    def without_adapters(self) -> "Backbone":
        """Return the same backbone as the bare base model."""
        layers = [
            replace(
                layer,
                **{name: replace(getattr(layer, name), adapters=()) for name in ("qkv", "out", "gate_up", "down")},
            )
            for layer in self.layers
        ]
        return replace(self, layers=layers, training=False)
