"""Start the server, say where it is, stop it without cutting anybody off."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from znatok.config import LANGUAGE_NEUTRAL_SYSTEM, ModelOptions, SampleOptions, ServeOptions
from znatok.errors import SystemFault, UsageError, _
from znatok.files import sha256
from znatok.lexicon import lexicon_near
from znatok.logs import say, warn
from znatok.retrieve import open_knowledge

KEY_VARIABLE = "ZNATOK_API_KEY"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
SHORTEST_KEY = 16


def serve(model: ModelOptions, options: ServeOptions, sample: SampleOptions, engine: str) -> None:
    """Serve until SIGINT or SIGTERM; what is being answered then is answered to its end, or given up in time.

    Raises:
        SystemFault: an extra is not installed, or the address can't be had.
        UsageError: an address others can reach, and no key.
        ModelError, DataError: the base, the only run, or the knowledge can't be read.
    """
    _need_extra()
    key = api_key(options)
    listener = listen(options)  # before a model is loaded for minutes
    try:
        import torch

        from znatok.serve.app import build_app
        from znatok.serve.asking import Service
        from znatok.serve.desk import desk_for
        from znatok.serve.dispatch import Dispatcher
        from znatok.serve.roster import open_roster
        from znatok.serve.server import Server

        if options.threads:
            torch.set_num_threads(options.threads)
        passages = Path(options.knowledge) if options.knowledge else None
        knowledge = open_knowledge(passages) if passages else None
        runs = Path(options.runs) if options.runs else None
        roster = open_roster(model, runs, LANGUAGE_NEUTRAL_SYSTEM, engine, options.context)
        dispatcher = Dispatcher(desk_for(roster), options.queue)
        service = Service(roster, dispatcher, sample, options.timeout, knowledge, digests(passages))

        def give_up(asked: int) -> None:
            warn(_("requests given up unanswered: {n}", n=asked))
            dispatcher.give_up()

        server = Server(build_app(service, allowed_hosts(options), key), options.patience, give_up)
        with quiet_signals(server.handle_exit):  # whoever reads the banner may ask, or stop it, at once
            try:
                open_doors(listener, options)
                for line in banner(options, roster, listener.getsockname()[1], key):
                    say(line)
                server.run(sockets=[listener])
            finally:
                dispatcher.close()
                roster.close()
        say(_("stopped"))
    finally:
        listener.close()


def digests(passages: Path | None) -> tuple[str, ...]:
    """Return the SHA-256 of a file of passages, and of the lexicon that is read with it."""
    if passages is None:
        return ()
    return tuple(sha256(path) for path in (passages, lexicon_near(passages)) if path is not None)


def api_key(options: ServeOptions) -> str | None:
    """Return the key clients have to bring; None where none is needed.

    Raises:
        UsageError: others could reach the server and there is none; the key is too short or nothing that a header can
            hold, or its file can't be read.
    """
    key = os.environ.get(KEY_VARIABLE, "")
    where = KEY_VARIABLE
    if options.api_key_file:
        where = options.api_key_file
        try:
            key = Path(where).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError("--api_key_file {path}: can't be read: {why}", path=where, why=str(error)[:80]) from error
    key = key.strip()
    if key and len(key) < SHORTEST_KEY:
        raise UsageError(
            "{where}: the key has {n} characters; expected {least} or more", where=where, n=len(key), least=SHORTEST_KEY
        )
    if not (key.isascii() and key.isprintable()):
        raise UsageError(
            "{where}: expected one line of ASCII letters, digits and signs, which a header can hold", where=where
        )
    if not key and options.host not in LOOPBACK:
        raise UsageError(
            "--host {host}: others can reach it, so a key is needed: set {variable} or name --api_key_file",
            host=options.host,
            variable=KEY_VARIABLE,
        )
    return key or None


def allowed_hosts(options: ServeOptions) -> frozenset[str] | None:
    """Return the names a request may call the server by; None for any.

    A server others reach is called by names it does not know; there the key keeps foreign pages out.
    """
    if options.host not in LOOPBACK:
        return None
    return frozenset({"localhost", "127.0.0.1", "[::1]"})


def banner(options: ServeOptions, roster: Any, port: int, key: str | None) -> list[str]:
    """Return what the operator is told: address, models, who can reach it, and a line to try."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    url = f"http://{host}:{port}/v1"
    names = list(roster.models)
    alone = options.host in LOOPBACK
    shown = " -H 'Authorization: Bearer …'" if key else ""
    body = f'{{"model": "{names[-1]}", "messages": [{{"role": "user", "content": "…"}}]}}'
    return [
        _("address: {url}, {who}", url=url, who=_("this computer only") if alone else _("reachable from the network")),
        _("API key: needed") if key else _("API key: none"),
        _("models: {names}", names=", ".join(names)),
        _("engine: {engine}, {format}", engine=roster.engine, format=roster.format),
        f"curl {url}/chat/completions -H 'Content-Type: application/json'{shown} -d '{body}'",
    ]


def listen(options: ServeOptions) -> socket.socket:
    """Open the port.

    Raises:
        SystemFault: somebody has it, or the address is none of this machine.
    """
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with told_of(options):
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((options.host, options.port))
        except BaseException:
            listener.close()
            raise
    return listener


def open_doors(listener: socket.socket, options: ServeOptions) -> None:
    """Let clients in; SystemFault where another server was quicker to open the same port."""
    with told_of(options):
        listener.listen()


@contextlib.contextmanager
def told_of(options: ServeOptions) -> Iterator[None]:
    """Make an error of a socket one that names the address."""
    try:
        yield
    except (OSError, TypeError) as error:  # the latter of a name that can't be one
        raise SystemFault(
            "{host}:{port}: can't listen there ({why}); choose another --port",
            host=options.host, port=options.port, why=getattr(error, "strerror", None) or str(error),
        ) from error  # fmt: skip


@contextlib.contextmanager
def quiet_signals(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Let uvicorn stop at a signal; one before it has begun or after it has ended comes to ``handler``."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)


def _need_extra() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise SystemFault("a server needs FastAPI and uvicorn: pip install 'znatok[serve]'") from error
