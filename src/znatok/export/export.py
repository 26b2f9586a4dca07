"""Start reading here: ``znatok export``, an adapter as something other programs run.

:func:`export` makes it beside its place, asks it and the adapter the same questions, and only then renames it into
place: a model that answers otherwise than the one that was trained is an error, not a file.
"""

import contextlib
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from znatok.config import ExportOptions, ModelOptions
from znatok.errors import DataError, ModelError, SystemFault, UsageError, _
from znatok.expert import Expert, open_expert
from znatok.export import api
from znatok.export.card import push, refuse_no_name, write_publishable
from znatok.export.merge import save_merged
from znatok.export.merged_gguf import file_bytes, write_gguf
from znatok.export.ollama import modelfile
from znatok.export.parity import (
    ADAPTER,
    FINE,
    LIMITS,
    MODEL,
    MODELFILE,
    SERVED,
    Limits,
    Parity,
    Reference,
    opened,
    questions_of,
)
from znatok.files import read_json, write_json, write_text
from znatok.logs import say
from znatok.model.adapters import read_adapter_config
from znatok.model.gguf_header import read_header
from znatok.model.lora_gguf import BEYOND_LORA, write_lora_gguf
from znatok.runs import Run, held, slug

CHECKED = "parity.json"
MARK = ".znatok-export.json"  # names the files of an export, so that --force replaces nothing else
SPARE = 1.05  # of the bytes that are needed: a full disk is a bad neighbour


@dataclass(frozen=True)
class Exported:
    """What was made.

    Attributes:
        path: where it is.
        hint: what to do with it next.
        parity: how it answers beside the adapter; None if nobody asked.
        served: how ``znatok serve`` answers beside the adapter; None if nobody asked, or no server is installed.
    """

    path: Path
    hint: str
    parity: Parity | None = None
    served: Parity | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        parity, served = (one and asdict(one) for one in (self.parity, self.served))
        return {"path": str(self.path), "parity": parity, "served": served, "next": self.hint}


def export(run: Run, options: ExportOptions) -> Exported:
    """Make what ``options.to`` names from a run's adapter, and check that it answers as the adapter does.

    Raises:
        UsageError: the place is in use, or the base is of a kind this can't be made from.
        SystemFault: the disk is too small.
        ModelError: the adapter or its base.
        GateError: what was made answers otherwise.
    """
    target = Path(options.export_dir) if options.export_dir else run.path / "export" / options.to
    refuse_used(target, force=options.force)
    if options.to in {"card", "hub"}:
        return _published(run, options, target)
    if run.has_adapter():
        refuse_more_than_lora(run)
    with held(run):
        expert = open_expert(ModelOptions(model_name=options.model_name, dtype="float32"), run, "", "torch")
        refuse_full(target, needed(expert, options))
        with made_whole(target) as folder:
            MAKERS[options.to](expert, options, folder)
            parity, served = checked(expert, options, folder) if options.check else (None, None)
            if parity is not None:
                write_json(folder / CHECKED, {**asdict(parity), "served": served and asdict(served)})
    return Exported(target, hint_of(options.to, run, target), parity, served)


def checked(expert: Expert, options: ExportOptions, folder: Path) -> tuple[Parity, Parity | None]:
    """Return how an export, and a server of the run, answer beside the adapter; None where no server is installed.

    Raises:
        GateError: one of them answers otherwise.
    """
    assert expert.run is not None
    reference = Reference(expert, questions_of(expert.run))
    made = reference.beside(opened(expert, folder, options.to), limits_of(options))
    say(made.line())
    made.refuse_failed(f"--to {options.to}", REMEDIES[options.to]())
    if not api.installed():
        say(_("znatok serve was not asked: it needs pip install 'znatok[serve]'"))
        return made, None
    served = reference.beside(api.opened(expert, reference.longest), SERVED)
    say(served.line())
    served.refuse_failed("znatok serve", _("serve it with --dtype float32, and export with --check false"))
    return made, served


def _published(run: Run, options: ExportOptions, target: Path) -> Exported:
    """Put the adapter and its card into a folder, and on the hub where that is asked for."""
    if options.to == "hub":
        refuse_no_name(options.hub_name)
    if not run.has_adapter():
        raise ModelError("{path}: no adapter_model.safetensors; train first, or go on with --resume", path=run.path)
    with held(run):
        refuse_full(target, (run.path / "adapter_model.safetensors").stat().st_size)
        with made_whole(target) as folder:
            write_publishable(run, folder)
    if options.to == "card":
        return Exported(target, hint_of("card", run, target))
    return Exported(target, push(target, options.hub_name, public=options.public))


def _merged(expert: Expert, options: ExportOptions, folder: Path) -> None:
    save_merged(expert, folder, options.merged_dtype)


def _gguf(expert: Expert, options: ExportOptions, folder: Path) -> None:
    write_gguf(expert, folder / MODEL, options.quant)


def _lora_gguf(expert: Expert, _options: ExportOptions, folder: Path) -> None:
    assert expert.run is not None
    write_lora_gguf(expert.run.path, folder / ADAPTER, read_header(gguf_file(expert)))


