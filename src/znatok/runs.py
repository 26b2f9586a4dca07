"""A run directory: what stands where, who may write, and how it is found again.

::

    adapter_config.json, adapter_model.safetensors     the adapter, as PEFT and its relatives load it
    tokenizer*.json                                    the tokenizer
    run.toml                                           every option, resolved
    manifest.json                                      base and its hash, data hash, format, seed, machine, figures
    metrics.jsonl                                      a row per step and per validation
    status.json                                        running, finished, failed or interrupted
    checkpoints/step-000100/                           complete checkpoints, newest highest
    images/, compare/, eval/                           what later commands add
    export/, votes.jsonl                               what its user made of it; starting anew moves these to earlier/
"""

import contextlib
import datetime
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from znatok.errors import DataError, ModelError, SystemFault, UsageError, _
from znatok.files import leftovers, read_json, read_jsonl, write_json, write_text
from znatok.logs import warn

try:
    import fcntl
except ImportError:  # Windows has no flock; there the lock file only names its holder
    fcntl = None  # type: ignore[assignment]

OWN_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "run.toml",
    "manifest.json",
    "metrics.jsonl",
    "status.json",
    "README.md",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "report.html",
)
OWN_FOLDERS = ("checkpoints", "images", "compare", "eval")
USERS = ("export", "votes.jsonl")
"""What a user made of a run: starting it anew moves this aside, for it says nothing of the new adapter."""
MANIFEST: dict[str, Any] = {
    "base": dict, "base.name": str, "base.sha256": str | None,
    "data": dict, "data.path": str | None, "data.sha256": str, "data.pairs": int,
    "validation": dict | None, "validation.sha256": str,
    "lora": dict, "options": dict, "dtype": str, "seed": int,
    "chat": dict, "chat.format": str, "chat.system": str,
    "engine": dict, "engine.name": str, "engine.float_groups": list,
    "command": list, "plan": dict, "result": dict | None, "result.wall_seconds": int | float,
}  # fmt: skip
"""Of what type is what this program reads of a manifest, each table before what it holds."""


@dataclass(frozen=True, slots=True)
class Run:
    """The paths of one run directory."""

    path: Path

    @property
    def metrics(self) -> Path:
        """Return the file with a row per step and per validation."""
        return self.path / "metrics.jsonl"

    @property
    def manifest(self) -> Path:
        """Return the file that says what the run was made of."""
        return self.path / "manifest.json"

    @property
    def options(self) -> Path:
        """Return the file with every option, resolved."""
        return self.path / "run.toml"

    @property
    def checkpoints(self) -> Path:
        """Return the folder of complete checkpoints."""
        return self.path / "checkpoints"

    @property
    def images(self) -> Path:
        """Return the folder of pictures."""
        return self.path / "images"

    @property
    def compare(self) -> Path:
        """Return the folder ``znatok compare`` writes to."""
        return self.path / "compare"

    def has_adapter(self) -> bool:
        """Tell whether training ever got as far as an adapter."""
        return (self.path / "adapter_model.safetensors").is_file()

    def read_manifest(self) -> dict[str, Any]:
        """Return the manifest, or an empty dict for an adapter that znatok did not train.

        Raises:
            DataError: it is damaged, or not as znatok writes it.
        """
        manifest = read_json(self.manifest) if self.manifest.is_file() else {}
        for name, kind in MANIFEST.items():
            table, _dot, key = name.rpartition(".")
            holder = (manifest.get(table) or {}) if table else manifest
            if key in holder and not isinstance(holder[key], kind):
                raise DataError(
                    "{path}: damaged, {name} is {value}, which znatok does not write there; bring back a copy, or make"
                    " it anew",
                    path=self.manifest, name=name, value=json.dumps(holder[key])[:40],
                )  # fmt: skip
        return manifest

    def read_status(self) -> dict[str, Any]:
        """Return what ``status.json`` says; empty before the first step and for adapters znatok did not train."""
        path = self.path / "status.json"
        return read_json(path) if path.is_file() else {}

    def set_status(self, state: str, **facts: object) -> None:
        """Write ``status.json``: running, finished, failed or interrupted, and what is known."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_json(self.path / "status.json", {"state": state, "updated": now, "pid": os.getpid(), **facts})

    def leftovers(self) -> list[Path]:
        """Return the temporary files that killed processes left; who removes them holds the run."""
        return [left for name in OWN_FILES for left in leftovers(self.path / name)]


def metrics_rows(path: Path, damaged: Callable[[str], object] = warn) -> list[dict[str, Any]]:
    """Return the rows of a ``metrics.jsonl``: none where there is no file; damaged ones are left out, and told of."""
    if not path.is_file():
        return []
    return read_jsonl(path, fits=_is_step, damaged=lambda error: damaged(_("left out: {why}", why=str(error))))


def _is_step(row: dict[str, Any]) -> bool:
    return "step" in row and all(isinstance(value, int | float) for value in row.values())


def slug(text: str) -> str:
    """Return ``text`` as a file name of at most 64 letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:64] or "run"


