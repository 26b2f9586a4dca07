"""The HTTP application: its addresses, and errors in the API's own words."""

from collections.abc import Collection
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from znatok import __version__
from znatok.errors import ModelError, SystemFault, UsageError, ZnatokError
from znatok.serve.asking import Asking, Service
from znatok.serve.dispatch import Busy, Stopping, TimedOut
from znatok.serve.guard import JSON_ONLY, Guard
from znatok.serve.meters import Meters
from znatok.serve.protocol import EITHER, ChatRequest, error_body, error_of
from znatok.serve.roster import Offered, Roster

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
NOT_DONE = "not supported here; leave it out or send null"
STATUS = ((UsageError, 400), (TimedOut, 504), (Stopping, 503), (ModelError, 500))


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
        faults = error.errors()
        # where text or a list may stand, the one that was not sent is at fault as well: that is no news
        first = next((fault for fault in faults if fault["type"] not in {"string_type", "list_type"}), faults[0])
        place = ".".join(str(part) for part in first["loc"][1:] if part != EITHER)
        said = NOT_DONE if first["type"] == "none_required" else first["msg"]
        message = f"{place}: {said}" if place else str(said)
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

    @app.exception_handler(Exception)
    async def fault(_request: Request, error: Exception) -> Response:
        """Answer for a fault of ours; what it was is logged by who calls the application."""
        return JSONResponse(error_of(SystemFault("the server failed: {why}", why=type(error).__name__)), 500)

    @app.exception_handler(ZnatokError)
    async def ours(_request: Request, error: ZnatokError) -> Response:
        status = next((status for kind, status in STATUS if isinstance(error, kind)), 500)
        return JSONResponse(error_of(error), status)
