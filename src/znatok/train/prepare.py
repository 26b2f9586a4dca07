"""Everything that must be in hand before the first step: pairs, base, format, examples, adapter, plan."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from znatok.config import TrainConfig
from znatok.data.load import Dataset, read_pairs
from znatok.data.split import Split, split
from znatok.errors import _
from znatok.logs import say, warn
from znatok.model.adapters import inject
from znatok.model.load import Loaded, load_base
from znatok.model.machine import device
from znatok.tokens.chat import ChatFormat, choose_format
from znatok.tokens.encode import Encoded, EncodeRule, Example, encode_pairs
from znatok.train.plan import Plan, count, probe


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that must be in hand before the first step."""

    data: Dataset
    loaded: Loaded
    chat: ChatFormat
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    model: Any
    plan: Plan


def prepare(config: TrainConfig) -> Prepared:
    """Read, split, load, encode, inject and plan; nothing is written."""
    data = read_pairs(Path(config.data.data_path), skip_bad=config.data.skip_bad)
    for note in (*data.notes, *map(str, data.problems)):
        warn(note)
    parts = split(data.pairs, config.data.val_share, config.train.seed)
    loaded = load_base(config.model, say=say)
    loaded.model.to(device())
    chat = choose_format(loaded.tokenizer, loaded.model.get_input_embeddings().weight)
    say(_("chat format: {name}, {reason}", name=chat.name, reason=chat.reason))
    train_set, validation_set = encode_both(parts, chat, config)
    model = inject(loaded.model, config.lora, config.train.seed)
    plan = count(train_set.examples, validation_set.examples, config.train, model)
    if not config.train.resume:
        batch = config.train.per_device_train_batch_size
        plan = probe(plan, train_set.examples, validation_set.examples, model, batch)
    return Prepared(data, loaded, chat, train_set.examples, validation_set.examples, model, plan)


def encode_both(parts: Split, chat: ChatFormat, config: TrainConfig) -> tuple[Encoded, Encoded]:
    """Encode both sides of the split, reporting every change."""
    rule = EncodeRule(config.data.system, config.data.max_length, config.data.overlong)
    for note in parts.notes:
        say(note)
    sides = [encode_pairs(side, chat, rule) for side in (parts.train, parts.validation)]
    for side in sides:
        for note in side.notes:
            warn(note)
    return sides[0], sides[1]
