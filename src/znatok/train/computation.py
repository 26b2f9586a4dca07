"""How the loss of a batch is computed: packed by the fast engine, or padded by transformers' own layers.

Both give the same loss and gradients up to rounding; a test holds them to it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from znatok.fast.backbone import Backbone
from znatok.fast.loss import Head, answer_loss, row_loss
from znatok.model.score import answer_losses, head_weight, hidden_states
from znatok.tokens.collate import IGNORE
from znatok.tokens.encode import Example
from znatok.tokens.packing import Row, pack, pack_batch, pack_sizes
from znatok.train.team import Team


class Computation(Protocol):
    """What turns examples into a loss that adapters can learn from."""

    def parts(self, batch: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Yield the summed answer losses of the parts of a padded batch, in nats.

        The last batch of a team may leave a process without work: its batch has no answer.

        Each part holds its activations until its backward pass is taken; take it before asking for the next.
        """
        ...

    def losses(self, examples: Sequence[Example]) -> list[tuple[float, int]]:
        """Return the summed loss and the number of answer tokens of each example, without dropout or gradients."""
        ...

    def rows(self, examples: Sequence[Row]) -> int:
        """Return how many rows a batch of these examples computes, padding included, shared tokens once."""
        ...

    def largest(self, examples: Sequence[Row]) -> int:
        """Return how many rows of such a batch are in memory at once."""
        ...


@dataclass(frozen=True, eq=False)
class Padded:
    """transformers' layers and PEFT's, on any device, every example padded to the longest."""

    model: Any

    def parts(self, batch: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Yield one part, the whole batch; none where it has no answers."""
        if not has_answers(batch):
            return
        self.model.train()
        hidden_BTD = hidden_states(self.model, batch["input_ids"], batch["attention_mask"])
        yield answer_loss(hidden_BTD, head_weight(self.model), batch["labels"])[0]

    def losses(self, examples: Sequence[Example]) -> list[tuple[float, int]]:
        """Return the summed loss and the number of answer tokens of each example."""
        return answer_losses(self.model, examples)

    def rows(self, examples: Sequence[Row]) -> int:
        """Return how many rows a batch of these examples computes, padding included."""
        return len(examples) * max(len(example.ids) for example in examples)

    def largest(self, examples: Sequence[Row]) -> int:
        """Return how many rows of such a batch are in memory at once."""
        return self.rows(examples)


@dataclass(frozen=True, eq=False)
class Sharded(Padded):
    """The same with a base whose layers are split over a team (``train.shards``).

    A layer is put together by all processes at once, so each of them has to compute as often as every other: one
    without work computes a token that nobody wants.
    """

    team: Team

    def parts(self, batch: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Yield one part: the whole batch, or nothing computed as if it were one."""
        if has_answers(batch):
            yield from super().parts(batch)
        else:
            self.model.train()
            yield 0 * self._nothing(batch["input_ids"]).sum()

    def losses(self, examples: Sequence[Example]) -> list[tuple[float, int]]:
        """Return the summed loss and the number of answer tokens of each example."""
        most = int(max(self.team.each(len(examples))))
        losses = super().losses(examples)
        with torch.no_grad():
            for _missing in range(most - len(examples)):
                self._nothing(torch.zeros((1, 1), dtype=torch.long, device=head_weight(self.model).device))
        return losses

    def _nothing(self, ids_BT: Tensor) -> Tensor:
        return hidden_states(self.model, ids_BT, torch.ones_like(ids_BT))


@dataclass(frozen=True, eq=False)
class FastPacked:
    """The fast engine: no padding, shared beginnings once, at most ``limit`` tokens at a time."""

    backbone: Backbone
    head: Head
    limit: int
    share: bool = True

    def parts(self, batch: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Yield the loss of each pack."""
        if not has_answers(batch):
            return
        self.backbone.training = True
        for packed in pack_batch(rows_of(batch), self.limit, share=self.share):
            yield row_loss(self.backbone.hidden(packed), self.head, packed.targets_N)

    @torch.no_grad()
    def losses(self, examples: Sequence[Example]) -> list[tuple[float, int]]:
        """Return the summed loss and the number of answer tokens of each example, computed one by one."""
        self.backbone.training = False
        packs = [pack([example]) for example in examples]
        return [
            (float(row_loss(self.backbone.hidden(packed), self.head, packed.targets_N)), len(packed.targets_N))
            for packed in packs
        ]

    def rows(self, examples: Sequence[Row]) -> int:
        """Return how many rows a batch of these examples computes."""
        return sum(pack_sizes(examples, self.limit, share=self.share))

    def largest(self, examples: Sequence[Row]) -> int:
        """Return how many rows of such a batch are in memory at once."""
        return max(pack_sizes(examples, self.limit, share=self.share))


def has_answers(batch: Mapping[str, Tensor]) -> bool:
    """Tell whether there is anything to train on in a batch."""
    return bool((batch["labels"] != IGNORE).any())


class _Unpadded(NamedTuple):
    ids: tuple[int, ...]
    answer_start: int


def rows_of(batch: Mapping[str, Tensor]) -> list[Row]:
    """Return the examples of a padded batch."""
    rows: list[Row] = []
    for ids_T, labels_T, mask_T in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        length = int(mask_T.sum())
        answer_start = int((labels_T[:length] != IGNORE).int().argmax())
        rows.append(_Unpadded(tuple(ids_T[:length].tolist()), answer_start))
    return rows
