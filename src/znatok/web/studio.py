"""What all pages share: the folder they work in, verbs at work, and the models that answer."""

import functools
import html
import re
import shutil
from collections.abc import Callable, Iterator
from inspect import isgeneratorfunction
from pathlib import Path
from typing import Any, TypeVar, cast

import gradio as gr

from znatok.errors import UsageError, ZnatokError, _
from znatok.logs import printable
from znatok.model import catalogue
from znatok.runs import Run
from znatok.web.jobs import Jobs
from znatok.web.talk import Talk

UPLOADS = "uploads"
AT_ONCE = 8  # pages that are answered at the same time, all by one model
Handler = TypeVar("Handler", bound=Callable[..., Any])


class Studio:
    """A folder with data and runs, as ``znatok`` finds it when it is started there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs = Jobs(folder / "runs" / ".web", folder)
        self.talk = Talk()

    def data_files(self) -> list[str]:
        """Return the files of pairs, of this folder, its ``data`` and its ``uploads``."""
        places = (self.folder, self.folder / "data", self.folder / "data" / "eval", self.folder / UPLOADS)
        return [str(path.relative_to(self.folder)) for place in places for path in sorted(place.glob("*.jsonl"))]

    def usual(self, name: str) -> str | None:
        """Return a file's name where it is there."""
        return name if (self.folder / name).is_file() else None

    def texts(self) -> list[str]:
        """Return the files that may hold knowledge."""
        more = [str(path.relative_to(self.folder)) for path in sorted(self.folder.glob("*.md"))]
        return [*self.data_files(), *more]

    def runs(self) -> list[str]:
        """Return the runs that hold an adapter, the newest first."""
        found = [path for path in (self.folder / "runs").glob("*") if path.is_dir() and not path.is_symlink()]
        found = [path for path in found if Run(path).has_adapter()]
        return [path.name for path in sorted(found, key=lambda path: -path.stat().st_mtime)]

    def run(self, name: str | None) -> Run:
        """Return a run by its name.

        Raises:
            UsageError: none was chosen, or it is gone.
        """
        if not name or not self._is_plain(name) or not (self.folder / "runs" / name).is_dir():
            raise UsageError("no run is chosen; train one first")
        return Run(self.folder / "runs" / name)

    def base_of(self, name: str | None) -> str:
        """Return the base a run was trained on."""
        base = self.run(name).read_manifest().get("base", {}).get("name")
        if not base:
            raise UsageError("no run in {folder} names its base; name one with --model_name", folder=name)
        return str(base)

    def models(self) -> list[str]:
        """Return the names of the catalogue, the smallest model first."""
        return [entry.name for entry in catalogue.entries()]

    def file(self, name: str | None) -> Path:
        """Return a file of this folder.

        Raises:
            UsageError: none was chosen, or it lies elsewhere.
        """
        if not name:
            raise UsageError("no file is chosen")
        path = (self.folder / name).resolve()
        if not path.is_file() or not path.is_relative_to(self.folder.resolve()):
            raise UsageError("{path}: no file of this folder; put it there, or bring it on the first tab", path=name)
        return path

    def check_place(self, name: str) -> None:
        """Refuse a directory for a run with UsageError, if it lies anywhere but under ``runs``."""
        path, runs = (self.folder / name).resolve(), (self.folder / "runs").resolve()
        inside = path.relative_to(runs).parts if path.is_relative_to(runs) else ()
        if not inside or inside[0].startswith("."):  # .web is the page's own
            raise UsageError("--output_dir {path}: no place under runs; name the run, for example runs/mine", path=name)

    def take_upload(self, path: str) -> str:
        """Keep an uploaded file; return its name. One of the same name is not overwritten."""
        source = Path(path)
        stem = re.sub(r"[^\w.-]+", "-", source.stem).strip("-.")[:64] or "data"
        folder = self.folder / UPLOADS
        folder.mkdir(exist_ok=True)
        names = (f"{stem}.jsonl", *(f"{stem}-{n}.jsonl" for n in range(2, 1000)))
        target = next(folder / name for name in names if not (folder / name).exists())
        shutil.copyfile(source, target)
        return str(target.relative_to(self.folder))

    def close(self) -> None:
        """Let the models go; verbs at work go on."""
        self.talk.close()

    @staticmethod
    def _is_plain(name: str) -> bool:
        return Path(name).name == name and not name.startswith(".")


def waiting() -> str:
    """Return what stands in an answer's place until its turn has come."""
    return _("waiting: the model is being loaded, or gives another answer first")


def shown(error: ZnatokError) -> gr.Error:
    """Return an error as the page shows it; what it quotes of the user's data is text there, never markup."""
    return gr.Error(html.escape(printable(str(error)), quote=False), print_exception=False)


def told(handler: Handler) -> Handler:
    """Make a handler's errors a message on the page: place, value, expectation, remedy, and no traceback."""

    @functools.wraps(handler)
    def plain(*args: Any) -> Any:
        try:
            return handler(*args)
        except ZnatokError as error:
            raise shown(error) from None

    @functools.wraps(handler)
    def streaming(*args: Any) -> Iterator[Any]:
        try:
            yield from handler(*args)
        except ZnatokError as error:
            raise shown(error) from None

    return cast(Handler, streaming if isgeneratorfunction(handler) else plain)
