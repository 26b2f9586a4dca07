"""The HTTP application: a request becomes jobs for the dispatcher, what they tell becomes a reply."""

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from znatok import __version__
from znatok.config import SampleOptions
from znatok.errors import ModelError, UsageError, ZnatokError
from znatok.generate.engine import Request as Question
from znatok.lexicon import language_of, of_language
from znatok.retrieve import Knowledge, inform
from znatok.serve.desk import Begun, Composed, Ended, Event, Failed, Job, Piece
from znatok.serve.dispatch import Busy, Dispatcher, Stopping, TimedOut
from znatok.serve.guard import JSON_ONLY, Guard
from znatok.serve.meters import Meters
from znatok.serve.protocol import ChatRequest, Reply, error_body, error_of
from znatok.serve.roster import Offered, Roster
from znatok.tokens.chat import Message, Role

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "the request can't be obeyed"},
    401: {"description": "no valid API key"},
    403: {"description": "a page of another site asks"},
    404: {"description": "no such model"},
    408: {"description": "the body came too slowly"},
    413: {"description": "the body is too large"},
    415: {"description": "the body is no JSON"},
    429: {"description": "the queue is full; Retry-After says when to come again"},
    500: {"description": "the server failed"},
    503: {"description": "the server is stopping"},
    504: {"description": "the answer took too long"},
}
STREAM = {"description": "the answer, whole or as a stream of parts", "content": {"text/event-stream": {}}}
STATUS = ((UsageError, 400), (TimedOut, 504), (Stopping, 503), (ModelError, 500))


