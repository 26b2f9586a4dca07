"""The queue before the desk, and the one thread that computes."""

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from znatok.errors import SystemFault, UsageError, ZnatokError
from znatok.serve.desk import Desk, Failed, Job


class Busy(Exception):  # a state, not an error of ours
    """The queue is full; ``seconds`` is a guess when it will not be."""

    def __init__(self, seconds: int) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Stopping(SystemFault):
    """The server takes no more requests."""


class TimedOut(SystemFault):
    """A request waited or was computed for too long."""


class Dispatcher:
    """Takes jobs from any thread and has them computed in its own, first come first served where there is room.

    Attributes:
        broken: what made the last computation fail, where none has succeeded since; for health checks.
        limit: how many may wait.
    """

    def __init__(self, desk: Desk, limit: int) -> None:
        """Begin; ``limit`` jobs may wait."""
        self.broken = ""
        self.limit = limit
        self._desk = desk
        self._waiting: deque[Job] = deque()
        self._running = 0
        self._closing = False
        self._given_up = False
        self._seconds = 10.0  # what a job took of late
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="znatok-compute", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Return how many jobs wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Return how many are being computed."""
        return self._running

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs, all of them or none.

        Raises:
            Busy: there is no room for all.
            Stopping: it was closed.
        """
        with self._changed:
            if self._closing:
                raise Stopping("the server is stopping")
            if len(self._waiting) + len(jobs) > self.limit:
                raise Busy(max(1, round(self._seconds * len(self._waiting) / max(1, self._running))))
            self._waiting.extend(jobs)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Give a job up: nobody listens any more."""
        with self._changed:
            job.gone = True
            self._changed.notify()

    def give_up(self) -> None:
        """Refuse new jobs, and end all others before their next token."""
        with self._changed:
            self._closing = self._given_up = True
            self._changed.notify()

    def close(self, patience: float = 10.0) -> None:
        """Refuse new jobs, give up those that wait; return once the others have ended, or ``patience`` seconds on."""
        with self._changed:
            self._closing = True
            for job in self._waiting:
                job.tell(Failed(Stopping("the server is stopping")))
            self._waiting.clear()
            self._changed.notify()
        self._thread.join(patience)

    def _work(self) -> None:
        while self._wait():
            if (job := self._next()) is not None:
                self._guarded([job], partial(self._desk.take, job))
            for turn in self._desk.turns():
                self._guarded(turn, partial(self._desk.step, turn))
            self._running = len(self._desk.jobs)

    def _wait(self) -> bool:
        """Wait until there is something to do; False when there never will be."""
        with self._changed:
            while not (self._waiting or self._desk.jobs or self._closing):
                self._changed.wait()
            return bool(self._waiting or self._desk.jobs)

    def _next(self) -> Job | None:
        """Let go of what nobody waits for; take the first job there is room for out of the queue."""
        with self._changed:
            for over in [job for job in self._desk.jobs if self._is_over(job)]:
                self._desk.drop(over)
            self._waiting = deque(job for job in self._waiting if not self._is_over(job))
            job = next((job for job in self._waiting if self._desk.has_room(job)), None)
            if job is not None:
                self._waiting.remove(job)
            return job

    def _is_over(self, job: Job) -> bool:
        """Tell whether a job is given up or out of time, and say so to whoever listens."""
        if job.gone:
            return True
        error: ZnatokError | None = None
        if self._given_up:
            error = Stopping("the server is stopping")
        elif time.monotonic() > job.deadline:
            error = TimedOut("the answer took too long; ask for less, or start the server with a longer --timeout")
        if error is not None:
            job.tell(Failed(error))
        return error is not None

    def _guarded(self, jobs: Sequence[Job], compute: Callable[[], None]) -> None:
        """Begin a job, or have a turn take its step; whoever it fails for hears of it, and the thread goes on."""
        try:
            compute()
            self._note_ended(jobs)
            self.broken = ""
        except UsageError as error:  # of this one request
            self._fail(jobs, error)
        except ZnatokError as error:
            self.broken = type(error).__name__  # before anybody hears of it and asks for the server's health
            self._fail(jobs, error)
        except Exception as error:  # noqa: BLE001  # a fault of ours must not end the server
            traceback.print_exc()
            self.broken = type(error).__name__
            self._fail(jobs, SystemFault("the server failed: {why}", why=type(error).__name__))

    def _note_ended(self, jobs: Sequence[Job]) -> None:
        now, computed = time.monotonic(), self._desk.jobs
        for job in jobs:
            if job not in computed:
                self._seconds += 0.2 * (now - job.begun - self._seconds)

    def _fail(self, jobs: Sequence[Job], error: ZnatokError) -> None:
        for job in jobs:
            self._desk.drop(job)
            job.tell(Failed(error))
