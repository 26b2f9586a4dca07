"""Does ``znatok serve`` answer as the adapter does? Asked over HTTP, at a port of this computer that closes again.

The server is the one that ``znatok serve --runs RUN`` starts: the number format and the engine it takes by itself, the
system message it finds in the run, its own template and its own way from tokens to a reply.
"""

import contextlib
import http.client
import importlib.util
import json
import math
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from znatok.config import ModelOptions, SampleOptions
from znatok.errors import GateError
from znatok.expert import Expert
from znatok.export.parity import TOKENS, Export, Heard
from znatok.generate.engine import Request
from znatok.tokens.chat import Message, Role

HOST = "127.0.0.1"
PATIENCE = 600.0  # seconds an answer may take
AT_ONCE = 8  # questions


def installed() -> bool:
    """Tell whether what a server needs is there."""
    return all(importlib.util.find_spec(name) for name in ("fastapi", "prometheus_client", "uvicorn"))


@contextlib.contextmanager
def opened(expert: Expert) -> Iterator[Export]:
    """Lend a server of the expert's run.

    Raises:
        GateError: it refuses a question.
    """
    from znatok.serve.app import build_app
    from znatok.serve.asking import Service
    from znatok.serve.desk import desk_for
    from znatok.serve.dispatch import Dispatcher
    from znatok.serve.roster import open_roster

    assert expert.run is not None
    roster = open_roster(ModelOptions(model_name=expert.base_name), expert.run.path, expert.system)
    dispatcher = Dispatcher(desk_for(roster), limit=AT_ONCE)
    try:
        app = build_app(Service(roster, dispatcher, SampleOptions(), PATIENCE), {HOST}, None)
        with _at_a_port(app) as port:
            client = _Client(port, list(roster.models)[-1])
            yield Export(f"znatok serve ({roster.engine}, {roster.format})", client.hear, [client.render])
    finally:
        dispatcher.close()
        roster.close()


class _Client:
    """Asks for the likeliest tokens; the server is to find the system message by itself."""

    def __init__(self, port: int, model: str) -> None:
        self._port, self._model = port, model

    def hear(self, requests: Sequence[Request]) -> list[Heard]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            replies = list(pool.map(lambda request: self._ask(request.messages, TOKENS), requests))
        said = [tuple(reply["choices"][0]["token_ids"]) for reply in replies]
        return [Heard(tokens, [math.nan] * len(tokens)) for tokens in said]

    def render(self, messages: Sequence[Message]) -> list[int]:
        return list(self._ask(messages, 1)["prompt_token_ids"])

    def _ask(self, messages: Sequence[Message], longest: int) -> dict[str, Any]:
        order = {
            "model": self._model,
            "messages": [{"role": m.role, "content": m.text} for m in messages if m.role is not Role.SYSTEM],
            "temperature": 0,
            "max_tokens": longest,
            "return_token_ids": True,
        }
        connection = http.client.HTTPConnection(HOST, self._port, timeout=PATIENCE)
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", json.dumps(order), headers)
            answer = connection.getresponse()
            body: dict[str, Any] = json.loads(answer.read())
        if answer.status != http.HTTPStatus.OK:
            raise GateError("znatok serve: it refuses a question: {why}", why=body["error"]["message"])
        return body


@contextlib.contextmanager
def _at_a_port(app: Any) -> Iterator[int]:
    """Serve an application in a thread, at a port that is free."""
    from znatok.serve.server import Server

    server = Server(app, patience=0)
    with socket.create_server((HOST, 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="served", daemon=True)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()
