"""uvicorn, with an end to what it would wait for without one: a request's headers, and clients when it stops."""

import asyncio
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

SLOWEST = 30.0  # seconds in which a request has to begin, with all its headers
FAREWELL = 1.0  # seconds in which the last words have to reach those who are given up


class Connection(H11Protocol):
    """A connection that is cut where no request comes of it in time.

    uvicorn stops its keep-alive clock at the first byte of the next request, and has none for the rest of the headers,
    for a connection on which nothing was asked yet, or for a body that was answered before it was read.
    """

    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request; the time for all of them runs from the first."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        super().connection_lost(exc)
        self._unwatch()

    def _watch(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering or self.transport.is_closing():
            self._unwatch()
        elif self._due is None:
            self._due = self.loop.call_later(SLOWEST, self.transport.abort)

    def _unwatch(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None


class Server(uvicorn.Server):
    """Serves until a signal; running answers may end then, for some time, or until a second signal."""

    def __init__(self, app: ASGIApp, patience: float, give_up: Callable[[int], object] = lambda _asked: None) -> None:
        """Prepare to serve.

        Args:
            app: what is served.
            patience: seconds that running answers have to end when the server is stopped.
            give_up: tells all who wait for an answer then that none will come; hears how many.
        """
        # uvicorn's own end of patience cancels its tasks, which cuts clients off without a word and logs a traceback
        super().__init__(uvicorn.Config(app, http=Connection, log_level="warning", access_log=False))
        self._patience = patience
        self._give_up = give_up
        self._hurried = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal; the second one means that nobody wants to wait."""
        self._hurried = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nothing more; return once everyone is answered or given up."""
        ending = asyncio.create_task(self._run_out())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _run_out(self) -> None:
        """Give everyone up when the time is over, and cut off who does not take that for an answer."""
        ends = time.monotonic() + self._patience
        while time.monotonic() < ends and not self._hurried:
            await asyncio.sleep(0.05)
        if asked := len(self.server_state.tasks):
            self._give_up(asked)
        await asyncio.sleep(FAREWELL)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
