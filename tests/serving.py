"""A server in this process, with tiny models, for tests that speak to it as programs do."""

import contextlib
import http.client
import json
import socket
import threading
import time

import torch

import tiny
from znatok.config import LoraOptions, ModelOptions, SampleOptions
from znatok.files import write_json
from znatok.model.adapters import inject, save_adapter
from znatok.model.load import resolve
from znatok.serve.app import build_app
from znatok.serve.asking import Service
from znatok.serve.desk import desk_for
from znatok.serve.dispatch import Dispatcher
from znatok.serve.guard import LOOPBACK
from znatok.serve.roster import open_roster
from znatok.serve.server import Server

SPREAD = {"initializer_range": 0.3}  # logits far enough apart for answers that differ
SYSTEM = "Отвечай."
SHORT = SampleOptions(temperature=0.0, max_new_tokens=12)


def write_world(folder, names=("printing", "baking")):
    """Write a base and a run for each name; return the base's folder and that of the runs."""
    base = tiny.save_tiny(folder / "base", **SPREAD)
    for seed, name in enumerate(names, 1):
        write_run(folder / "runs" / name, seed, str(base), resolve(str(base), say=print).sha256)
    return base, folder / "runs"


def write_run(path, seed, base_name=None, base_sha256=None, layers=2, **lora):
    """Write the adapter of a run, with random weights, and a manifest where its base is named."""
    tuned = inject(tiny.tiny_model(**SPREAD, num_hidden_layers=layers), LoraOptions(**lora), seed=seed)
    with torch.no_grad():
        for number, (name, parameter) in enumerate(tuned.named_parameters()):
            if "lora_B" in name:
                parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(100 * seed + number))
    save_adapter(tuned, path, "base")
    if base_name:
        write_json(
            path / "manifest.json",
            {
                "base": {"name": base_name, "sha256": base_sha256},
                "chat": {"format": "chatml", "system": f"Система {seed}."},
            },
        )
    return path


def open_service(base, runs, *, engine="torch", dtype="float32", queue=64, timeout=60.0, context=256, **more):
    """Return a service with what lies there."""
    roster = open_roster(ModelOptions(model_name=str(base), dtype=dtype), runs, SYSTEM, engine, context)
    return Service(roster, Dispatcher(desk_for(roster), queue), more.pop("sample", SHORT), timeout, **more)


@contextlib.contextmanager
def served(service, hosts=LOOPBACK, key=None, listener=None):
    """Serve on a free port of this machine, or at a listener; yield the address."""
    with running(service, hosts, key, listener=listener) as (_server, address):
        yield address


@contextlib.contextmanager
def running(service, hosts=LOOPBACK, key=None, patience=10.0, listener=None):
    """Serve on a free port of this machine, or at a listener; yield the server and its address."""
    if listener is None:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))

    def give_up(asked):
        server.given_up = asked
        service.dispatcher.give_up()

    server = Server(build_app(service, hosts, key), patience, give_up)
    server.capture_signals = contextlib.nullcontext
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield server, f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        service.dispatcher.close()
        service.roster.close()


class Paced:
    """Lets a service say its next tokens only when it is told to, and counts how often it did."""

    def __init__(self, service, monkeypatch):
        self.steps = self.begun = 0
        self._leave = threading.Semaphore(0)
        self._dispatcher = service.dispatcher
        desk = type(service.dispatcher._desk)
        step, take = desk.step, desk.take

        def paced(desk, together):
            if self._leave.acquire(timeout=0.005):  # without leave nothing is said, but who waits may still begin or go
                self.steps += 1
                step(desk, together)

        def counted(desk, job):
            self.begun += 1
            take(desk, job)

        monkeypatch.setattr(desk, "step", paced)
        monkeypatch.setattr(desk, "take", counted)

    def go(self, steps=10_000):
        """Let that many steps be taken, or as many as any test needs."""
        self._leave.release(steps)

    def let_time_run_out(self):
        """End the time of everyone who waits or is being answered."""
        with self._dispatcher._changed:
            for job in (*self._dispatcher._waiting, *self._dispatcher._desk.jobs):
                job.deadline = 0.0


def raw(url, method="POST", path="/v1/chat/completions", body=b"", **headers):
    """Send a request byte by byte as given; return status, headers and body."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, {"Content-Type": "application/json", **names})
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def asked(url, value, **headers):
    """Send a chat request; return status and the parsed reply."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    status, _headers, answer = raw(url, body=body, **headers)
    return status, json.loads(answer)


def events(body):
    """Return what a stream's events hold, the word [DONE] as it is."""
    *parts, rest = body.decode().split("\n\n")
    assert rest == ""
    words = [part.removeprefix("data: ") for part in parts]
    return [word if word == "[DONE]" else json.loads(word) for word in words]


def wait_until(condition, seconds=20.0):
    """Wait until a condition holds."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "waited too long"
        time.sleep(0.005)
