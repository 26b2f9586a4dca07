"""Does a server of the run answer as the adapter does? Asked over HTTP, at a port of this computer that closes again.

It is the application of ``znatok serve --runs RUN`` with its default flags: the number format and the engine it takes
by itself, the system message it finds in the run, its own template and its own way from tokens to a reply.
"""

import contextlib
import http.client
import importlib.util
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from znatok.config import ModelOptions, SampleOptions, ServeOptions
from znatok.errors import GateError
from znatok.expert import Expert, Voice, open_expert
from znatok.export.parity import TOKENS, Export, Heard, spoken
from znatok.generate.engine import Request, TokenEngine
from znatok.generate.torch_engine import TorchEngine
from znatok.tokens.chat import Message, Role

HOST = "127.0.0.1"
PATIENCE = 3600.0  # seconds an answer may take
AT_ONCE = 8  # questions


def installed() -> bool:
    """Tell whether what a server needs is there."""
    return all(importlib.util.find_spec(name) for name in ("fastapi", "prometheus_client", "uvicorn"))


@contextlib.contextmanager
def opened(expert: Expert, longest: int) -> Iterator[Export]:
    """Lend a server of the expert's run.

    Args:
        expert: with a run.
        longest: tokens of a prompt.

    Raises:
        GateError: it does not start, refuses a question, or ends before it has answered.
        ModelError, UsageError, SystemFault: the base or the adapter can't be served at all.
    """
    from znatok.serve.app import build_app
    from znatok.serve.asking import Service
    from znatok.serve.desk import desk_for
    from znatok.serve.dispatch import Dispatcher
    from znatok.serve.roster import open_roster

    assert expert.run is not None
    context = max(ServeOptions().context, longest + TOKENS)
    base = ModelOptions(model_name=expert.base_name)
    roster = open_roster(base, expert.run.path, expert.system, context=context)
    dispatcher = Dispatcher(desk_for(roster), limit=AT_ONCE)
    try:
        app = build_app(Service(roster, dispatcher, SampleOptions(), PATIENCE), {HOST}, None)
        with _at_a_port(app, lambda _asked: dispatcher.give_up()) as port:
            client = _Client(port, list(roster.models)[-1], logprobs=roster.in_torch)
            computed = roster.engine, roster.format
            yield Export(
                f"znatok serve ({', '.join(computed)})", client.hear, [client.render], partial(_chat, expert, *computed)
            )
    finally:
        dispatcher.give_up()
        dispatcher.close()
        roster.close()


def _chat(expert: Expert, engine: str, dtype: str, requests: Sequence[Request]) -> list[tuple[int, ...]]:
    """Return what ``znatok chat`` with the expert's run says, computed as the server computes."""
    options = ModelOptions(model_name=expert.base_name, dtype=dtype if engine == TorchEngine.name else "auto")
    alone = open_expert(options, expert.run, expert.system, engine)
    with contextlib.closing(alone), alone.speaking(Voice.TUNED) as voice:
        assert isinstance(voice, TokenEngine)
        return spoken(voice, requests)


class _Client:
    """Asks for the likeliest tokens; the server is to find the system message by itself."""

    def __init__(self, port: int, model: str, *, logprobs: bool) -> None:
        """Ask a model at a port, also how likely its tokens are where the server tells it."""
        self._port, self._model, self._logprobs = port, model, logprobs

    def hear(self, requests: Sequence[Request]) -> list[Heard]:
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            replies = list(pool.map(lambda request: self._ask(request.messages, TOKENS), requests))
        finally:  # the first that fails ends it, as Ctrl-C does: nobody waits for the others
            pool.shutdown(wait=False, cancel_futures=True)
        return [self._heard(reply["choices"][0]) for reply in replies]

    def _heard(self, choice: dict[str, Any]) -> Heard:
        tokens = tuple(choice["token_ids"])
        if not self._logprobs:
            return Heard(tokens, [math.nan] * len(tokens))
        return Heard(tokens, [told["logprob"] for told in choice["logprobs"]["content"]])

    def render(self, messages: Sequence[Message]) -> list[int]:
        return list(self._ask(messages, 1)["prompt_token_ids"])

    def _ask(self, messages: Sequence[Message], longest: int) -> dict[str, Any]:
        order = {
            "model": self._model,
            "messages": [{"role": m.role, "content": m.text} for m in messages if m.role is not Role.SYSTEM],
            "temperature": 0,
            "max_tokens": longest,
            "return_token_ids": True,
            "logprobs": self._logprobs,
        }
        try:
            status, body = self._post(json.dumps(order))
            why = "" if status == http.HTTPStatus.OK else body["error"]["message"]
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            raise GateError(
                "znatok serve: a question stayed without an answer: {why}; nothing was kept; --check false does not"
                " ask",
                why=str(error) or type(error).__name__,
            ) from error
        if why:
            raise GateError(
                "znatok serve: it refuses a question: {why}; nothing was kept; --check false does not ask", why=why
            )
        return body

    def _post(self, order: str) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=PATIENCE + 60)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/chat/completions", order, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())


@contextlib.contextmanager
def _at_a_port(app: Any, give_up: Callable[[int], object]) -> Iterator[int]:
    """Serve an application in a thread, at a port that is free; GateError where it does not start."""
    from znatok.serve.server import Server

    server = Server(app, 0, give_up)
    with socket.create_server((HOST, 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="served", daemon=True)
        thread.start()
        while not server.started:
            if not thread.is_alive():
                raise GateError("znatok serve: it does not start; nothing was kept; --check false does not ask")
            time.sleep(0.01)
        try:
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()
