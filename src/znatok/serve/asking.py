"""One request for answers: jobs for the dispatcher, and what they tell as a reply, whole or as a stream."""

import asyncio
import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from znatok.config import SampleOptions
from znatok.errors import UsageError, ZnatokError
from znatok.retrieve import Knowledge
from znatok.serve.desk import Begun, Ended, Event, Failed, Job, Piece, composed
from znatok.serve.dispatch import Dispatcher
from znatok.serve.meters import Meters
from znatok.serve.protocol import ChatRequest, Reply, Said, Told, error_of, with_ids, with_logprobs
from znatok.serve.roster import Offered, Roster


@dataclass(frozen=True)
class Service:
    """What the application needs.

    Attributes:
        roster: the models.
        dispatcher: computes.
        sample: how an answer is drawn where a request leaves it open.
        timeout: seconds an answer may take, waiting included.
        knowledge: passages that are put before questions, if any.
        knowledge_files: the SHA-256 of each file they were read from.
    """

    roster: Roster
    dispatcher: Dispatcher
    sample: SampleOptions
    timeout: float
    knowledge: Knowledge | None = None
    knowledge_files: tuple[str, ...] = ()

    def fingerprint(self, model: Offered) -> str:
        """Name everything that an answer of a model depends on and a request does not say."""
        named = {**model.traits, "sample": asdict(self.sample), "knowledge": self.knowledge_files}
        return "fp_" + hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16]


class Gone(Exception):  # nothing went wrong
    """Whoever asked has left."""


