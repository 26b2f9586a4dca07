"""A base model and, where there is one, its adapter, loaded once and ready to answer in either voice."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

from znatok.config import ModelOptions
from znatok.errors import ModelError, UsageError, _
from znatok.logs import say
from znatok.runs import Run

if TYPE_CHECKING:  # heavy libraries are imported where they are needed: a fast chat starts without PEFT
    from znatok.generate.choose import Choice, GgufBase
    from znatok.generate.engine import Engine
    from znatok.generate.llamacpp import LlamaServer
    from znatok.model.load import Loaded
    from znatok.tokens.chat import ChatFormat


class Voice(StrEnum):
    """Which of the two answers."""

    BASE = "base"
    TUNED = "tuned"


class Expert:
    """One model that answers.

    Attributes:
        run: where the adapter stands, or None.
        system: the system message it was trained with.
        chat: the format it was trained in, or the one that fits.
        engine: the name of what answers, ``torch`` or ``llamacpp``.
        base_name: the base's name, as the user or the run gave it.
        base_sha256: what identifies the base's weights.
    """

    chat: "ChatFormat"
    base_name: str
    base_sha256: str

    def __init__(
        self, options: ModelOptions, run: Run | None, system: str, choice: "Choice", before: "Expert | None" = None
    ) -> None:
        """Load a base and a run's adapter, or put the adapter on the base in torch that another expert has."""
        manifest = run.read_manifest() if run else {}
        self._options = options
        self._choice = choice
        self._server: LlamaServer | None = None
        self._engines: dict[Voice, Engine] = {}
        self.run = run
        self.engine = choice.engine
        trained = manifest.get("chat", {})
        self.system: str = trained.get("system", system)
        asked = trained.get("format", "auto")
        if choice.base is not None:
            self._open_file(choice.base, asked)
        else:
            if before is not None and run is not None:
                self._take_over(before, run)
            self._open_model(asked)

    def _take_over(self, before: "Expert", run: Run) -> None:
        """Take another expert's base instead of loading it a second time; it is left as it was where this fails."""
        from znatok.model.adapters import exchange

        refuse_other_base(run, before.base_name, before.base_sha256)
        self.model = exchange(before.model, run.path)
        self.loaded = before.loaded

    def _open_file(self, base: "GgufBase", asked: str) -> None:
        """Start llama.cpp; while it reads the model, find the tokenizer and the format."""
        from znatok.generate.choose import file_format
        from znatok.generate.engine import sayable
        from znatok.generate.llamacpp import LlamaCppEngine, LlamaServer

        self.base_name, self.base_sha256 = base.name, base.sha256
        header = base.header
        context = header.integer(f"{header.text('general.architecture')}.context_length", high=1 << 24)
        adapters = [self._choice.adapter] if self._choice.adapter else []
        self._server = LlamaServer(header.path, adapters, context)
        self.chat = file_format(base, asked)
        banned = sorted(set(range(len(header.metadata["tokenizer.ggml.tokens"]))) - sayable(self.chat))
        for voice in self.voices:
            adapter = 0 if voice is Voice.TUNED else None
            self._engines[voice] = LlamaCppEngine(self._server, self.chat, context, banned, adapter=adapter)
        self._server.wait()

    def _open_model(self, asked: str) -> None:
        from znatok.generate.torch_engine import TorchEngine
        from znatok.tokens.chat import choose_format

        self.base_name, self.base_sha256 = self.loaded.source.name, self.loaded.source.sha256
        self.chat = choose_format(self.loaded.tokenizer, self.loaded.model.get_input_embeddings().weight, asked)
        # an adapter that does not fit is an error now, not at the first answer
        self._engines = dict.fromkeys(self.voices, TorchEngine(self.model, self.chat))

    @cached_property
    def loaded(self) -> "Loaded":
        """The base in torch; where llama.cpp answers, it is loaded when somebody asks for it."""
        from znatok.model.load import load_base
        from znatok.model.machine import device

        loaded = load_base(self._options, say=say)
        loaded.model.to(device())
        refuse_other_base(self.run, loaded.source.name, loaded.source.sha256)
        return loaded

    @cached_property
    def model(self) -> Any:
        """The base in torch, or PEFT's wrapper of it when there is an adapter; loaded like :attr:`loaded`."""
        from znatok.model.adapters import attach

        return attach(self.loaded.model, self.run.path) if self.run else self.loaded.model

    def with_run(self, run: Run) -> "Expert":
        """Return the same base with another run's adapter, computed by the same engine; this one is over then.

        Raises:
            ModelError: the run was trained on another base, or holds no adapter. This one stays open then.
            DataError: its manifest is damaged; likewise.
        """
        before = self if self._server is None else None  # llama.cpp reads a file again in no time
        other = open_expert(self._options, run, self.system, self.engine, before=before)
        self.close()
        return other

    def close(self) -> None:
        """End llama.cpp's process, where there is one."""
        if self._server is not None:
            self._server.close()

    @property
    def voices(self) -> tuple[Voice, ...]:
        """Return the voices there are; the tuned one last."""
        return (Voice.BASE, Voice.TUNED) if self.run is not None else (Voice.BASE,)

    @contextlib.contextmanager
    def speaking(self, voice: Voice) -> Iterator["Engine"]:
        """Lend the engine that speaks with this voice; the base voice is bit-equal to the bare base.

        Raises:
            UsageError: the tuned voice is asked for and there is no adapter.
        """
        self._refuse_missing(voice)
        if self._server is not None:
            yield self._engines[voice]
        else:
            with self.weights(voice):
                yield self._engines[voice]

    @contextlib.contextmanager
    def weights(self, voice: Voice) -> Iterator[Any]:
        """Lend the torch model with the adapter on or off; UsageError like :meth:`speaking`."""
        self._refuse_missing(voice)
        if voice is Voice.BASE and self.run is not None:
            from znatok.model.adapters import base_only

            with base_only(self.model):
                yield self.model
        else:
            yield self.model

    def _refuse_missing(self, voice: Voice) -> None:
        if voice not in self.voices:
            raise UsageError("no adapter is loaded: name a trained run with --model_dir")