@dataclass(frozen=True)
class Service:
    """What the application needs.

    Attributes:
        roster: the models.
        dispatcher: computes.
        sample: how an answer is drawn where a request leaves it open.
        timeout: seconds an answer may take, waiting included.
        knowledge: passages that are put before questions, if any.
    """

    roster: Roster
    dispatcher: Dispatcher
    sample: SampleOptions
    timeout: float
    knowledge: Knowledge | None = None


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
            UsageError: the messages make no dialogue.
            Busy: the queue is full.
            Stopping: the server is.
        """
        self.sources: tuple[str, ...] = ()
        self._service, self._meters, self._model, self._body = service, meters, model, body
        self._started = time.monotonic()
        self._spoke = False
        before, question = body.dialogue(model.system)
        seed = body.seed % 2**63 if body.seed is not None else secrets.randbits(62)
        self._box = Mailbox(http)
        self.jobs = [
            Job(
                model=model,
                compose=partial(self._compose, before, question, (seed + index) % 2**63),
                stops=body.stops,
                tell=partial(self._box.tell, index),
                deadline=self._started + service.timeout,
            )
            for index in range(body.choices)
        ]
        self.reply = Reply(model.name, model.fingerprint)
        try:
            service.dispatcher.submit(self.jobs)
        except BaseException:
            self._box.close()
            raise

    def _compose(self, before: list[Message], question: str, seed: int) -> Composed:
        """Make the request; runs in the thread that computes."""
        sample = self._body.sample(self._service.sample)

        def asking(text: str) -> Question:
            return Question((*before, Message(Role.USER, text)), sample, seed)

        if self._service.knowledge is None:
            return asking(question), ()
        form = of_language(language_of(question))["prompts"]["knowledge"]
        found = inform(question, self._service.knowledge, form, fits=lambda text: self._model.engine.fits(asking(text)))
        return asking(found.text), tuple(passage.source for passage in found.passages)

    async def events(self) -> AsyncIterator[tuple[int, Piece | Ended]]:
        """Yield what is said until all answers have ended; gives them up when it is closed before."""
        outcome, left = "cancelled", len(self.jobs)  # what it stays however the client's leaving is noticed
        try:
            while left:
                index, event = await self._box.next()
                if isinstance(event, Begun):
                    self.sources = event.sources
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
        if isinstance(event, Ended):
            self._meters.prompt_tokens.labels(name).inc(event.prompt_tokens)
            self._meters.tokens.labels(name).inc(event.tokens)
            self._meters.whole.labels(name).observe(seconds)

    async def whole(self) -> Response:
        """Return the reply in one piece."""
        texts, ends = [""] * len(self.jobs), dict[int, Ended]()
        async for index, event in self.events():
            if isinstance(event, Piece):
                texts[index] += event.text
            else:
                ends[index] = event
        if len(ends) < len(self.jobs):
            return Response(status_code=499)  # nobody reads it
        ordered = [ends[index] for index in range(len(self.jobs))]
        reply = self.reply.whole(
            texts, [end.stop for end in ordered], ordered[0].prompt_tokens, sum(end.tokens for end in ordered)
        )
        return JSONResponse(self._cited(reply))

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
        chunk = partial(self.reply.chunk, with_usage=self._body.wants_usage)
        ends: list[Ended] = []
        try:
            for index in range(len(self.jobs)):
                yield _sse(self._cited(chunk(index, {"role": "assistant", "content": ""}, None)))
            if first is not None:
                yield _sse(self._said(chunk, *first, ends))
            async for index, event in events:
                yield _sse(self._said(chunk, index, event, ends))
            if self._body.wants_usage and ends:
                yield _sse(self.reply.closing(ends[0].prompt_tokens, sum(end.tokens for end in ends)))
            yield "data: [DONE]\n\n"
        except ZnatokError as error:
            yield _sse(error_of(error))
        finally:
            await events.aclose()  # type: ignore[attr-defined]  # it is a generator

    @staticmethod
    def _said(chunk: Any, index: int, event: Piece | Ended, ends: list[Ended]) -> dict[str, Any]:
        if isinstance(event, Piece):
            return dict(chunk(index, {"content": event.text}, None))
        ends.append(event)
        return dict(chunk(index, {}, event.stop))

    def _cited(self, reply: dict[str, Any]) -> dict[str, Any]:
        """Add the lines an answer may cite, where knowledge was put before the question."""
        return reply | {"sources": list(self.sources)} if self._service.knowledge is not None else reply


def _sse(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def build_app(service: Service, hosts: Collection[str] | None, key: str | None) -> FastAPI:
    """Return the application.

    Args:
        service: what it serves.
        hosts: names a request may call it by; None for any.
        key: the API key, where one is needed.
    """
    app = FastAPI(title="znatok", version=__version__, docs_url=None, redoc_url=None)
    meters = Meters(service.dispatcher)
    _add_errors(app)
    app.add_middleware(Guard, hosts=hosts, key=key)

    @app.get("/health", responses=ERRORS)
    async def health() -> Response:
        """Tell whether the server answers, and how much it has to do."""
        broken = service.dispatcher.broken
        state = {
            "status": "failing" if broken else "ok",
            "engine": service.roster.engine,
            "waiting": service.dispatcher.waiting,
            "running": service.dispatcher.running,
        }
        return JSONResponse(state, 503 if broken else 200)

    @app.get("/metrics", responses=ERRORS, response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Return counters for Prometheus."""
        return Response(meters.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", responses=ERRORS)
    async def models() -> Response:
        """List the base and every adapter."""
        return JSONResponse({"object": "list", "data": [_described(one) for one in service.roster.models.values()]})

    @app.get("/v1/models/{model:path}", responses=ERRORS)
    async def model(model: str) -> Response:
        """Describe one of them."""
        return JSONResponse(_described(_named(service.roster, model)))

    @app.post(JSON_ONLY, responses={200: STREAM, **ERRORS})
    async def chat_completions(body: ChatRequest, http: Request) -> Response:
        """Continue a dialogue."""
        asking = Asking(service, meters, _named(service.roster, body.model), body, http)
        return await (asking.streamed() if body.stream else asking.whole())

    return app


class NoSuchModel(UsageError):
    """A model id that is not served."""


def _named(roster: Roster, name: str) -> Offered:
    if name not in roster.models:
        raise NoSuchModel(
            "model {name}: not served; expected one of {known}", name=name, known=", ".join(roster.models)
        )
    return roster.models[name]


def _described(model: Offered) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": model.created, "owned_by": "znatok"}


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        """Name the first fault and its place; the value is not repeated, it may be anything."""
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        message = f"{place}: {first['msg']}" if place else str(first["msg"])
        return JSONResponse(error_body(message, "invalid_request_error", "invalid_value", place or None), 400)

    @app.exception_handler(HTTPException)
    async def http_error(_request: Request, error: HTTPException) -> Response:
        body = error_body(str(error.detail), "invalid_request_error")
        return JSONResponse(body, error.status_code, error.headers)

    @app.exception_handler(Busy)
    async def busy(_request: Request, error: Busy) -> Response:
        body = error_body("the queue is full; try again later", "rate_limit_error", "queue_full")
        return JSONResponse(body, 429, {"Retry-After": str(error.seconds)})

    @app.exception_handler(NoSuchModel)
    async def no_model(_request: Request, error: NoSuchModel) -> Response:
        return JSONResponse(error_body(str(error), "invalid_request_error", "model_not_found", "model"), 404)

    @app.exception_handler(ZnatokError)
    async def ours(_request: Request, error: ZnatokError) -> Response:
        status = next((status for kind, status in STATUS if isinstance(error, kind)), 500)
        return JSONResponse(error_of(error), status)