def _ollama(expert: Expert, options: ExportOptions, folder: Path) -> None:
    write_text(folder / MODELFILE, modelfile(expert.chat, expert.system, MODEL))  # what it can't say is refused first
    _gguf(expert, options, folder)


MAKERS: dict[str, Callable[[Expert, ExportOptions, Path], None]] = {
    "merged": _merged,
    "gguf": _gguf,
    "lora-gguf": _lora_gguf,
    "ollama": _ollama,
}
REMEDIES: dict[str, Callable[[], str]] = {  # what may bring an export nearer to its adapter
    "merged": lambda: _("take --merged_dtype float32"),
    "gguf": lambda: _("take a finer --quant"),
    "lora-gguf": lambda: _("take --to gguf, which needs no adapter beside it"),
    "ollama": lambda: _("take a finer --quant"),
}
HINTS = {
    "merged": "vllm serve {folder}",
    "gguf": "llama-server -m {model}",
    "lora-gguf": "llama-server -m BASE.gguf --lora {adapter}",
    "ollama": "cd {folder} && ollama create {name} -f Modelfile",
    "card": "hf upload USER/{title} {folder} --private",
}


def hint_of(to: str, run: Run, target: Path) -> str:
    """Return the command that goes on from an export, quoted as a shell takes it."""
    title = slug(run.path.resolve().name)
    words = {
        "title": title,
        "name": title.lower(),
        "folder": target,
        "model": target / MODEL,
        "adapter": target / ADAPTER,
    }
    return HINTS[to].format(**{key: shlex.quote(str(word)) for key, word in words.items()})


def limits_of(options: ExportOptions) -> Limits:
    """Return how far an export may be from its adapter: a file of four bits a little further."""
    return LIMITS.get(options.quant, FINE) if options.to in {"gguf", "ollama"} else FINE


def refuse_more_than_lora(run: Run) -> None:
    """Raise ModelError for an adapter that does more than to add B·A to projections: merging would leave that out."""
    config = read_adapter_config(run.path)
    for key in BEYOND_LORA:
        if getattr(config, key):
            raise ModelError(
                "{path}: {key} is set, and only --to card and hub hand that on; train a plain LoRA adapter",
                path=run.path / "adapter_config.json", key=key,
            )  # fmt: skip


def gguf_file(expert: Expert) -> Path:
    """Return the GGUF file a base came from.

    Raises:
        UsageError: it came from a directory.
    """
    path = expert.loaded.source.path
    if not path.is_file():
        raise UsageError(
            "--to lora-gguf: the base {name} is a directory, and llama.cpp needs its base as a GGUF file;"
            " take --to gguf, which holds base and adapter in one",
            name=expert.base_name,
        )
    return path


def needed(expert: Expert, options: ExportOptions) -> int:
    """Return how many bytes the disk must have free."""
    if options.to == "lora-gguf":
        gguf_file(expert)
        return 2 * (expert.run.path / "adapter_model.safetensors").stat().st_size if expert.run else 0
    if options.to == "merged":
        width = 4 if options.merged_dtype == "float32" else 2
        return width * sum(int(parameter.numel()) for parameter in expert.loaded.model.parameters())
    return file_bytes(expert, options.quant)


def refuse_full(target: Path, count: int) -> None:
    """Raise SystemFault where the disk has no room for ``count`` bytes and a little more."""
    place = next(parent for parent in (target.absolute(), *target.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if free < count * SPARE:
        raise SystemFault(
            "{path}: {needed:.1f} GB are needed, {free:.1f} GB are free; make room, or name another disk with"
            " --export_dir",
            path=target, needed=count * SPARE / 1e9, free=free / 1e9,
        )  # fmt: skip


def refuse_used(target: Path, *, force: bool) -> None:
    """Raise UsageError where something stands that ``--force`` does not allow to replace."""
    if target.is_file():
        raise UsageError("--export_dir {path}: a file stands there; name a directory", path=target)
    if target.is_dir() and any(target.iterdir()):
        if not force:
            raise UsageError("--export_dir {path}: not empty; --force replaces what was exported there", path=target)
        if strangers := sorted({path.name for path in target.iterdir()} - names_of(target)):
            raise UsageError(
                "--export_dir {path}: {name} in it is nothing znatok exported; name another directory",
                path=target, name=strangers[0],
            )  # fmt: skip


def names_of(target: Path) -> set[str]:
    """Return the names of the files znatok exported to a directory, by what it noted there."""
    with contextlib.suppress(OSError, DataError):
        names = read_json(target / MARK).get("files")
        return {MARK, *map(str, names)} if isinstance(names, list) else set()
    return set()


@contextlib.contextmanager
def made_whole(target: Path) -> Iterator[Path]:
    """Yield a folder beside ``target`` that takes its place when the block ends well, and goes when it does not."""
    place = target.resolve()  # «.» has no name to put another one beside
    folder = place.with_name(f".{place.name}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        yield folder
        write_json(folder / MARK, {"files": sorted(path.name for path in folder.iterdir())})
        shutil.rmtree(place, ignore_errors=True)
        folder.replace(place)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        why = getattr(error, "strerror", None) or str(error)
        raise SystemFault("{path}: can't be written: {why}", path=target, why=why) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
