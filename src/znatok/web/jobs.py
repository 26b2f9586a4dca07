"""Verbs of znatok at work in processes of their own: they outlive a page and the server, and what they say is kept."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from znatok.errors import SystemFault
from znatok.files import write_json

LINES = 200  # of a log that a page shows
APART = 1.0  # seconds between the starts of two processes of one number, at least
BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Job:
    """One verb at work, or done.

    Attributes:
        kind: the verb; there is one of a kind at a time.
        words: what stands after ``znatok`` on its command line.
        log: what it says.
        pid: of its process.
        started: when that process began, Unix time by the clock of that day.
        life: tells it from a later process of its number, whatever was done to the clock; empty where the system, or
            the version that wrote it, has nothing better than ``started``.
    """

    kind: str
    words: tuple[str, ...]
    log: Path
    pid: int
    started: float
    life: str = ""

    @property
    def command(self) -> str:
        """Return the command line, as one would type it."""
        return shlex.join(["znatok", *self.words])

    @property
    def running(self) -> bool:
        """Tell whether it is at work."""
        try:
            process = psutil.Process(self.pid)
            same = life(self.pid) == self.life if self.life else abs(process.create_time() - self.started) < APART
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def said(self) -> str:
        """Return the last lines of what it said."""
        if not self.log.is_file():
            return ""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES:])

    def stop(self) -> None:
        """Ask it to stop, as Ctrl-C does: training saves a checkpoint first."""
        if self.running:
            os.kill(self.pid, signal.SIGINT)


def life(pid: int) -> str:
    """Return boot and ticks at which a process began, on Linux; psutil's time of it moves with the clock there."""
    with contextlib.suppress(OSError):
        behind_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
        return f"{BOOT.read_text(encoding='ascii').strip()} {behind_name.split()[19]}"  # man proc_pid_stat: (22)
    return ""


class Jobs:
    """The newest job of each kind, remembered in a folder."""

    def __init__(self, folder: Path, work: Path) -> None:
        """Keep logs in ``folder``; work in ``work``."""
        self._folder = folder
        self._work = work
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self, kind: str, words: Sequence[str]) -> Job:
        """Start a verb.

        Raises:
            SystemFault: one of its kind is at work.
        """
        if (before := self.get(kind)) is not None and before.running:
            raise SystemFault("znatok {kind} is at work already; stop it first", kind=kind)
        self._folder.mkdir(parents=True, exist_ok=True)
        log = self._folder / f"{kind}.log"
        with log.open("wb") as file:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "znatok", *words],  # -P: no module lies among the data
                cwd=self._work,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # it goes on when the server stops
                env={**os.environ, "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"},
            )
        self._children.append(child)
        job = Job(kind, tuple(words), log, child.pid, psutil.Process(child.pid).create_time(), life(child.pid))
        write_json(self._folder / f"{kind}.json", asdict(job) | {"log": str(log)})
        return job

    def get(self, kind: str) -> Job | None:
        """Return the newest job of a kind, of this server or an earlier one."""
        for child in self._children:
            child.poll()  # or an ended one would stay a zombie
        try:
            stored: dict[str, Any] = json.loads((self._folder / f"{kind}.json").read_text(encoding="utf-8"))
            words, log = tuple(stored["words"]), Path(stored["log"])
            return Job(stored["kind"], words, log, stored["pid"], stored["started"], stored.get("life", ""))
        except (OSError, ValueError, TypeError, LookupError):  # none yet, or damaged
            return None

    def stop(self, kind: str) -> None:
        """Ask a job to stop, if there is one."""
        if (job := self.get(kind)) is not None:
            job.stop()
