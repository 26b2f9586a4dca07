"""The models that answer in the browser: loaded when somebody asks, one base with one adapter at a time."""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from znatok.config import LANGUAGE_NEUTRAL_SYSTEM, ModelOptions, SampleOptions
from znatok.retrieve import Knowledge, open_knowledge
from znatok.serve.desk import Begun, Composed, Ended, Event, Failed, Job, Piece, composed, desk_for
from znatok.serve.dispatch import Dispatcher
from znatok.serve.roster import Offered, Roster, open_roster
from znatok.tokens.chat import Message, dialogue

PATIENCE = 3600.0  # seconds an answer may take
CONTEXT = 4096
QUEUE = 64


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
    """An answer so far; ``sources`` are the lines it may cite, ``tokens`` is 0 until it has ended."""

    text: str = ""
    sources: tuple[str, ...] = ()
    tokens: int = 0
    seconds: float = 0.0


class Talk:
    """Answers of a base and of a run's adapter."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opened: tuple[str, str | None] | None = None
        self._roster: Roster | None = None
        self._dispatcher: Dispatcher | None = None
        self._knowledge: dict[str, Knowledge] = {}

    def open(self, base: str, run: Path | None) -> list[Offered]:
        """Load a base, and the adapter of a run where one is named; return what answers, the base first.

        Raises:
            ModelError: the base can't be loaded, or the run was trained on another.
        """
        wanted = (base, str(run) if run is not None else None)
        with self._lock:
            if self._roster is None or self._opened != wanted:
                self._close()
                options = ModelOptions(model_name=base)
                self._roster = open_roster(options, run, LANGUAGE_NEUTRAL_SYSTEM, context=CONTEXT, many=False)
                self._dispatcher = Dispatcher(desk_for(self._roster), QUEUE)
                self._opened = wanted
            return list(self._roster.models.values())

    def stream(self, model: Offered, question: Question) -> Iterator[Said]:
        """Yield an answer as it grows; closing the iterator gives it up.

        Raises:
            UsageError: the dialogue is longer than the model sees.
        """
        dispatcher = self._dispatcher
        assert dispatcher is not None
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        started = time.monotonic()
        job = Job(model, lambda: self._compose(model, question), (), events.put, started + PATIENCE)
        dispatcher.submit([job])
        said = Said()
        try:
            while True:
                event = events.get()
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Begun):
                    said.sources = event.sources
                elif isinstance(event, Piece):
                    said.text += event.text
                elif isinstance(event, Ended):
                    said.tokens = event.tokens
                said.seconds = time.monotonic() - started
                yield said
                if isinstance(event, Ended):
                    return
        finally:
            dispatcher.cancel(job)

    def close(self) -> None:
        """Let the models go."""
        with self._lock:
            self._close()

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
        if path not in self._knowledge:
            self._knowledge[path] = open_knowledge(Path(path))
        return self._knowledge[path]