def open_expert(
    options: ModelOptions,
    run: Run | None,
    system: str,
    engine: str = "auto",
    *,
    many: bool = False,
    before: Expert | None = None,
    seed: int | None = None,
) -> Expert:
    """Load a base model and a run's adapter.

    Args:
        options: the base; ``model_name`` may be empty when the run's manifest names it.
        run: a run directory or any PEFT adapter directory; None for the bare base.
        system: system message where no run says which one it was trained with.
        engine: what answers: ``torch``, ``llamacpp``, or ``auto``: llama.cpp where it fits.
        many: whether many questions will be asked at once; ``auto`` then prefers torch where int8 is fast.
        before: an expert on the same base, in torch, that is over then; the base is not loaded again.
        seed: of the answers, to be said beside what answers.

    Raises:
        ModelError: the run was trained on another base, or holds no adapter.
        DataError: its manifest is damaged.
        UsageError: llama.cpp is asked for and can't answer.
        SystemFault: the same, because it is not installed.
    """
    name = options.model_name or (run.read_manifest() if run else {}).get("base", {}).get("name")
    if not name:
        where = run.path if run else "--model_name"
        raise ModelError("{path}: no manifest.json says which base it fits; name it with --model_name", path=where)
    if run and not run.has_adapter():
        raise ModelError("{path}: no adapter_model.safetensors; train first, or go on with --resume", path=run.path)
    options = replace(options, model_name=name)
    if many:
        options, engine = best_for_many(options, engine)
    from znatok.model.machine import device

    choice = _choose(engine, options, run)
    expert = Expert(options, run, system, choice, before)
    opened = _(
        "{name}, {adapter}, {dtype}, {device}, engine {engine}",
        name=expert.base_name,
        adapter=run.path if run else _("no adapter"),
        dtype=choice.base.kind if choice.base else expert.loaded.format,
        device="cpu" if choice.base else device(),  # llama.cpp is built for the processor
        engine=expert.engine + (f" ({choice.reason})" if choice.reason else ""),
    )
    say(opened if seed is None else f"{opened}, {_('seed: {seed}', seed=seed)}", style="dim")
    return expert


def best_for_many(options: ModelOptions, engine: str) -> tuple[ModelOptions, str]:
    """Return number format and engine for many questions at once.

    Where both are left open and this machine computes the model in int8, that is it: 32 answers at once are faster than
    one by one.
    """
    from znatok.model.load import int8_obstacle, resolve

    open_to_all = engine == "auto" and options.dtype == "auto"
    if open_to_all and not int8_obstacle(resolve(options.model_name, say=say)):
        return replace(options, dtype="int8"), "torch"
    return options, engine


def _choose(engine: str, options: ModelOptions, run: Run | None) -> "Choice":
    from znatok.generate.choose import Choice, choose, gguf_base

    if engine == "torch":
        return Choice()
    base = gguf_base(options.model_name, say)
    if base is not None:
        refuse_other_base(run, base.name, base.sha256)

    import torch

    return choose(engine, options, base, run.path if run else None, cuda=torch.cuda.is_available())


def refuse_other_base(run: Run | None, name: str, sha256: str | None) -> None:
    """Raise ModelError where the run's manifest names other weights."""
    trained_on = run.read_manifest().get("base", {}) if run else {}
    if run and trained_on.get("sha256") not in {None, sha256}:
        raise ModelError(
            "{path} was trained on {trained}, this is {given}: their weights differ; use the base it was trained on",
            path=run.path,
            trained=f"{trained_on.get('name', '?')} ({trained_on['sha256'][:12]})",
            given=f"{name} ({(sha256 or '?')[:12]})",
        )
