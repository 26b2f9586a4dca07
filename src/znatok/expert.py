"""A base model and, where there is one, its adapter, loaded once and ready to answer in either voice."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from znatok.config import ModelOptions
from znatok.errors import ModelError, UsageError, _
from znatok.generate.engine import Engine, TorchEngine
from znatok.logs import say
from znatok.model.adapters import attach, base_only
from znatok.model.load import Loaded, load_base
from znatok.model.machine import device
from znatok.runs import Run
from znatok.tokens.chat import ChatFormat, choose_format


class Voice(StrEnum):
    """Which of the two answers."""

    BASE = "base"
    TUNED = "tuned"


@dataclass(frozen=True)
class Expert:
    """One loaded model.

    Attributes:
        loaded: the base.
        model: the base, or PEFT's wrapper of it when there is an adapter.
        chat: the format it was trained in, or the one that fits.
        system: the system message it was trained with.
        engine: what answers.
        run: where the adapter stands, or None.
    """

    loaded: Loaded
    model: Any
    chat: ChatFormat
    system: str
    engine: Engine
    run: Run | None

    @property
    def voices(self) -> tuple[Voice, ...]:
        """Return the voices there are; the tuned one last."""
        return (Voice.BASE, Voice.TUNED) if self.run is not None else (Voice.BASE,)

    @contextlib.contextmanager
    def speaking(self, voice: Voice) -> Iterator[Engine]:
        """Lend the engine with the adapter on or off; the base voice is bit-equal to the bare base.

        Raises:
            UsageError: the tuned voice is asked for and there is no adapter.
        """
        if voice not in self.voices:
            raise UsageError("no adapter is loaded: name a trained run with --model_dir")
        if voice is Voice.BASE and self.run is not None:
            with base_only(self.model):
                yield self.engine
        else:
            yield self.engine


def open_expert(options: ModelOptions, run: Run | None, system: str) -> Expert:
    """Load a base model and a run's adapter.

    Args:
        options: the base; ``model_name`` may be empty when the run's manifest names it.
        run: a run directory or any PEFT adapter directory; None for the bare base.
        system: system message where no run says which one it was trained with.

    Raises:
        ModelError: the run was trained on another base, or holds no adapter.
    """
    manifest = run.read_manifest() if run else {}
    trained_on = manifest.get("base", {})
    name = options.model_name or trained_on.get("name")
    if not name:
        raise ModelError("{path}: no manifest.json says which base it fits; name it with --model_name", path=_path(run))
    if run and not run.has_adapter():
        raise ModelError("{path}: no adapter_model.safetensors; train first, or go on with --resume", path=run.path)
    loaded = load_base(ModelOptions(model_name=name, dtype=options.dtype), say=say)
    loaded.model.to(device())
    if run and trained_on.get("sha256") not in {None, loaded.source.sha256}:
        raise ModelError(
            "{path} was trained on {trained}, this is {given}: their weights differ; use the base it was trained on",
            path=run.path,
            trained=f"{trained_on['name']} ({trained_on['sha256'][:12]})",
            given=f"{loaded.source.name} ({(loaded.source.sha256 or '?')[:12]})",
        )
    trained = manifest.get("chat", {})
    weight = loaded.model.get_input_embeddings().weight
    chat = choose_format(loaded.tokenizer, weight, trained.get("format", "auto"))
    model = attach(loaded.model, run.path) if run else loaded.model
    say(
        _(
            "{name}, {adapter}, {dtype}, engine {engine}",
            name=loaded.source.name,
            adapter=run.path if run else _("no adapter"),
            dtype=str(loaded.dtype).removeprefix("torch."),
            engine=TorchEngine.name,
        ),
        style="dim",
    )
    return Expert(loaded, model, chat, trained.get("system", system), TorchEngine(model, chat), run)


def _path(run: Run | None) -> object:
    return run.path if run else "--model_name"
