"""All layers of a model over a pack of examples, from token ids to the hidden states that predict answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from znatok.fast.attention import Segments, pack_attention
from znatok.fast.block import Attend, Group, Layer, Place, run_layer


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
        p = self.p if self.training else 0.0
        # drawn from the global generator, which checkpoints keep: a resumed run drops what the whole run would have
        seeds = torch.randint(2**62, (4 * len(self.layers),)).tolist() if p else ()
        segments = Segments(pack.prefix, pack.lengths)
        place = Place(
            self._angles(pack.positions_T), lambda _n, q, k, v: pack_attention(q, k, v, segments), self.dtype, p, seeds
        )
        return self._through(pack.ids_T, place, pack.rows_N)

    def continued(self, ids_T: Tensor, positions_T: Tensor, attend: Attend, rows_N: Tensor | None = None) -> Tensor:
        """Return the hidden states of tokens whose earlier ones ``attend`` remembers, without dropout.

        Args:
            ids_T: int64.
            positions_T: their rotary positions, int64.
            attend: keeps keys and values, and looks at those of earlier tokens.
            rows_N: the rows that are wanted; None for all.

        Returns:
            (N, D) or (T, D), float32.
        """
        return self._through(ids_T, Place(self._angles(positions_T), attend, self.dtype, 0.0, ()), rows_N)

    def _angles(self, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        angle = positions_T[:, None].float() * self.inverse_frequencies
        return angle.cos(), angle.sin()

    def _through(self, ids_T: Tensor, place: Place, rows_N: Tensor | None) -> Tensor:
        x_TD = F.embedding(ids_T, self.embedding).float()
        for number, layer in enumerate(self.layers):
            last = number == len(self.layers) - 1
            x_TD = run_layer(x_TD, layer, place, number, rows_N if last else None)
        normed: Tensor = F.rms_norm(x_TD, self.norm.shape, self.norm, self.eps)
        return normed

    def answering(self, rows: int) -> "Backbone":
        """Return the same backbone prepared for many products with few rows; its adapters must not change any more.

        With compiled kernels, what it makes of a row does not depend on what others there are, up to ``rows`` of them.
        """
        return self._changed(lambda group: group.answering(self.dtype, rows))

    def without_adapters(self) -> "Backbone":
        """Return the same backbone as the bare base model."""
        return replace(self._changed(lambda group: replace(group, adapters=(), settled=None)), training=False)

    def _changed(self, change: Callable[[Group], Group]) -> "Backbone":
        return replace(
            self,
            layers=[
                replace(
                    layer,
                    qkv=change(layer.qkv),
                    out=change(layer.out),
                    gate_up=change(layer.gate_up),
                    down=change(layer.down),
                )
                for layer in self.layers
            ],
        )
