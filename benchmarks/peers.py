"""Sides of the training benchmark that are not znatok: the stock recipe, and TRL in its best setting for a CPU.

Each trains the same examples of the same base; what is timed are optimiser steps, what is counted are text tokens.
"""

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer, TrainerCallback, TrainingArguments

from znatok.config import LANGUAGE_NEUTRAL_SYSTEM, ModelOptions
from znatok.data.load import read_pairs
from znatok.model.adapters import TARGETS
from znatok.model.load import load_base
from znatok.tokens.chat import choose_format
from znatok.tokens.collate import IGNORE
from znatok.tokens.encode import EncodeRule, Example, encode_pairs


class Clock(TrainerCallback):
    """Times optimiser steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.first_step_ended = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start a step's clock."""
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop it."""
        self.seconds.append(time.perf_counter() - self._started)
        self.first_step_ended = self.first_step_ended or time.perf_counter()


def prepared(model: str, data: Any, dtype: str) -> tuple[Any, list[Example]]:
    """Return the base in float and all examples; the peers draw their batches from them by chance, as they do."""
    loaded = load_base(ModelOptions(model_name=model, dtype=dtype))
    chat = choose_format(loaded.tokenizer, loaded.model.get_input_embeddings().weight)
    return loaded, list(encode_pairs(read_pairs(data).pairs, chat, EncodeRule(LANGUAGE_NEUTRAL_SYSTEM, 512)).examples)


def arguments(steps: int, **more: Any) -> dict[str, Any]:
    """Return what all sides share: batch 4, AdamW at 2e-4, nothing written or reported."""
    return {
        "output_dir": "unused",
        "per_device_train_batch_size": 4,
        "max_steps": steps,
        "learning_rate": 2e-4,
        "seed": 42,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1000,
        "disable_tqdm": True,
        "use_cpu": True,
    } | more


def stock(model: str, data: Any, dtype: str, steps: int) -> dict[str, Any]:
    """Train as the historical script does: Trainer and PEFT, padded batches, dropout 0.1, logits of every position."""
    loaded, examples = prepared(model, data, dtype)
    adapted = get_peft_model(
        loaded.model,
        LoraConfig(r=8, lora_alpha=32, lora_dropout=0.1, target_modules=list(TARGETS), task_type="CAUSAL_LM"),
    )
    tokens: list[int] = []

    def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
        tokens.append(sum(len(row["example"].ids) for row in rows))
        ids = [torch.tensor(row["example"].ids) for row in rows]
        labels = [i.clone() for i in ids]
        for label, row in zip(labels, rows, strict=True):
            label[: row["example"].answer_start] = IGNORE
        return {
            "input_ids": pad_sequence(ids, batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE),
            "attention_mask": pad_sequence([torch.ones_like(i) for i in ids], batch_first=True),
        }

    clock = Clock()
    trainer = Trainer(
        model=adapted,
        args=TrainingArguments(**arguments(steps, remove_unused_columns=False)),
        train_dataset=[{"example": example} for example in examples],
        data_collator=collate,
        callbacks=[clock],
    )
    trainer.train()
    return {"step_seconds": clock.seconds, "step_tokens": tokens[: len(clock.seconds)], "first": clock.first_step_ended}


def trl(model: str, data: Any, steps: int) -> dict[str, Any]:
    """Train with TRL's SFTTrainer: bfloat16 base, like lengths together, no dropout, no checkpointing."""
    warnings.simplefilter("ignore")
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    loaded, examples = prepared(model, data, "bfloat16")
    rows = [
        {"input_ids": list(e.ids), "completion_mask": [0] * e.answer_start + [1] * e.answer_tokens} for e in examples
    ]
    clock, tokens = Clock(), []
    settings = arguments(steps, bf16=False, gradient_checkpointing=False, train_sampling_strategy="group_by_length")
    trainer = SFTTrainer(
        model=loaded.model,
        args=SFTConfig(**settings, completion_only_loss=True, max_length=512),
        train_dataset=Dataset.from_list(rows),
        processing_class=loaded.tokenizer,
        peft_config=LoraConfig(
            r=8, lora_alpha=32, lora_dropout=0.0, target_modules=list(TARGETS), task_type="CAUSAL_LM"
        ),
        callbacks=[clock],
    )
    inner: Callable[..., Any] = trainer.data_collator

    def counted(batch: list[Any]) -> Any:
        tokens.append(sum(len(row["input_ids"]) for row in batch))
        return inner(batch)

    trainer.data_collator = counted
    trainer.train()
    return {"step_seconds": clock.seconds, "step_tokens": tokens[: len(clock.seconds)], "first": clock.first_step_ended}
