"""Where requests are computed: several at a time in torch, one after another by llama.cpp.

Either way each text is what it would be alone. In torch neighbours change no row (see ``generate.rows``), so requests
to one model are answered together, and models take turns token by token. llama.cpp rounds a row otherwise when it is
computed with others, so it answers one request at a time.
"""

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from znatok.config import SampleOptions
from znatok.errors import ZnatokError
from znatok.generate.engine import Request, Speech, Stop
from znatok.generate.sampling import Chances
from znatok.generate.torch_engine import Together, TorchEngine
from znatok.lexicon import language_of, of_language
from znatok.retrieve import Knowledge, inform
from znatok.serve.roster import Offered, Roster
from znatok.tokens.chat import Message, Role

MOST = 32  # requests computed at a time, of all models together


@dataclass(frozen=True, slots=True)
class Begun:
    """A request left the queue.

    Attributes:
        sources: the lines of the knowledge that were put before its question, if any.
        prompt: what the model reads.
    """

    sources: tuple[str, ...]
    prompt: tuple[int, ...]


class Likely(NamedTuple):
    """A token as it is spelled, and the natural logarithm of its probability."""

    spelled: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is certain now, and the tokens said since the last piece: a token may hold half a character.

    Attributes:
        text: the text.
        tokens: the tokens.
        chances: of each token, if asked for: itself, then the likeliest in its place.
    """

    text: str
    tokens: tuple[int, ...]
    chances: tuple[tuple[Likely, ...], ...] = ()
    stop: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class Ended:
    """An answer is complete: why it ended, and what no piece has told of its tokens, if any are left."""

    stop: Stop
    tokens: tuple[int, ...]
    chances: tuple[tuple[Likely, ...], ...] = ()
    text: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """An answer will never be complete."""

    error: ZnatokError


Event = Begun | Piece | Ended | Failed

Composed = tuple[Request, tuple[str, ...]]
"""A request, and where the passages in it stand."""


@dataclass(eq=False)
class Job:
    """A request on its way.

    Attributes:
        model: who is asked.
        compose: makes the request once its turn has come: tokenizers are no place for several threads.
        stops: strings before which the answer ends.
        tell: hears what happens; called in the thread that computes.
        deadline: of the whole answer, by ``time.monotonic``.
        gone: nobody listens any more.
        begun: when it left the queue, by ``time.monotonic``.
        request: what is asked, known from then on.
    """

    model: Offered
    compose: Callable[[], Composed]
    stops: tuple[str, ...]
    tell: Callable[[Event], None]
    deadline: float
    gone: bool = False
    begun: float = 0.0
    request: Request = field(init=False)
    speech: Speech = field(init=False)
    _untold: list[int] = field(default_factory=list)
    _chances: list[tuple[Likely, ...]] = field(default_factory=list)

    def begin(self) -> None:
        """Make the request and get ready to speak."""
        self.begun = time.monotonic()
        self.request, sources = self.compose()
        self.speech = self.model.engine.speech(self.stops)
        self.tell(Begun(sources, tuple(self.model.engine.prompt_ids(self.request))))

    def hear(self, token: int, stop: Stop | None, chances: Chances | None = None) -> bool:
        """Take the next token, and how likely it was where that was asked; return whether the answer is over."""
        self._untold.append(token)
        if chances is not None:
            self._chances.append(tuple(Likely(self.model.engine.spelled(one), logprob) for one, logprob in chances))
        if piece := self.speech.take(token, stop):
            self.tell(Piece(piece, *self._news()))
        if self.speech.stop is not None:
            self.tell(Ended(self.speech.stop, *self._news()))
        return self.speech.stop is not None

    def _news(self) -> tuple[tuple[int, ...], tuple[tuple[Likely, ...], ...]]:
        news = tuple(self._untold), tuple(self._chances)
        self._untold, self._chances = [], []
        return news


def composed(
    model: Offered,
    before: Sequence[Message],
    question: str,
    sample: SampleOptions,
    seed: int,
    knowledge: Knowledge | None,
    likeliest: int | None = None,
) -> Composed:
    """Return a question as a request, with the passages nearest to it before it where there is knowledge.

    Args:
        model: who is asked; as many passages are put there as it sees.
        before: the messages before the question, the system message among them.
        question: as it was typed.
        sample: how the answer is drawn.
        seed: the same.
        knowledge: where to look things up, if anywhere.
        likeliest: how many tokens to tell in the place of each that is said (see :class:`Request`).
    """

    def asking(text: str) -> Request:
        return Request((*before, Message(Role.USER, text)), sample, seed, likeliest)

    if knowledge is None:
        return asking(question), ()
    form = of_language(language_of(question))["prompts"]["knowledge"]
    found = inform(question, knowledge, form, fits=lambda text: model.engine.fits(asking(text)))
    return asking(found.text), tuple(passage.source for passage in found.passages)


class Desk(ABC):
    """Where jobs are computed. Everything here runs in one thread."""

    @property
    @abstractmethod
    def jobs(self) -> list[Job]:
        """Return those being computed."""

    @abstractmethod
    def has_room(self, job: Job) -> bool:
        """Tell whether a job can be begun now."""

    @abstractmethod
    def take(self, job: Job) -> None:
        """Begin a job that there is room for.

        Raises:
            UsageError: the dialogue is longer than the model's context.
        """

    @abstractmethod
    def turns(self) -> list[list[Job]]:
        """Return the jobs that are computed now, those together whose tokens are computed together."""

    @abstractmethod
    def step(self, together: Sequence[Job]) -> None:
        """Say the next token of each job of a turn.

        Raises:
            ModelError: what the model computed is no number.
        """

    @abstractmethod
    def drop(self, job: Job) -> None:
        """Forget a job."""


def desk_for(roster: Roster) -> Desk:
    """Return the desk that fits what was loaded."""
    return TorchDesk() if roster.in_torch else SerialDesk()


class TorchDesk(Desk):
    """Requests to one model are answered together; the models take turns."""

    def __init__(self) -> None:
        self._places: dict[Offered, Together] = {}
        self._jobs: list[Job] = []

    @property
    def jobs(self) -> list[Job]:
        """Return those of all models."""
        return list(self._jobs)

    def has_room(self, job: Job) -> bool:
        """Tell whether a model's place has a free row, and memory is left."""
        place = self._places.get(job.model)
        return len(self._jobs) < MOST and (place is None or place.room > 0)

    def take(self, job: Job) -> None:
        """Read the prompt, say the first token; UsageError like :meth:`Desk.take`."""
        job.begin()
        place = self._place(job.model)
        self._jobs.append(job)  # before it joins: whoever drops it frees what a join that fails has taken
        with self._ready(job.model, place):
            _job, token, stop = place.join(job, job.request)
        self._hear(job, place, token, stop, place.chances)

    def turns(self) -> list[list[Job]]:
        """Return a turn for each model: what goes wrong with one is no other's affair."""
        turns = {model: [job for job in self._jobs if job.model is model] for model in self._places}
        return [turn for turn in turns.values() if turn]

    def step(self, together: Sequence[Job]) -> None:
        """Say the next token of everyone who asks one model; ModelError like :meth:`Desk.step`."""
        model = together[0].model
        place = self._places[model]
        with self._ready(model, place):
            said = [(*one, place.chances) for one in place.step()]
        for job, token, stop, chances in said:
            self._hear(job, place, token, stop, chances)

    def drop(self, job: Job) -> None:
        """Free the job's row, if it has one."""
        if job in self._jobs:
            self._jobs.remove(job)
            self._places[job.model].leave(job)

    def _hear(self, job: Job, place: Together, token: int, stop: Stop | None, chances: Chances | None) -> None:
        if job.hear(token, stop, chances):
            self._jobs.remove(job)
            place.leave(job)

    def _place(self, model: Offered) -> Together:
        """Return where a model's requests are answered together."""
        if model not in self._places:
            engine = model.engine
            assert isinstance(engine, TorchEngine)
            with model.speaking():
                self._places[model] = engine.together()
        return self._places[model]

    @staticmethod
    def _ready(model: Offered, place: Together) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext() if place.settled else model.speaking()


class SerialDesk(Desk):
    """One request after another."""

    def __init__(self) -> None:
        self._job: Job | None = None
        self._tokens: Iterator[tuple[int, int, Stop | None]] = iter(())

    @property
    def jobs(self) -> list[Job]:
        """Return the one job, if there is one."""
        return [self._job] if self._job is not None else []

    def has_room(self, job: Job) -> bool:
        """Tell whether nothing is being computed."""
        return self._job is None

    def take(self, job: Job) -> None:
        """Say the first token; UsageError like :meth:`Desk.take`."""
        job.begin()
        self._job, self._tokens = job, job.model.engine.tokens([job.request])
        try:
            self.step([job])
        except BaseException:
            self._job = None
            raise

    def turns(self) -> list[list[Job]]:
        """Return the one job's turn, if there is one."""
        return [self.jobs] if self._job is not None else []

    def step(self, together: Sequence[Job]) -> None:
        """Say the next token."""
        (job,) = together
        _index, token, stop = next(self._tokens)
        if job.hear(token, stop):
            self._job = None

    def drop(self, job: Job) -> None:
        """Let go of the job, if it is this one."""
        if self._job is job:
            self._job = None
