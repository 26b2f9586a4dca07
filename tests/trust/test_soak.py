"""A server under minutes of clients of every kind: who asks with a seed is answered as if alone, and nothing piles up.

``SOAK=600`` seconds by default. The figures are printed as JSON (``pytest -s``); docs/reliability.md quotes a run.
"""

import asyncio
import json
import os
import random
import socket
import time
from collections import Counter
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

import helpers
import serving
import tiny
from served import Server

SECONDS = float(os.environ.get("SOAK", "600"))
QUESTIONS = [question for question, _answer in tiny.PAIRS]
SEEDED = [
    {
        "model": model,
        "seed": seed,
        "max_tokens": 24,
        "temperature": 1.0,
        "messages": [{"role": "user", "content": text}],
    }
    for model in ("base", "printing")
    for seed, text in enumerate(QUESTIONS[:4])
]
ABSURD = [
    b"", b"{", b"null", b'{"model": "base"}', b"[" * 100_000, b'{"model": "base", "messages": []}', b"\xff\xfe",
    json.dumps(SEEDED[0] | {"temperature": 9}).encode(), json.dumps(SEEDED[0] | {"n": 10**9}).encode(),
    json.dumps(SEEDED[0] | {"tools": [{}]}).encode(), json.dumps(SEEDED[0] | {"model": "../../etc/passwd"}).encode(),
    json.dumps(SEEDED[0] | {"max_tokens": -1}).encode(), json.dumps(SEEDED[0])[:-1].encode() + b', "top_p": NaN}',
]  # fmt: skip
REFUSED = {400, 404, 405, 413, 415, 421, 403, 422, 429}
GROWTH = 48 * 2**20  # bytes that memory may grow after the first third: allocators breathe, leaks of minutes do not fit