class Mailbox:
    """What the jobs of one request tell, in the order they tell it."""

    def __init__(self, http: Request) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._gone = asyncio.create_task(_until_gone(http))

    def tell(self, index: int, event: Event) -> None:
        """Take an event of a job; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop was closed: the server has stopped, nobody listens
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

    async def next(self) -> tuple[int, Event]:
        """Return the next event.

        Raises:
            Gone: the client has left.
            ZnatokError: a job failed.
        """
        coming = asyncio.create_task(self._events.get())
        try:
            await asyncio.wait({coming, self._gone}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                raise Gone
            index, event = coming.result()
        finally:
            coming.cancel()
        if isinstance(event, Failed):
            raise event.error
        return index, event

    def close(self) -> None:
        """Listen no more."""
        self._gone.cancel()


async def _until_gone(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


class Asking:
    """One request for answers, from its jobs to the reply."""

    def __init__(self, service: Service, meters: Meters, model: Offered, body: ChatRequest, http: Request) -> None:
        """Queue the jobs.

        Raises:
            UsageError: the messages make no dialogue; more answers are wanted than may ever wait; options contradict
                each other.
            Busy: the queue is full.
            Stopping: the server is.
        """
        self.sources: tuple[str, ...] = ()
        self.prompt: tuple[int, ...] = ()
        self._service, self._meters, self._model, self._body = service, meters, model, body
        self._started = time.monotonic()
        self._spoke = False
        before, question = body.dialogue(model.system)
        if body.choices > (most := service.dispatcher.limit):  # waiting would not help
            raise UsageError(
                "n {n}: the queue holds {most}; ask for fewer answers at once", n=body.choices, most=most, param="n"
            )
        if body.logprobs and not service.roster.in_torch:
            raise UsageError(
                "logprobs: {engine} tells none of a part of a character; start the server with --engine torch",
                engine=service.roster.engine, param="logprobs",
            )  # fmt: skip
        seed = body.seed % 2**63 if body.seed is not None else secrets.randbits(62)
        known, likeliest, self._with_usage = service.knowledge, body.likeliest, body.wants_usage
        sample = body.sample(service.sample)
        self.reply = Reply(model.name, service.fingerprint(model))
        self._box = Mailbox(http)
        self.jobs = [
            Job(
                model=model,
                compose=partial(composed, model, before, question, sample, (seed + index) % 2**63, known, likeliest),
                stops=body.stops,
                tell=partial(self._box.tell, index),
                deadline=self._started + service.timeout,
            )
            for index in range(body.choices)
        ]
        try:
            service.dispatcher.submit(self.jobs)
        except BaseException:
            self._box.close()
            raise

    async def events(self) -> AsyncIterator[tuple[int, Piece | Ended]]:
        """Yield what is said until all answers have ended; gives them up when it is closed before."""
        outcome, left = "cancelled", len(self.jobs)  # what it stays however the client's leaving is noticed
        try:
            while left:
                index, event = await self._box.next()
                if isinstance(event, Begun):
                    self.sources, self.prompt = event.sources, event.prompt
                    self._meters.prompt_tokens.labels(self._model.name).inc(len(event.prompt))
                elif isinstance(event, (Piece, Ended)):
                    self._note(event)
                    left -= isinstance(event, Ended)
                    yield index, event
            outcome = "answered"
        except Gone:
            pass
        except ZnatokError as error:
            outcome = "refused" if isinstance(error, UsageError) else "failed"
            raise
        finally:
            for job in self.jobs:
                self._service.dispatcher.cancel(job)
            self._box.close()
            self._meters.requests.labels(self._model.name, outcome).inc()

    def _note(self, event: Piece | Ended) -> None:
        name, seconds = self._model.name, time.monotonic() - self._started
        if not self._spoke:
            self._spoke = True
            self._meters.first.labels(name).observe(seconds)
        self._meters.tokens.labels(name).inc(len(event.tokens))
        if isinstance(event, Ended):
            self._meters.whole.labels(name).observe(seconds)

    async def whole(self) -> Response:
        """Return the reply in one piece."""
        answers = [Said() for _job in self.jobs]
        async for index, event in self.events():
            answers[index].add(event)
        if not all(answer.stop for answer in answers):
            return Response(status_code=499)  # nobody reads it
        reply = self.reply.whole(answers, len(self.prompt))
        return JSONResponse(self._complete(self._detailed(reply, *answers)))

    async def streamed(self) -> Response:
        """Return the reply as server-sent events, once there is something to say: what fails before has a status."""
        events = self.events()
        first = await anext(events, None)
        return StreamingResponse(
            self._chunks(first, events), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    async def _chunks(
        self, first: tuple[int, Piece | Ended] | None, events: AsyncIterator[tuple[int, Piece | Ended]]
    ) -> AsyncIterator[str]:
        chunk = partial(self.reply.chunk, with_usage=self._with_usage)
        answers = [Said() for _job in self.jobs]
        try:
            for index in range(len(self.jobs)):
                yield _sse(self._complete(chunk(index, {"role": "assistant", "content": ""}, None)))
            if first is not None:
                yield _sse(self._part(chunk, *first, answers))
            async for index, event in events:
                yield _sse(self._part(chunk, index, event, answers))
            if self._with_usage and all(answer.stop for answer in answers):
                yield _sse(self.reply.closing(len(self.prompt), answers))
            yield "data: [DONE]\n\n"
        except ZnatokError as error:
            yield _sse(error_of(error))
        finally:
            await events.aclose()  # type: ignore[attr-defined]  # it is a generator

    def _part(self, chunk: Any, index: int, event: Piece | Ended, answers: Sequence[Said]) -> dict[str, Any]:
        answers[index].add(event)
        return self._detailed(chunk(index, {} if event.stop else {"content": event.text}, event.stop), event)

    def _detailed(self, reply: dict[str, Any], *said: Told) -> dict[str, Any]:
        """Add the tokens of each choice, and how likely they were, where that was asked for."""
        if self._body.return_token_ids:
            reply = with_ids(reply, *said)
        return with_logprobs(reply, *said) if self._body.logprobs else reply

    def _complete(self, reply: dict[str, Any]) -> dict[str, Any]:
        """Add the lines an answer may cite, where knowledge was put before the question, and the prompt's tokens."""
        if self._service.knowledge is not None:
            reply = reply | {"sources": list(self.sources)}
        return reply | {"prompt_token_ids": list(self.prompt)} if self._body.return_token_ids else reply


def _sse(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
