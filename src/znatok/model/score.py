"""How well a model predicts what is given to it: answers to questions, and prose.

Shapes: B examples, T tokens, D width.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from znatok.data.schema import Pair
from znatok.errors import DataError
from znatok.fast.loss import answer_loss, row_loss, row_losses
from znatok.model.backbone import build_backbone, is_rounded, obstacle
from znatok.tokens.chat import ChatFormat
from znatok.tokens.collate import Collator, ExampleSet
from znatok.tokens.encode import Example
from znatok.tokens.packing import pack

WINDOW = 512  # tokens of prose read at once; each window begins anew


def hidden_states(model: Any, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the last hidden states (B, T, D) of a causal language model, after its final norm."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden_BTD: Tensor = base.model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
    return hidden_BTD


def head_weight(model: Any) -> Tensor:
    """Return the output head (V, D), detached: it is never trained."""
    weight_VD: Tensor = model.get_output_embeddings().weight
    return weight_VD.detach()


def _int8_losses(model: Any, examples: Sequence[Example]) -> list[tuple[float, int]]:
    backbone, head = build_backbone(model), head_weight(model)
    packs = [pack([example]) for example in examples]
    return [(float(row_loss(backbone.hidden(p), head, p.targets_N)), len(p.targets_N)) for p in packs]


@torch.no_grad()
def group_losses(model: Any, groups: Sequence[Sequence[Example]]) -> list[list[tuple[float, int]]]:
    """Return (summed loss in nats, answer tokens) of every example of groups that begin alike.

    Several answers to one question cost one reading of the question where the fast engine computes the model.
    """
    if not (is_rounded(model) and not obstacle(model)):
        return [answer_losses(model, group) for group in groups]
    backbone, head = build_backbone(model), head_weight(model)
    found = []
    for group in groups:
        packed = pack(group)
        losses_N = row_losses(backbone.hidden(packed), head, packed.targets_N)
        counts = [example.answer_tokens for example in group]
        found.append([(float(part.sum()), n) for part, n in zip(losses_N.split(counts), counts, strict=True)])
    return found


@torch.no_grad()
def answer_losses(model: Any, examples: Sequence[Example]) -> list[tuple[float, int]]:
    """Return the summed loss in nats and the number of answer tokens of each example.

    Examples are computed one by one: padding would cost time and change the rounding. The fast engine computes a model
    in int8; one in float goes through transformers' own layers, the reference everything else is measured by.
    """
    if is_rounded(model) and not obstacle(model):
        return _int8_losses(model, examples)
    was_training = model.training
    model.eval()
    weight_VD = head_weight(model)
    rows, collate = ExampleSet(examples), Collator(pad_id=0)
    losses = []
    for index in range(len(rows)):
        batch = {name: tensor.to(weight_VD.device) for name, tensor in collate([rows[index]]).items()}
        total, count = answer_loss(
            hidden_states(model, batch["input_ids"], batch["attention_mask"]), weight_VD, batch["labels"]
        )
        losses.append((float(total), count))
    model.train(was_training)
    return losses


def bits_per_byte(model: Any, chat: ChatFormat, path: Path) -> list[tuple[float, int]]:
    """Return (bits, bytes) of each window of a text; their sums' ratio is how well the model predicts it.

    Raises:
        DataError: the file can't be read, or is too short to say anything.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("{path}: {error}", path=path, error=error) from None
    found = []
    for part in (part for part in text.split("***") if part.strip()):
        ids = chat.text_ids(part.strip())
        for start in range(0, len(ids), WINDOW):
            window = ids[start : start + WINDOW]
            if len(window) > 1:
                (loss, _tokens), *_rest = answer_losses(model, [Example(tuple(window), 1, Pair("", ""))])
                found.append((loss / math.log(2), len(chat.tokenizer.decode(window[1:]).encode())))
    if not found:
        raise DataError("{path}: no text to measure", path=path)
    return found
