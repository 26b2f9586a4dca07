"""Which engine trains: the fast one in int8 or in float, or transformers' own layers; decided, and said why."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from znatok.config import TrainConfig
from znatok.errors import UsageError, _
from znatok.fast.compiler import build
from znatok.fast.guard import Verdict, judge, with_floats
from znatok.logs import say, warn
from znatok.model.backbone import build_backbone, obstacle
from znatok.model.load import Loaded
from znatok.model.machine import device
from znatok.model.quantised import float_reader
from znatok.model.score import head_weight
from znatok.tokens.encode import Example
from znatok.tokens.packing import pack
from znatok.train.batches import LengthGroupedBatches
from znatok.train.computation import Computation, FastPacked, Padded, Sharded
from znatok.train.shards import shard
from znatok.train.team import ALONE, Team

JUDGED_TOKENS = 128  # of the first batch, at least: about ten seconds for 1.5 billion parameters on two cores
SMALL_PACK = 256  # tokens, with --low_memory


@dataclass(frozen=True, kw_only=True)
class TrainingEngine:
    """What computes the run, and why.

    Attributes:
        computation: the engine.
        name: ``int8``, ``bfloat16`` or ``float32`` of the fast engine, or ``transformers``.
        reason: in words.
        verdict: how int8 compared with float on the first batch, even where float trains because of it; None where
            there was nothing to compare.
        floats: groups of projections that are computed in float within an int8 run.
    """

    computation: Computation
    name: str
    reason: str
    verdict: Verdict | None = None
    floats: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return what the manifest keeps."""
        return {
            "name": self.name,
            "reason": self.reason,
            "float_groups": list(self.floats),
            "guard": self.verdict.to_json() if self.verdict else None,
        }


@dataclass(frozen=True)
class NotInt8:
    """The base is in int8 and must be loaded in float: int8 has not earned it, or nothing can compute it."""

    verdict: Verdict | None = None


def choose_engine(
    loaded: Loaded,
    model: Any,
    config: TrainConfig,
    train: Sequence[Example],
    stored: dict[str, Any] | None,
    team: Team = ALONE,
) -> TrainingEngine | NotInt8:
    """Return what computes the run.

    Args:
        loaded: the base, int8 or float.
        model: the same with fresh adapters.
        config: of the run.
        train: the examples; the first batch is the guard's.
        stored: the manifest's ``engine`` of a run being resumed, whose decisions are kept; None for a new run.
        team: over which ``--shard_base`` splits the base.
    """
    why = _("CUDA") if device().type == "cuda" else obstacle(model)
    if config.train.shard_base:
        why = _("the base is split over {count} processes", count=team.size)
    if why and loaded.int8:
        if config.model.dtype == "int8":
            raise UsageError("--dtype int8: {why}; use --dtype auto", why=why)
        return NotInt8()
    if why:
        if config.train.low_memory:
            warn(_("--low_memory has no effect: {why}", why=why))
        computation = _sharded(model, team) if config.train.shard_base else Padded(model)
        return TrainingEngine(computation=computation, name="transformers", reason=why)
    backbone = build_backbone(model, dropout=config.lora.lora_dropout)
    limit = min(config.train.pack_tokens, SMALL_PACK) if config.train.low_memory else config.train.pack_tokens
    packed = FastPacked(backbone, loaded.head or head_weight(model), limit)
    kernels = _("compiled kernels") if build().library else _("no compiled kernels: {why}", why=build().reason)
    if not loaded.int8:
        name = str(loaded.dtype).removeprefix("torch.")
        return TrainingEngine(computation=packed, name=name, reason=kernels)
    read = float_reader(loaded.source, loaded.dtype)
    if stored is not None:
        floats = tuple(stored.get("float_groups", ()))
        packed = replace(packed, backbone=with_floats(backbone, floats, read))
        return TrainingEngine(computation=packed, name="int8", reason=kernels, floats=floats)
    say(_("comparing int8 with float on the first batch"))
    chosen, verdict = judge(backbone, pack(_judged(config, train)), (packed.head, head_weight(model)), read)
    _report(verdict)
    if not verdict.passed:
        if config.model.dtype != "int8":
            return NotInt8(verdict)
        warn(_("int8 is used all the same, as --dtype int8 asks"))
    floats = verdict.floats if verdict.passed else ()  # what is stated is what computes, for a resumed run goes by it
    packed = replace(packed, backbone=chosen)
    return TrainingEngine(computation=packed, name="int8", reason=kernels, verdict=verdict, floats=floats)


def _sharded(model: Any, team: Team) -> Sharded:
    shard(model, team)
    return Sharded(model, team)


def _judged(config: TrainConfig, train: Sequence[Example]) -> list[Example]:
    """Return the first examples that will be trained on, as many as the guard needs."""
    order = LengthGroupedBatches(
        [len(example.ids) for example in train], config.train.per_device_train_batch_size, config.train.seed
    )
    taken: list[Example] = []
    for index in next(iter(order)):
        taken.append(train[index])
        if sum(len(example.ids) for example in taken) >= JUDGED_TOKENS:
            break
    return taken


def _report(verdict: Verdict) -> None:
    text = _(
        "int8 against float: loss {difference:+.2f} %, cosine of the gradient {cosine:.4f} ({worst:.4f} in {group})",
        difference=100 * verdict.difference,
        cosine=verdict.cosine,
        worst=verdict.worst[0],
        group=verdict.worst[1],
    )
    if verdict.passed and not verdict.floats:
        say(_("{text}: trained in int8", text=text))
    elif verdict.passed:
        say(_("{text}: trained in int8, {count} groups of projections in float", text=text, count=len(verdict.floats)))
    else:
        warn(_("{text}: not close enough", text=text))