def create(output_dir: str | None, model_name: str, *, force: bool = False) -> Run:
    """Make the directory of a new run.

    Raises:
        UsageError: as :func:`refuse_used` has it.
        SystemFault: it can't be written to, or another process is writing to it.
    """
    refuse_used(output_dir, force=force)
    if output_dir is None:
        stamp = datetime.datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S")
        path = unused(Path("runs") / f"{stamp}_{slug(Path(model_name).name)}")
    else:
        path = Path(output_dir)
    with _writing(path):
        if path.is_dir() and any(path.iterdir()):
            with held(Run(path)):  # a run being written to is not cleared away under its writer
                _clear(path)
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / "status.json", "{}\n")
        _point_latest(path)
    return Run(path)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Tell why a directory can't be made or written to."""
    try:
        yield
    except OSError as error:
        raise SystemFault(
            "{path}: can't be written to ({why}); make room or give rights there, or name another place",
            path=path, why=error.strerror or error,
        ) from error  # fmt: skip


def refuse_used(output_dir: str | None, *, force: bool = False) -> None:
    """Raise UsageError where a new run can't stand: on a file, or on files of another run without ``force``.

    Raises:
        SystemFault: the place can't be looked at.
    """
    if output_dir is None:
        return
    path = Path(output_dir)
    with _writing(path):
        if not path.exists():
            return
        if not path.is_dir():
            raise UsageError("--output_dir {path}: a file stands there; name a directory", path=path)
        if not force and _is_used(path):
            raise UsageError(
                "--output_dir {path}: not empty; --resume goes on with the run in it, --force starts it anew", path=path
            )


def _is_used(path: Path) -> bool:
    """Tell whether there is more in a directory than a run leaves that was killed before it had stored its options."""
    begun = {path / ".lock", path / "status.json", *Run(path).leftovers()}
    return not begun.issuperset(path.iterdir())


def unused(path: Path) -> Path:
    """Return ``path``, numbered where another run was started within the same second."""
    numbered = (path.with_name(f"{path.name}-{n}") for n in range(2, 1000))
    return next(candidate for candidate in (path, *numbered) if not candidate.exists())


def _clear(path: Path) -> None:
    """Remove what a run wrote, set aside what was made of it, and leave whatever else a user may keep there.

    What can't be removed is an error: checkpoints that stay would be taken for the new run's.
    """
    for file in (*(path / name for name in OWN_FILES), *Run(path).leftovers()):
        file.unlink(missing_ok=True)
    for folder in (path / name for name in OWN_FOLDERS):
        if folder.exists():
            shutil.rmtree(folder)
    if made := [name for name in USERS if (path / name).exists()]:
        aside = unused(path / "earlier")
        aside.mkdir()
        for name in made:
            (path / name).rename(aside / name)
        warn(_("{path}: {names} of the run before now stand in {aside}", path=path, names=", ".join(made), aside=aside))


def _point_latest(path: Path) -> None:
    """Make ``runs/latest`` name the newest run: a link, or a text file where links can't be made."""
    latest = Path("runs") / "latest"
    real = path.resolve()
    if real.parent != latest.parent.resolve() or (latest.is_dir() and not latest.is_symlink()):
        return
    temporary = latest.with_name(f".latest-{os.getpid()}")
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(real.name)
        temporary.replace(latest)
        return
    write_text(latest, real.name + "\n")


def find(name: str | None) -> Run:
    """Return an existing run: by its directory, by its name under ``runs/``, or the newest.

    Raises:
        ModelError: there is no such run.
    """
    if name is None:
        latest = Path("runs") / "latest"
        target = latest.resolve() if latest.is_dir() else None
        if latest.is_file():
            target = latest.parent / latest.read_text(encoding="utf-8", errors="replace").strip()
        if target is None or not target.is_dir():
            raise ModelError("no run yet: train one with «znatok train», or name its directory")
        return Run(target)
    for path in (Path(name), Path("runs") / name):
        with contextlib.suppress(OSError):  # a name too long, a folder closed to this user: nothing is found there
            if path.is_dir():
                return Run(path)
    raise ModelError("{name}: no such run directory; «ls runs» shows yours", name=name)


@contextlib.contextmanager
def held(run: Run) -> Iterator[None]:
    """Hold a run directory for writing; the lock ends with the process, however it ends.

    Raises:
        SystemFault: another process holds it, or it can't be written to.
    """
    with _writing(run.path):
        file = (run.path / ".lock").open("a+b", buffering=0)  # or closing it would write once more on a full disk
    with file:
        with _writing(run.path):
            _lock(file, run)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # a disk that broke meanwhile: the lock ends with the file all the same
                file.truncate(0)


def _lock(file: FileIO, run: Run) -> None:
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().decode().strip() or "?"
            raise SystemFault(
                "{path}: process {pid} is writing to this run; wait for it, or name another --output_dir",
                path=run.path,
                pid=holder,
            ) from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n".encode())
