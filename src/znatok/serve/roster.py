"""The models a server offers: one base, and every adapter for it in a folder of runs, all in memory once."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from znatok import __version__
from znatok.config import ModelOptions
from znatok.errors import DataError, ModelError, UsageError, _
from znatok.expert import best_for_many, refuse_other_base
from znatok.files import sha256
from znatok.generate.choose import Choice, GgufBase, choose, file_format, gguf_base
from znatok.generate.engine import TokenEngine, sayable
from znatok.generate.llamacpp import LlamaCppEngine, LlamaServer
from znatok.generate.torch_engine import TorchEngine
from znatok.logs import say, warn
from znatok.model.lora_gguf import CONFIG, WEIGHTS, lora_gguf
from znatok.model.machine import machine
from znatok.runs import Run
from znatok.tokens.chat import ChatFormat


@dataclass(frozen=True, eq=False)
class Offered:
    """One model id.

    Attributes:
        name: the id.
        created: when it was trained, Unix time; when the server started for the base.
        system: the system message it was trained with, for requests that bring none.
        traits: what its answers depend on, besides what a request says or the server has for one that leaves it open.
        engine: what computes it.
        speaking: switches its adapter on, and all others off, while a torch model computes.
    """

    name: str
    created: int
    system: str
    traits: dict[str, Any]
    engine: TokenEngine
    speaking: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext


@dataclass(frozen=True)
class Roster:
    """All of them.

    Attributes:
        models: by id, the base first.
        engine: ``torch`` or ``llamacpp``.
        format: number format of the base's weights.
        close: ends what was started for them.
    """

    models: dict[str, Offered]
    engine: str
    format: str
    close: Callable[[], None]

    @property
    def in_torch(self) -> bool:
        """Tell whether torch answers: many at once, and saying how likely its tokens were where that is asked."""
        return self.engine == TorchEngine.name


def find_runs(folder: Path) -> list[Run]:
    """Return the runs in a folder that hold an adapter, by name; the folder itself where it is one."""
    if Run(folder).has_adapter():
        return [Run(folder)]
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    return [Run(path) for path in found if Run(path).has_adapter()]


def open_roster(
    options: ModelOptions,
    folder: Path | None,
    system: str,
    engine: str = "auto",
    context: int = 4096,
    *,
    many: bool = True,
) -> Roster:
    """Load a base and the adapters for it.

    Args:
        options: the base; ``model_name`` may be empty where the newest run in ``folder`` names it.
        folder: a folder of runs or one run; what in it is damaged or was trained on another base is left out with a
            warning.
        system: system message of the bare base.
        engine: ``torch``, ``llamacpp``, or ``auto``: int8 in torch where that is fast, else llama.cpp where it fits.
        context: tokens of a dialogue and its answer together, at most.
        many: whether many will ask at once; where not, ``auto`` is what it is for a chat: llama.cpp where it fits.

    Raises:
        UsageError: there is no such folder, nothing names the base, or llama.cpp is asked for and can't answer.
        ModelError: the base can't be loaded; the one run that was named does not fit it.
        DataError: the manifest of the one run that was named is damaged.
        SystemFault: llama.cpp is asked for and not installed.
    """
    if folder is not None and not folder.is_dir():
        raise UsageError("--runs {path}: no such folder; leave the flag out to serve the base alone", path=folder)
    runs = find_runs(folder) if folder is not None else []
    alone = [run.path for run in runs] == [folder]
    if not options.model_name:
        options = ModelOptions(model_name=_named_base(runs, folder), dtype=options.dtype)
    if many:
        options, engine = best_for_many(options, engine)
    base = gguf_base(options.model_name, say) if engine != "torch" else None
    choice = choose(engine, options, base, None, cuda=_cuda()) if engine != "torch" else Choice()
    opening = _InLlama(choice.base, context) if choice.base is not None else _InTorch(options, context)
    fitting = [run for run in runs if opening.takes(run, alone=alone)]
    return opening.roster(fitting, system)


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _named_base(runs: Sequence[Run], folder: Path | None) -> str:
    named = []
    for run in runs:
        with contextlib.suppress(DataError) if len(runs) > 1 else contextlib.nullcontext():  # takes() tells of it
            named.append((run.path.stat().st_mtime, run.read_manifest().get("base", {}).get("name")))
    newest = max(((when, name) for when, name in named if name), default=None)
    if newest is None:
        raise UsageError("no run in {folder} names its base; name one with --model_name", folder=folder or "--runs")
    return str(newest[1])


def _chat_of(run: Run | None) -> dict[str, Any]:
    """Return what a run's manifest says of the chat it was trained for."""
    return dict(run.read_manifest().get("chat", {})) if run is not None else {}


