"""The models that answer in the browser: loaded when somebody asks, one base with one adapter at a time."""

import contextlib
import functools
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from znatok.config import LANGUAGE_NEUTRAL_SYSTEM, ModelOptions, SampleOptions
from znatok.lexicon import lexicon_near
from znatok.retrieve import Knowledge, open_knowledge
from znatok.serve.desk import Begun, Composed, Ended, Event, Failed, Job, Piece, composed, desk_for
from znatok.serve.dispatch import Dispatcher, Stopping
from znatok.serve.roster import Offered, Roster, open_roster
from znatok.tokens.chat import Message, dialogue

PATIENCE = 3600.0  # seconds an answer may take
CONTEXT = 4096
QUEUE = 64
PAGES = 64  # that may wait for a model at the same time
FRAME = 0.1  # seconds between two looks at an answer: shown every token, a browser falls behind and obeys no button

Stamp = tuple[tuple[int, ...], ...]
"""Of files: another one once they have changed."""

Model = tuple[str, Path | None, Stamp]
"""A base, the run on it if any, and its adapter's stamp: training may have gone on."""

Heard = tuple[int, Event]
"""Which of the models that were asked, and what happened to its answer."""


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        text: the question.
        history: what was said before.
        sample, seed: how the answer is drawn.
        knowledge: a file to look things up in, or None.
    """

    text: str
    sample: SampleOptions
    seed: int
    history: Sequence[Message] = ()
    knowledge: str | None = None


@dataclass
class Said:
    """An answer so far; ``sources`` are the lines it may cite, ``begun`` tells whether its turn has come."""

    begun: bool = False
    text: str = ""
    sources: tuple[str, ...] = ()
    ended: bool = False

    def hear(self, event: Event) -> None:
        """Take what happened."""
        if isinstance(event, Begun):
            self.begun, self.sources = True, event.sources
        elif isinstance(event, Piece):
            self.text += event.text
        elif isinstance(event, Ended):
            self.ended = True


class Talk:
    """Answers of a base and of a run's adapter."""

    def __init__(self) -> None:
        # guards the three below; whoever closes a page takes it, so never for long
        self._changed = threading.Condition()
        self._wanted: Model | None = None
        self._users = 0
        self._closed = False
        self._lenders = ThreadPoolExecutor(PAGES, "znatok-lend")
        self._loading = threading.Lock()  # held while a model comes or goes
        self._opened: Model | None = None
        self._roster: Roster | None = None
        self._dispatcher: Dispatcher | None = None
        self._knowledge: dict[str, tuple[Stamp, Knowledge]] = {}

    def answers(self, base: str, run: Path | None, voices: Sequence[str], question: Question) -> Iterator[list[Said]]:
        """Yield the answers of several voices as they grow, asked at once; closing the iterator gives them up.

        They are yielded every ``FRAME`` seconds, also while they wait for a model or for their turn: only then can
        whoever listens turn away.

        Args:
            base: what was or can be trained on.
            run: a run on it, or None for the base alone.
            voices: of each answer, ``base`` or ``tuned``.
            question: what they are asked.

        Raises:
            ModelError: the base can't be loaded, or the run was trained on another.
            UsageError: the dialogue is longer than a model sees.
            Stopping: it was closed.
        """
        answers = [Said() for _ in voices]
        with self._lending(base, run) as lent:
            while not lent.done():
                yield answers
                time.sleep(FRAME)
            models = {"base": lent.result()[0], "tuned": lent.result()[-1]}
            yield from self._heard([models[voice] for voice in voices], question, answers)

    @contextlib.contextmanager
    def _lending(self, base: str, run: Path | None) -> Iterator[Future[list[Offered]]]:
        """Lend what answers, the base first, once it is there: a base, and the adapter of a run where one is named.

        What another page has been lent stays until it is given back: whoever wants something else waits, in a thread
        of its own, and is lent nothing once it has left.
        """
        wanted = (base, run, stamp(run / "adapter_model.safetensors") if run is not None else ())
        left = threading.Event()
        lent = self._lenders.submit(self._lend, wanted, left)
        try:
            yield lent
        finally:
            left.set()
            with self._changed:
                self._changed.notify_all()
            lent.add_done_callback(self._give_back)  # at once, or when a model has come that nobody waits for

    def _lend(self, wanted: Model, left: threading.Event) -> list[Offered]:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or left.is_set() or not self._users or self._wanted == wanted)
            self._users += 1
            if left.is_set():
                return []
            self._wanted = wanted
        with self._loading:
            return self._loaded(wanted)

    def _give_back(self, _lent: Future[list[Offered]]) -> None:
        with self._changed:
            self._users -= 1
            self._changed.notify_all()

    def _heard(self, models: Sequence[Offered], question: Question, answers: list[Said]) -> Iterator[list[Said]]:
        """Ask models that are lent, and yield what they have said so far."""
        dispatcher = self._dispatcher
        if dispatcher is None:  # closed between lending and asking
            raise Stopping("the server is stopping")
        events: queue.SimpleQueue[Heard] = queue.SimpleQueue()

        def job(place: int, model: Offered) -> Job:
            compose = functools.partial(self._compose, model, question)
            return Job(model, compose, (), lambda event: events.put((place, event)), time.monotonic() + PATIENCE)

        jobs = [job(place, model) for place, model in enumerate(models)]
        dispatcher.submit(jobs)
        try:
            while not all(said.ended for said in answers):
                time.sleep(FRAME)
                for place, event in emptied(events):
                    if isinstance(event, Failed):
                        raise event.error
                    answers[place].hear(event)
                yield answers
        finally:
            for one in jobs:
                dispatcher.cancel(one)

    def close(self) -> None:
        """Let the models go; answers under way are given up, and whoever waits for a model gets none."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        with self._loading:
            if self._dispatcher is not None:
                self._dispatcher.give_up()
            self._close()

    def _loaded(self, wanted: Model) -> list[Offered]:
        if self._closed:
            raise Stopping("the server is stopping")
        if self._roster is None or self._opened != wanted:
            self._close()
            base, run, _stamp = wanted
            options = ModelOptions(model_name=base)
            self._roster = open_roster(options, run, LANGUAGE_NEUTRAL_SYSTEM, context=CONTEXT, many=False)
            self._dispatcher = Dispatcher(desk_for(self._roster), QUEUE)
            self._opened = wanted
        return list(self._roster.models.values())

    def _close(self) -> None:
        if self._dispatcher is not None:
            self._dispatcher.close()
        if self._roster is not None:
            self._roster.close()
        self._dispatcher = self._roster = self._opened = None

    def _compose(self, model: Offered, question: Question) -> Composed:
        before = dialogue("", model.system, question.history)[:-1]
        known = self._known(question.knowledge) if question.knowledge else None
        return composed(model, before, question.text, question.sample, question.seed, known)

    def _known(self, path: str) -> Knowledge:
        """Return the knowledge in a file, read anew where the file or the lexicon beside it has changed since."""
        now = stamp(Path(path), lexicon_near(Path(path)))
        if path not in self._knowledge or self._knowledge[path][0] != now:
            self._knowledge[path] = now, open_knowledge(Path(path))
        return self._knowledge[path][1]


def emptied(events: queue.SimpleQueue[Heard]) -> Iterator[Heard]:
    """Yield what has come by now, without waiting."""
    with contextlib.suppress(queue.Empty):
        while True:
            yield events.get_nowait()


def stamp(*paths: Path | None) -> Stamp:
    """Return what tells files from what they were before; those that are not there count for nothing."""
    stats = [path.stat() for path in paths if path is not None and path.is_file()]
    return tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats)
