"""Examples laid one after another, without padding and with what they share computed once.

Short pairs of question and answer waste most of a padded batch, and every one of them begins with the same system
message. A pack holds that common beginning once, then each example's own tokens:

    prefix | rest of example 0 | rest of example 1 | …

Each rest attends to the prefix and to itself. Attention is causal, so the prefix is the same for all, its gradients
add up, and hidden states and gradients are those of the examples computed one by one (Prefix Grouper, arXiv
2506.05433, does it for several answers to one prompt).

Shapes: T tokens of the pack, N answer tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Row(Protocol):
    """Anything with token ids, of which those from ``answer_start`` on are trained."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Return prompt, answer and end token."""
        ...

    @property
    def answer_start(self) -> int:
        """Return the index of the first trained token, 1 or more."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """Some examples of one batch.

    Attributes:
        ids_T: int64 token ids.
        positions_T: int64, the place of each token in its own example.
        prefix: tokens at the start that all examples share.
        lengths: tokens of each example after the prefix.
        rows_N: int64, the rows whose next token is an answer token, example after example.
        targets_N: int64, those answer tokens.
        tokens: of the examples, the prefix counted for each: what computing them one by one would take.
    """

    ids_T: Tensor
    positions_T: Tensor
    prefix: int
    lengths: tuple[int, ...]
    rows_N: Tensor
    targets_N: Tensor
    tokens: int


def pack(examples: Sequence[Row], *, share: bool = True) -> Pack:
    """Lay examples one after another; ``share`` computes their common beginning once."""
    prefix = common_prefix(examples) if share else 0
    ids, positions = list(examples[0].ids[:prefix]), list(range(prefix))
    rows: list[int] = []
    targets: list[int] = []
    for example in examples:
        start = len(ids) - prefix  # row of the example's token i is start + i, for i beyond the prefix
        rows += range(start + example.answer_start - 1, start + len(example.ids) - 1)
        targets += example.ids[example.answer_start :]
        ids += example.ids[prefix:]
        positions += range(prefix, len(example.ids))
    return Pack(
        ids_T=torch.tensor(ids),
        positions_T=torch.tensor(positions),
        prefix=prefix,
        lengths=tuple(len(example.ids) - prefix for example in examples),
        rows_N=torch.tensor(rows),
        targets_N=torch.tensor(targets),
        tokens=sum(len(example.ids) for example in examples),
    )


def common_prefix(examples: Sequence[Row]) -> int:
    """Return how many tokens all examples begin with alike; each keeps the row that predicts its first answer token."""
    if len(examples) < 2:
        return 0
    columns = zip(*(example.ids for example in examples), strict=False)  # as long as the shortest
    shared = next((i for i, column in enumerate(columns) if len(set(column)) > 1), min(len(e.ids) for e in examples))
    return max(0, min(shared, *(example.answer_start - 1 for example in examples)))


def pack_batch(examples: Sequence[Row], limit: int, *, share: bool = True) -> list[Pack]:
    """Lay a batch into few packs of at most ``limit`` rows each, what is shared counted once.

    Examples keep their order; a single example longer than the limit has a pack of its own.
    """
    return [pack(group, share=share) for group in _groups(examples, limit, share=share)]


def pack_sizes(examples: Sequence[Row], limit: int, *, share: bool = True) -> list[int]:
    """Return how many rows each pack of :func:`pack_batch` has, without laying them out."""
    return [_size(group, share=share) for group in _groups(examples, limit, share=share)]


def _groups(examples: Sequence[Row], limit: int, *, share: bool) -> list[list[Row]]:
    groups: list[list[Row]] = []
    for example in examples:
        if groups and _size([*groups[-1], example], share=share) <= limit:
            groups[-1].append(example)
        else:
            groups.append([example])
    return groups


def _size(group: Sequence[Row], *, share: bool) -> int:
    prefix = common_prefix(group) if share else 0
    return sum(len(example.ids) for example in group) - prefix * (len(group) - 1)
