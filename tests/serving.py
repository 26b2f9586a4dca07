"""A server in this process, with tiny models, for tests that speak to it as programs do."""

import contextlib
import socket
import threading
import time

import torch
import uvicorn

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

SPREAD = {"initializer_range": 0.3}  # logits far enough apart for answers that differ
SYSTEM = "Отвечай."
SHORT = SampleOptions(temperature=0.0, max_new_tokens=12)


def write_world(folder, names=("printing", "baking")):
    """Write a base and a run for each name; return the base's folder and that of the runs."""
    base = tiny.save_tiny(folder / "base", **SPREAD)
    for seed, name in enumerate(names, 1):
        write_run(folder / "runs" / name, seed, str(base), resolve(str(base), say=print).sha256)
    return base, folder / "runs"


def write_run(path, seed, base_name=None, base_sha256=None, **lora):
    """Write the adapter of a run, with random weights, and a manifest where its base is named."""
    tuned = inject(tiny.tiny_model(**SPREAD), LoraOptions(**lora), seed=seed)
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
def served(service, hosts=LOOPBACK, key=None):
    """Serve on a free port of this machine; yield the address."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(build_app(service, hosts, key), log_level="error", access_log=False)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        service.dispatcher.close()
        service.roster.close()


def wait_until(condition, seconds=20.0):
    """Wait until a condition holds."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "waited too long"
        time.sleep(0.005)
