"""Keys, values and attention kept apart row by row, so that no answer depends on its neighbours.

A decoding step in float always computes the same number of rows, whether one is in use or all. A matrix product with
the same number of rows rounds each row the same way, and reading the weights costs more than computing with them, so
the idle rows of :data:`SLOTS` are nearly free (bfloat16, two cores: 41 ms for 8 rows against 39 ms for 1). int8
products are exact whatever their rows, so a model in int8 has more, :data:`INT8_SLOTS`, and computes those in use; what
is float in it, adapters and head, still comes in that number.

Shapes: R rows, T prompt tokens, H query heads, K key heads, E head width.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from znatok.fast.attention import Segments, pack_attention
from znatok.fast.eager import History
from znatok.fast.kernels import kernels

SLOTS = 8
INT8_SLOTS = 32
ROW_ATTENTION = "znatok_rows"


class RowCache:
    """Keys and values of every layer and row, each row in a buffer of its own.

    Stands in for a transformers ``Cache``: the models call nothing of it but :meth:`update`.
    """

    def __init__(self, layers: int, slots: int = SLOTS) -> None:
        self.keys: list[list[Tensor | None]] = [[None] * slots for _ in range(layers)]
        self.values: list[list[Tensor | None]] = [[None] * slots for _ in range(layers)]
        self.lengths = [0] * slots
        self.filling: tuple[int, int] | None = None  # (row, capacity) while a prompt is read
        self.present: Sequence[int] = range(slots)  # the rows that a step is given

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Store new keys and values, shape (1, K, T, E) for a prompt or (R, K, 1, E) for a step; return all to see."""
        if self.filling is not None:
            row, capacity = self.filling
            for store, new in ((self.keys, key), (self.values, value)):
                buffer = new.new_empty(new.shape[1], capacity, new.shape[3])
                buffer[:, : new.shape[2]] = new[0]
                store[layer][row] = buffer
            return key, value
        for row, length in enumerate(self.lengths):
            buffer_k, buffer_v = self.keys[layer][row], self.values[layer][row]
            if length and buffer_k is not None and buffer_v is not None:
                buffer_k[:, length - 1] = key[row, :, 0]
                buffer_v[:, length - 1] = value[row, :, 0]
        return self.keys[layer], self.values[layer]

    def attend(self, layer: int, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor) -> Tensor:
        """Do the same for the fast engine: store, attend, and return (T, H · E) of a prompt or (R, H · E) of a step."""
        if self.filling is None:
            return self._step(layer, q_THE, k_TGE, v_TGE)
        self.update(k_TGE.transpose(0, 1)[None], v_TGE.transpose(0, 1)[None], layer)
        return pack_attention(q_THE, k_TGE, v_TGE, Segments(0, (len(q_THE),)))

    def _step(self, layer: int, q_RHE: Tensor, k_RGE: Tensor, v_RGE: Tensor) -> Tensor:
        keys, values = self.keys[layer], self.values[layer]
        history = History(
            [keys[row] for row in self.present],
            [values[row] for row in self.present],
            [self.lengths[row] for row in self.present],
        )
        out: Tensor = kernels().attend_rows(q_RHE, k_RGE, v_RGE, history)
        return out

    def drop(self, row: int) -> None:
        """Free a row."""
        self.lengths[row] = 0
        for store in (self.keys, self.values):
            for layer in store:
                layer[row] = None


def row_attention(
    module: Any,
    query: Tensor,
    key: Any,
    value: Any,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    rows: list[int] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend row by row; see the module's first paragraph for why.

    Args:
        module: the attention layer (unused; part of transformers' attention interface).
        query: (1, H, T, E) for a prompt, (R, H, 1, E) for a step.
        key: (1, K, T, E), or for a step a list of R buffers (K, capacity, E).
        value: like ``key``.
        attention_mask: always None: nothing here is padded.
        scaling: factor of the logits.
        rows: for a step, the number of keys of each row; 0 for an idle one.
        options: of these only ``sliding_window`` is obeyed; dropout is 0 outside training.

    Returns:
        (rows, tokens, H, E) and None for the attention weights.
    """
    window = options.get("sliding_window")
    if rows is None:
        if window is not None and query.shape[2] > window:
            attended = _through_window(query, key, value, window, scaling)
        else:
            attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        return attended.transpose(1, 2).contiguous(), None
    attended = torch.zeros_like(query)
    for row, n in enumerate(rows):
        if n:
            first = max(0, n - window) if window is not None else 0
            attended[row : row + 1] = F.scaled_dot_product_attention(
                query[row : row + 1],
                key[row][None, :, first:n],
                value[row][None, :, first:n],
                scale=scaling,
                enable_gqa=True,
            )
    return attended.transpose(1, 2).contiguous(), None


def _through_window(query: Tensor, key: Tensor, value: Tensor, window: int, scaling: float) -> Tensor:
    """Attend to the last ``window`` keys, a block of queries at a time: one mask for all of a prompt is T² numbers."""
    blocks = []
    for start in range(0, query.shape[2], window):
        end = min(start + window, query.shape[2])
        first = max(0, start - window + 1)
        seen = torch.ones(end - start, end - first, dtype=torch.bool, device=query.device)
        mask = seen.tril(start - first).triu(start - first + 1 - window)
        keys, values = key[:, :, first:end], value[:, :, first:end]
        blocks.append(
            F.scaled_dot_product_attention(
                query[:, :, start:end], keys, values, attn_mask=mask, scale=scaling, enable_gqa=True
            )
        )
    return torch.cat(blocks, 2)


AttentionInterface.register(ROW_ATTENTION, row_attention)