class Crowd:
    """Clients of one server, and what they met with."""

    def __init__(self, server, alone):
        self.server, self.alone = server, alone
        self.place = urlsplit(server.url)
        self.met, self.wrong = Counter(), []
        self.ends = time.monotonic() + SECONDS
        self.process = psutil.Process(server.process.pid)
        self.sizes = []

    async def everybody(self):
        """Let them all ask until the time is over."""
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self.server.url + "/", timeout=120, limits=limits) as http:
            kinds = [
                self.asks,
                self.asks,
                self.streams,
                self.streams,
                self.leaves,
                self.leaves,
                self.abuses,
                self.dawdles,
            ]
            await asyncio.gather(*(self.again(kind, http, number) for number, kind in enumerate(kinds)), self.watches())

    async def again(self, kind, http, number):
        """Let one client do the same over and over."""
        draw = random.Random(number)
        while time.monotonic() < self.ends:
            await kind(http, draw)

    async def watches(self):
        """Note the server's size twice a second."""
        while time.monotonic() < self.ends:
            self.sizes.append(self.process.memory_info().rss)
            await asyncio.sleep(0.5)

    def hears(self, kind, status, expected):
        """Note a status, and whether it may be."""
        self.met[f"{kind} {status}"] += 1
        if status not in expected:
            self.wrong.append((kind, status))

    async def asks(self, http, draw):
        """Ask with a seed, and hold the answer against the one given to the same question alone."""
        number = draw.randrange(len(SEEDED))
        reply = await http.post("chat/completions", json=SEEDED[number])
        self.hears("asked", reply.status_code, {200, 429})
        if reply.status_code == 200 and reply.json()["choices"][0]["message"]["content"] != self.alone[number]:
            self.wrong.append(("asked", number, reply.text))

    async def streams(self, http, draw):
        """Ask for a stream with a seed, and put its pieces together."""
        number = draw.randrange(len(SEEDED))
        async with http.stream("POST", "chat/completions", json=SEEDED[number] | {"stream": True}) as reply:
            self.hears("streamed", reply.status_code, {200, 429})
            lines = [line async for line in reply.aiter_lines() if line.startswith("data: {")]
        pieces = [choice["delta"].get("content") or "" for line in lines for choice in json.loads(line[6:])["choices"]]
        if reply.status_code == 200 and "".join(pieces) != self.alone[number]:
            self.wrong.append(("streamed", number, lines[-3:]))

    async def leaves(self, http, draw):
        """Hang up in the middle of a long answer, or before it begins."""
        body = SEEDED[draw.randrange(len(SEEDED))] | {"max_tokens": 200, "stream": True}
        try:
            async with (
                asyncio.timeout(draw.uniform(0, 0.6)),
                http.stream("POST", "chat/completions", json=body) as reply,
            ):
                self.hears("left", reply.status_code, {200, 429})
                async for _line in reply.aiter_lines():
                    pass
        except TimeoutError:
            self.met["left in time"] += 1

    async def abuses(self, http, draw):
        """Send what no client should."""
        kind = draw.randrange(4)
        if kind == 0:
            reply = await http.get("models", headers={"Host": "evil.example"})
        elif kind == 1:
            reply = await http.post(
                "chat/completions", content=b"{}" * 3_000_000, headers={"Content-Type": "application/json"}
            )
        elif kind == 2:
            reply = await http.request(
                draw.choice(["PUT", "DELETE", "GET"]), draw.choice(["chat/completions", "%2e%2e/x"])
            )
        else:
            headers = {"Content-Type": draw.choice(["application/json", "text/plain"])}
            reply = await http.post("chat/completions", content=draw.choice(ABSURD), headers=headers)
        self.hears("abused", reply.status_code, REFUSED)

    async def dawdles(self, _http, draw):
        """Open a connection, send half a request, and go away without a word."""
        with socket.create_connection((self.place.hostname, self.place.port), timeout=10) as connection:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Le")
            await asyncio.sleep(draw.uniform(0, 2))
        self.met["dawdled"] += 1

    def figures(self):
        """Return what a run came to."""
        third = len(self.sizes) // 3
        return {
            "seconds": SECONDS,
            "requests": self.met.total() - self.met["left in time"],  # who left was met before, most of them
            "met": dict(sorted(self.met.items())),
            "wrong": len(self.wrong),
            "rss_mib": {"after a third": max(self.sizes[:third]) >> 20, "at the end": max(self.sizes[-third:]) >> 20},
        }


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Serve a base and a run; few may wait, so that some are refused."""
    base, _runs = serving.write_world(tmp_path_factory.mktemp("soak"), names=("printing",))
    words = ("--model_name", base, "--dtype", "float32", "--context", 512, "--queue", 4, "--threads", 1)
    server = Server(base.parent, *words)
    yield server
    server.stop()


def gauges(server):
    """Return how many requests wait and run."""
    page = httpx.get(server.url.removesuffix("/v1") + "/metrics").text
    return {
        line.split()[0]: float(line.split()[1]) for line in page.splitlines() if line.startswith("znatok_requests_")
    }


def test_nothing_piles_up_and_nobody_is_answered_with_anothers_words(server):
    with httpx.Client(base_url=server.url + "/", timeout=120) as http:
        alone = [http.post("chat/completions", json=body).json()["choices"][0]["message"]["content"] for body in SEEDED]
    assert len(set(alone)) > 4, "answers that are all alike would prove nothing"
    process = psutil.Process(server.process.pid)
    threads = process.num_threads()
    crowd = Crowd(server, alone)
    asyncio.run(crowd.everybody())
    print(json.dumps(crowd.figures()))  # noqa: T201  # what the run is for; -s shows it
    assert not crowd.wrong, crowd.wrong[:5]
    for kind in ("asked 200", "streamed 200", "left in time", "dawdled"):
        assert crowd.met[kind] > SECONDS / 10, crowd.met
    helpers.wait_for(
        lambda: not any(gauges(server).get(f"znatok_requests_{what}") for what in ("waiting", "running")),
        server.process,
        30,
    )
    third = len(crowd.sizes) // 3
    assert max(crowd.sizes[-third:]) - max(crowd.sizes[:third]) < GROWTH, crowd.figures()
    helpers.wait_for(lambda: not process.net_connections() or len(process.net_connections()) == 1, server.process, 60)
    assert process.num_threads() <= threads + 4, "a thread for each who ever asked"
    code, said = server.stop()
    assert code == 0, said
    assert "Traceback" not in said, said[-3000:]
