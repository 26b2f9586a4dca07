"""Examples as padded tensors.

Shapes: B examples, T tokens of the longest one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from znatok.tokens.encode import Example

IGNORE = -100
"""The label of a position that is not trained, as PyTorch's cross-entropy has it."""


class ExampleSet(Dataset[dict[str, list[int]]]):
    """Examples as the dataset a Trainer iterates over."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = list(examples)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        example = self.examples[index]
        labels = [IGNORE] * example.answer_start + list(example.ids[example.answer_start :])
        return {"input_ids": list(example.ids), "labels": labels}


@dataclass(frozen=True)
class Collator:
    """Pads on the right; padding is neither attended nor trained."""

    pad_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return ``input_ids``, ``attention_mask`` and ``labels``, each int64 of shape (B, T).

        No rows become one that is all padding: the last batch of a team may leave one without work.
        """
        if not rows:
            return {
                "input_ids": torch.full((1, 1), self.pad_id),
                "attention_mask": torch.zeros((1, 1), dtype=torch.long),
                "labels": torch.full((1, 1), IGNORE),
            }
        length = max(len(row["input_ids"]) for row in rows)
        ids_BT = torch.full((len(rows), length), self.pad_id)
        labels_BT = torch.full((len(rows), length), IGNORE)
        mask_BT = torch.zeros((len(rows), length), dtype=torch.long)
        for b, row in enumerate(rows):
            n = len(row["input_ids"])
            ids_BT[b, :n] = torch.tensor(row["input_ids"])
            labels_BT[b, :n] = torch.tensor(row["labels"])
            mask_BT[b, :n] = 1
        assert (labels_BT != IGNORE).any(dim=1).all(), "an example without a trained token"
        return {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels_BT}