class _Opening:
    """A base that was found, and the adapters that fit it."""

    library: ClassVar[str]  # what computes
    name: str
    sha256: str
    context: int

    def takes(self, run: Run, *, alone: bool) -> bool:
        """Put a run's adapter on the base; where it can't be, say so, or raise where it is all there is."""
        try:
            refuse_other_base(run, self.name, self.sha256)
            self.put_on(run)
        except (DataError, ModelError) as error:
            if alone:
                raise
            warn(_("left out: {why}", why=str(error)))
            return False
        return True

    def put_on(self, run: Run) -> None:
        """Put the run's adapter on."""
        raise NotImplementedError

    def roster(self, runs: Sequence[Run], system: str) -> Roster:
        """Return what is offered."""
        raise NotImplementedError

    def offered(
        self, run: Run | None, system: str, engine: TokenEngine, kind: str, speaking: Callable[[], Any]
    ) -> Offered:
        """Describe one model."""
        adapter = [run.path / file for file in (WEIGHTS, CONFIG)] if run is not None else []
        base = Path(self.name).name.removesuffix(".gguf")
        name = run.path.resolve().name if run is not None else base
        chat = {"format": "auto", "system": system} | _chat_of(run)
        here = machine()
        traits = {
            "base": self.sha256,
            "adapter": [sha256(file) for file in adapter],
            "chat": chat,
            "context": self.context,
            "engine": engine.name,
            "format": kind,
            "versions": {"znatok": __version__, self.library: version(self.library)},
            "machine": {part: here[part] for part in ("processor", "cuda", "threads")},
        }
        return Offered(
            name=f"{name}-tuned" if run is not None and name == base else name,
            created=int(adapter[0].stat().st_mtime if adapter else time.time()),
            system=chat["system"],
            traits=traits,
            engine=engine,
            speaking=speaking,
        )


class _InTorch(_Opening):
    """Everything in this process."""

    library = "torch"

    def __init__(self, options: ModelOptions, context: int) -> None:
        from znatok.model.load import load_base
        from znatok.model.machine import device

        self._loaded = load_base(options, say=say)
        self._loaded.model.to(device())
        self._model: Any = self._loaded.model
        self.context = context
        self._adapters: dict[Path, str] = {}
        self._formats: dict[str, ChatFormat] = {}
        self.name, self.sha256 = self._loaded.source.name, self._loaded.source.sha256

    def put_on(self, run: Run) -> None:
        from znatok.model.adapters import attach, attach_another

        self._format(run)  # one that this base can't be spoken to in is an error now, not when all are ready
        if not self._adapters:
            self._model = attach(self._model, run.path)
            self._adapters[run.path] = "default"
        else:
            name = f"adapter{len(self._adapters)}"  # PEFT allows no dots
            attach_another(self._model, run.path, name)
            self._adapters[run.path] = name

    def roster(self, runs: Sequence[Run], system: str) -> Roster:
        models = [self._offer(None, system), *(self._offer(run, system) for run in runs)]
        return Roster({one.name: one for one in models}, TorchEngine.name, self._loaded.format, lambda: None)

    def _offer(self, run: Run | None, system: str) -> Offered:
        def speaking() -> AbstractContextManager[Any]:
            return self._speaking(run)

        with speaking():
            engine = TorchEngine(self._model, self._format(run), self.context)
        return self.offered(run, system, engine, self._loaded.format, speaking)

    @contextlib.contextmanager
    def _speaking(self, run: Run | None) -> Iterator[None]:
        from znatok.model.adapters import base_only

        with ExitStack() as stack:
            if run is not None:
                self._model.set_adapter(self._adapters[run.path])
            elif self._adapters:
                stack.enter_context(base_only(self._model))
            yield

    def _format(self, run: Run | None) -> ChatFormat:
        from znatok.tokens.chat import choose_format

        asked = _chat_of(run).get("format", "auto")
        if asked not in self._formats:
            embedding = self._loaded.model.get_input_embeddings().weight
            self._formats[asked] = choose_format(self._loaded.tokenizer, embedding, asked)
        return self._formats[asked]


class _InLlama(_Opening):
    """A llama.cpp process with all adapters."""

    library = "xllamacpp"

    def __init__(self, base: GgufBase, context: int) -> None:
        header = base.header
        longest = header.integer(f"{header.text('general.architecture')}.context_length", high=1 << 24)
        self._base = base
        self.context = min(context, longest)
        self._adapters: dict[Path, Path] = {}
        self.name, self.sha256 = base.name, base.sha256

    def put_on(self, run: Run) -> None:
        self._adapters[run.path] = lora_gguf(run.path, self._base.header, self.sha256)

    def roster(self, runs: Sequence[Run], system: str) -> Roster:
        server = LlamaServer(self._base.header.path, list(self._adapters.values()), self.context)
        try:
            models = [self._offer(server, run, system) for run in (None, *runs)]
            server.wait()
        except BaseException:
            server.close()
            raise
        return Roster({one.name: one for one in models}, LlamaCppEngine.name, self._base.kind, server.close)

    def _offer(self, server: LlamaServer, run: Run | None, system: str) -> Offered:
        asked = _chat_of(run).get("format", "auto")
        chat = file_format(self._base, asked)
        tokens = self._base.header.metadata["tokenizer.ggml.tokens"]
        banned = sorted(set(range(len(tokens))) - sayable(chat))
        place = list(self._adapters).index(run.path) if run is not None else None
        engine = LlamaCppEngine(server, chat, self.context, banned, adapter=place)
        return self.offered(run, system, engine, self._base.kind, contextlib.nullcontext)
