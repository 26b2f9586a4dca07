"""Everything that must be in hand before the first step: pairs, base, format, examples, adapter, plan."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from znatok.config import DataOptions, TrainConfig
from znatok.data.clean import normalised
from znatok.data.load import Dataset, read_pairs
from znatok.data.schema import Pair, shown_path
from znatok.data.split import Split, split
from znatok.errors import DataError, UsageError, _
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
    """Everything that must be in hand before the first step; ``own`` is the file of validation pairs, if any."""

    data: Dataset
    own: Dataset | None
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
    if config.train.shard_base and team.size == 1:
        raise UsageError(
            "--shard_base: one process has nobody to share the base with; start znatok train with torchrun (its plan:"
            " --dry_run)"
        )
    data = read(config.data.data_path, config)
    own = read(config.data.val_path, config) if config.data.val_path is not None else None
    parts = sides(data, own, config)
    loaded = load(config, stored)
    chat = choose_format(loaded.tokenizer, loaded.model.get_input_embeddings().weight)
    say(_("chat format: {name}, {reason}", name=chat.name, reason=chat.reason))
    train_set, validation_set = encode_both(parts, chat, config)
    model = inject(loaded.model, config.lora, config.train.seed)
    engine = choose_engine(loaded, model, config, train_set.examples, stored, team)
    if isinstance(engine, NotInt8):
        verdict, dtype = engine.verdict, str(loaded.dtype).removeprefix("torch.")
        del loaded, model  # before the next is read
        loaded = load_base(replace(config.model, dtype=dtype), say=say)
        model = inject(loaded.model, config.lora, config.train.seed)
        engine = choose_engine(loaded, model, config, train_set.examples, stored, team)
        assert isinstance(engine, TrainingEngine)
        engine = replace(engine, verdict=verdict)
    say(_("engine: {name}, {reason}", name=engine.name, reason=engine.reason))
    plan = count(train_set.examples, validation_set.examples, config.train, model, engine.computation, team)
    if not config.train.resume:
        plan = probe(plan, train_set.examples, validation_set.examples, model, engine.computation)
    return Prepared(data, own, loaded, chat, train_set.examples, validation_set.examples, model, engine, plan, team)


def read(path: str, config: TrainConfig) -> Dataset:
    """Read a file of pairs; say what there is to say about it, and each record that is left out."""
    data = read_pairs(Path(path), skip_bad=config.data.skip_bad)
    for note in (*data.notes, *map(str, data.problems)):
        warn(note)
    return data


def sides(data: Dataset, own: Dataset | None, config: TrainConfig) -> Split:
    """Return what is trained and what is validated on: the file of its own, or a share of the data split by fact.

    Raises:
        DataError: a question of the one stands in the other.
        UsageError: nothing is left to validate on, but an option needs it.
    """
    if own is not None:
        return Split(data.pairs, _own_side(data, own, config))
    parts = split(data.pairs, config.data.val_share, config.train.seed)
    if not parts.validation:
        _refuse_judging(config, "; ".join(parts.notes) or "--val_share 0")
    return parts


def _own_side(data: Dataset, own: Dataset, config: TrainConfig) -> tuple[Pair, ...]:
    path = shown_path(Path(str(config.data.val_path)))
    if config.data.val_share not in {0, DataOptions().val_share}:
        warn(
            _(
                "--val_share {share} has no effect beside --val_path {path}: all pairs of --data_path are trained",
                share=config.data.val_share,
                path=path,
            )
        )
    trained = {normalised(pair.prompt) for pair in data.pairs}
    for pair in own.pairs:
        if normalised(pair.prompt) in trained:
            raise DataError(
                "{path}:{line}: this question is trained on too; leave it out of one of the files",
                path=path,
                line=pair.line,
            )
    return own.pairs


def _refuse_judging(config: TrainConfig, why: str) -> None:
    """Raise UsageError where the validation loss is to decide something and there is none."""
    flag = "--keep best" if config.train.keep == "best" else "--early_stopping" if config.train.early_stopping else ""
    if flag:
        raise UsageError(
            "{flag} needs validation pairs, and there are none ({why}); name some with --val_path, or leave it out",
            flag=flag,
            why=why,
        )


def load(config: TrainConfig, stored: dict[str, Any] | None) -> Loaded:
    """Load the base: in the number format a resumed run began with, in float where it will be split."""
    options, split = config.model, config.train.shard_base
    in_float = split or (stored is not None and stored.get("name") != "int8")
    if in_float and options.dtype == "auto":
        options = replace(options, dtype=str(choose_dtype("auto").dtype).removeprefix("torch."))
    loaded = load_base(options, training=True, say=say)
    if not split:  # else each layer goes there by itself, when most of it is with others
        loaded.model.to(device())
    return loaded


def encode_both(parts: Split, chat: ChatFormat, config: TrainConfig) -> tuple[Encoded, Encoded]:
    """Encode both sides of the split, reporting every change."""
    rule = EncodeRule(config.data.system, config.data.max_length, config.data.overlong)
    for note in parts.notes:
        say(note)
    path = config.data.data_path
    return _encode(path, parts.train, chat, rule), _encode(config.data.val_path or path, parts.validation, chat, rule)


def _encode(path: str, side: Sequence[Pair], chat: ChatFormat, rule: EncodeRule) -> Encoded:
    """Encode pairs of a file; whatever is said of a line says in which file it stands."""
    name = shown_path(Path(path))
    try:
        encoded = encode_pairs(side, chat, rule)
    except DataError as error:
        raise DataError("{path}, {why}", path=name, why=error) from error
    for note in encoded.notes:
        warn(f"{name}, {note}")
    return encoded
