"""Everything that must be in hand before the first step: pairs, base, format, examples, adapter, plan."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from znatok.config import TrainConfig
from znatok.data.clean import normalised
from znatok.data.load import Dataset, read_pairs
from znatok.data.split import Split, split
from znatok.errors import DataError, _
from znatok.logs import say, warn
from znatok.model.adapters import inject
from znatok.model.load import Loaded, choose_dtype, load_base
from znatok.model.machine import device
from znatok.tokens.chat import ChatFormat, choose_format
from znatok.tokens.encode import Encoded, EncodeRule, Example, encode_pairs
from znatok.train.engine import NotInt8, TrainingEngine, choose_engine
from znatok.train.plan import Plan, count, probe
from znatok.train.team import ALONE, Team


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that must be in hand before the first step."""

    data: Dataset
    loaded: Loaded
    chat: ChatFormat
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    model: Any
    engine: TrainingEngine
    plan: Plan
    team: Team = ALONE


def prepare(config: TrainConfig, stored: dict[str, Any] | None = None, team: Team = ALONE) -> Prepared:
    """Read, split, load, encode, inject, choose the engine and plan; nothing is written but caches.

    Args:
        config: of the run.
        stored: the manifest's ``engine`` of the run to be resumed; None for a new run.
        team: the processes that train together.
    """
    data = read_pairs(Path(config.data.data_path), skip_bad=config.data.skip_bad)
    for note in (*data.notes, *map(str, data.problems)):
        warn(note)
    parts = sides(data, config)
    loaded = load(config, stored)
    chat = choose_format(loaded.tokenizer, loaded.model.get_input_embeddings().weight)
    say(_("chat format: {name}, {reason}", name=chat.name, reason=chat.reason))
    train_set, validation_set = encode_both(parts, chat, config)
    model = inject(loaded.model, config.lora, config.train.seed)
    engine = choose_engine(loaded, model, config, train_set.examples, stored)
    if isinstance(engine, NotInt8):
        verdict, dtype = engine.verdict, str(loaded.dtype).removeprefix("torch.")
        del loaded, model  # before the next is read
        loaded = load_base(replace(config.model, dtype=dtype), say=say)
        model = inject(loaded.model, config.lora, config.train.seed)
        engine = choose_engine(loaded, model, config, train_set.examples, stored)
        assert isinstance(engine, TrainingEngine)
        engine = replace(engine, verdict=verdict)
    say(_("engine: {name}, {reason}", name=engine.name, reason=engine.reason))
    plan = count(train_set.examples, validation_set.examples, config.train, model, engine.computation, team)
    if not config.train.resume:
        plan = probe(plan, train_set.examples, validation_set.examples, model, engine.computation)
    return Prepared(data, loaded, chat, train_set.examples, validation_set.examples, model, engine, plan, team)


def sides(data: Dataset, config: TrainConfig) -> Split:
    """Return what is trained and what is validated on: the file of its own, or a share of the data split by fact."""
    if config.data.val_path is None:
        return split(data.pairs, config.data.val_share, config.train.seed)
    validation = read_pairs(Path(config.data.val_path), skip_bad=config.data.skip_bad)
    trained = {normalised(pair.prompt) for pair in data.pairs}
    for pair in validation.pairs:
        if normalised(pair.prompt) in trained:
            raise DataError(
                "{path}:{line}: this question is trained on too; leave it out of one of the files",
                path=config.data.val_path,
                line=pair.line,
            )
    return Split(data.pairs, validation.pairs, validation.notes)


def load(config: TrainConfig, stored: dict[str, Any] | None) -> Loaded:
    """Load the base; a run that is resumed goes on in the number format it began with."""
    options = config.model
    if stored is not None and options.dtype == "auto" and stored.get("name") != "int8":
        options = replace(options, dtype=str(choose_dtype("auto").dtype).removeprefix("torch."))
    loaded = load_base(options, training=True, say=say)
    loaded.model.to(device())
    return loaded


def encode_both(parts: Split, chat: ChatFormat, config: TrainConfig) -> tuple[Encoded, Encoded]:
    """Encode both sides of the split, reporting every change."""
    rule = EncodeRule(config.data.system, config.data.max_length, config.data.overlong)
    for note in parts.notes:
        say(note)
    encoded = [encode_pairs(side, chat, rule) for side in (parts.train, parts.validation)]
    for side in encoded:
        for note in side.notes:
            warn(note)
    return encoded[0], encoded[1]
