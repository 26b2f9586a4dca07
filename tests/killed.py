"""Processes that train and die of kill -9: forked from one that has imported everything, each begins at once."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import helpers
import znatok.train.run  # here for the server of forks; a training then takes no imports  # noqa: F401
from znatok.cli import main
from znatok.files import read_json

FORKS = multiprocessing.get_context("forkserver")
CHANGES = {
    "os.rename",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.truncate",
    "os.chmod",
    "shutil.copytree",
    "shutil.rmtree",
}
"""Audit events of what changes a folder; besides them, ``open`` for writing."""


def train(words: list[str], folder: Path, log: Path, dies_before: int, counted: Path | None) -> None:
    """Train with the words of ``znatok train``; die before the given change to ``folder``, counted from 0."""
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    changes = 0

    def count(event: str, arguments: tuple) -> None:
        nonlocal changes
        if not changes_folder(event, arguments, folder):
            return
        if changes == dies_before:
            os.kill(os.getpid(), signal.SIGKILL)
        changes += 1

    sys.addaudithook(count)
    code = main(["train", *words])
    if counted is not None:
        counted.write_text(str(changes))
    os._exit(code)


def changes_folder(event: str, arguments: tuple, folder: Path) -> bool:
    """Tell whether an audit event is about to change something at or under a folder."""
    if event == "open":
        path, _mode, flags = arguments
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return False
    elif event in CHANGES:
        path = arguments[0]
    else:
        return False
    return isinstance(path, str | os.PathLike) and Path(path).is_relative_to(folder)


class Trainings:
    """Trainings of one model on one file of pairs, each in a process and a run directory of its own."""

    def __init__(self, words: list[str], room: Path):
        self.words, self.room, self.log = words, room, room / "log.txt"

    def begin(self, name: str, *more: str, dies_before: int = -1, counted: Path | None = None):
        """Start ``znatok train`` in a process; return it."""
        folder = self.room / name
        words = [*more, "--output_dir", str(folder)]
        process = FORKS.Process(
            target=train,
            args=(words if "--resume" in more else self.words + words, folder, self.log, dies_before, counted),
        )
        process.start()
        return process

    def whole(self, name: str, *more: str, **options) -> Path:
        """Train to the end; return the run directory."""
        process = self.begin(name, *more, **options)
        process.join(120)
        assert process.exitcode == 0, f"exit {process.exitcode}: {self.said()}"
        return self.room / name

    def killed(self, name: str, *more: str, seconds: float) -> bool:
        """Train, and kill -9 after so many seconds; return whether it still ran then."""
        process = self.begin(name, *more)
        process.join(seconds)
        process.kill()
        process.join(120)
        assert process.exitcode in {0, -signal.SIGKILL}, f"exit {process.exitcode}: {self.said()}"
        return process.exitcode != 0

    def said(self) -> str:
        """Return the last of what the processes printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-1500:]

    def seconds(self, name: str) -> float:
        """Return how long a whole training takes now, its start included."""
        begun = time.perf_counter()
        self.whole(name)
        return time.perf_counter() - begun


def finished_equally(trainings, name, straight):
    """Go on with a run that was killed; hold what comes out against the straight one."""
    run = trainings.room / name
    trainings.whole(name, *(["--resume"] if (run / "run.toml").is_file() else []))
    assert helpers.adapter_bytes(run) == helpers.adapter_bytes(straight)
    assert helpers.losses(run) == helpers.losses(straight)
    assert helpers.validations(run) == helpers.validations(straight)
    assert helpers.status(run) == "finished"
    assert read_json(run / "manifest.json")["result"]["best"] == read_json(straight / "manifest.json")["result"]["best"]
    assert files(run) == files(straight), "what a killed process left behind stays there"


def files(run):
    """Return the names of all files in a run directory."""
    return {path.relative_to(run).as_posix() for path in run.rglob("*")}
