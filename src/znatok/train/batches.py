"""The order of training examples: shuffled, yet with neighbours of like length.

Padding a batch to its longest example wastes more than half of the tokens on short question-answer pairs. Shuffling
windows of a few batches and sorting only inside each keeps the order random and the padding small (the idea of
fairseq's and transformers' length-grouped samplers).
"""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from znatok.train.team import ALONE, Team

WINDOW = 16  # batches sorted together


class LengthGroupedBatches(Sampler[list[int]]):
    """Batches of example indices; the order depends on lengths, batch size, seed and epoch only.

    Of a team each process gets its part of every batch; ``batch_size`` is that of one process, and a part may be empty.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, team: Team = ALONE) -> None:
        self.lengths = list(lengths)
        self.batch_size = batch_size * team.size
        self.seed = seed
        self.team = team
        self.epoch = 0
        self.drop_last = False  # read by accelerate

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        # One seed per (run, epoch); the multiplier keeps runs with neighbouring seeds from sharing epochs.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        window = self.batch_size * WINDOW
        grouped = []
        for start in range(0, len(order), window):
            grouped += sorted(order[start : start + window], key=lambda i: -self.lengths[i])
        batches = [grouped[i : i + self.batch_size] for i in range(0, len(grouped), self.batch_size)]
        for position in torch.randperm(len(batches), generator=generator).tolist():
            yield self.team.part(batches[position])
