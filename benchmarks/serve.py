"""How a served model answers over HTTP, beside llama.cpp's own server on the same file and machine.

Each server is a process of its own, asked by the same clients in the same words:

* ``znatok torch``: int8 in torch, many requests together; what ``--engine auto`` takes where int8 is fast;
* ``znatok llamacpp``: one request after another;
* ``llama.cpp``: its server as xllamacpp brings it, with a slot for each client and its continuous batching.

Measured: seconds to the first text of one client's stream (median over prompts never seen before), that client's
tokens per second from the first text to the last, and tokens per second of all clients together, counted by the
servers. Answers are greedy and as long as asked for, or shorter where the model ends them. Sides take turns.

    python benchmarks/serve.py [NAME] [--clients 8] [--tokens 64] [--rounds 3] [--out FILE.json]
"""

import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from znatok.config import LANGUAGE_NEUTRAL_SYSTEM
from znatok.files import write_json
from znatok.model.catalogue import find, get

SUBJECTS = (
    "PLA", "ABS", "PETG", "TPU", "нейлон", "поликарбонат", "смола", "ASA", "PVA", "HIPS", "сопло", "стол",
    "слайсер", "ретракт", "поддержки", "калибровка", "обдув", "экструдер", "слой", "заполнение", "периметр",
    "кайма", "рафт", "мост", "ремень", "подшипник", "термистор", "нагреватель", "датчик", "прошивка",
    "ускорение", "рывок", "усадка", "деламинация", "влажность", "сушка", "шлифовка", "покраска", "склейка",
    "резьба", "вставка", "зазор", "допуск", "ориентация", "шов", "паутина", "недоэкструзия", "слоновья нога",
    "сдвиг слоёв", "звон",
)  # fmt: skip


def main() -> None:
    """Measure; print a table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="*", choices=SIDES, default=[*SIDES])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--bare", nargs=2, metavar=("PORT", "CLIENTS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.bare:
        bare(args.name, *map(int, args.bare))
        return
    found: dict[str, dict[str, list[float]]] = {side: {} for side in args.sides}
    for number in range(args.rounds):
        for side in args.sides:
            with SIDES[side](args) as port:
                for name, values in measure(port, args, number).items():
                    found[side].setdefault(name, []).extend(values)
    table = {
        side: {name: round(statistics.median(values), 3) for name, values in one.items()} for side, one in found.items()
    }
    for side, one in table.items():
        print(f"{side:18} " + "  ".join(f"{name} {value:8.3f}" for name, value in one.items()))
    if args.out:
        from znatok.model.machine import machine

        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        facts = {"model": args.name, "sha256": find(args.name).sha256, "clients": args.clients, "tokens": args.tokens}
        versions = {package: version(package) for package in ("xllamacpp", "torch", "fastapi", "uvicorn")}
        shown = {"commit": commit, "load_average": os.getloadavg(), "medians": table, "all": found}
        write_json(args.out, {**facts, "machine": machine(), "versions": versions, **shown})


def measure(port: int, args: argparse.Namespace, number: int) -> dict[str, list[float]]:
    """Ask one server: a client alone, then all at once."""
    ask(port, args, "разогрев")
    share = len(SUBJECTS) // args.rounds
    subjects = SUBJECTS[number * share : (number + 1) * share]
    few, many = subjects[:3], [*subjects[3:], *subjects][: 2 * args.clients]
    alone = [ask(port, args, subject) for subject in few]
    started = time.perf_counter()
    with ThreadPoolExecutor(args.clients) as pool:
        together = list(pool.map(lambda subject: ask(port, args, f"{subject} и уход за ним"), many))
    seconds = time.perf_counter() - started
    return {
        "first text, s": [one["first"] for one in alone],
        "one client, tokens/s": [(one["tokens"] - 1) / (one["whole"] - one["first"]) for one in alone],
        f"{args.clients} clients, tokens/s": [sum(one["tokens"] for one in together) / seconds],
    }


def ask(port: int, args: argparse.Namespace, subject: str) -> dict[str, float]:
    """Stream one answer; return seconds to the first text and to the end, and its tokens."""
    body = {
        "model": args.name,
        "messages": [
            {"role": "system", "content": LANGUAGE_NEUTRAL_SYSTEM},
            {"role": "user", "content": f"Подробно и по шагам расскажи о 3D-печати. Предмет рассказа: {subject}."},
        ],
        "temperature": 0,
        "seed": 1,
        "max_tokens": args.tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    started = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    first, tokens = 0.0, 0
    for line in connection.getresponse():
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[6:])
        if not first and chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
            first = time.perf_counter() - started
        if chunk.get("usage"):
            tokens = chunk["usage"]["completion_tokens"]
    connection.close()
    return {"first": first, "whole": time.perf_counter() - started, "tokens": tokens}


@contextlib.contextmanager
def running(command: list[str], port: int, **changes: str) -> Iterator[int]:
    """Run a server until it answers; stop it afterwards."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **changes}
    )
    try:
        ends = time.monotonic() + 300
        while not answers(port):
            if process.poll() is not None or time.monotonic() > ends:
                raise SystemExit(f"no server: {' '.join(command)}")
            time.sleep(0.2)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def answers(port: int) -> bool:
    """Tell whether a server is ready."""
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False


def free_port() -> int:
    """Return a port nobody has."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def znatok(engine: str, args: argparse.Namespace) -> contextlib.AbstractContextManager[int]:
    """Return ours."""
    port = free_port()
    words = ["serve", "--model_name", args.name, "--engine", engine, "--port", str(port)]
    dtype = ["--dtype", "int8"] if engine == "torch" else []
    return running([sys.executable, "-m", "znatok", *words, *dtype], port)


def llama(args: argparse.Namespace) -> contextlib.AbstractContextManager[int]:
    """Return llama.cpp's."""
    port = free_port()
    words = [args.name, "--bare", str(port), str(args.clients)]
    return running([sys.executable, __file__, *words], port, GOMP_SPINCOUNT="1000")


def bare(name: str, port: int, clients: int) -> None:
    """Be llama.cpp's server until somebody ends it."""
    import psutil
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_parallel, params.n_ctx = str(get(name)), clients, 1024 * clients
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = psutil.cpu_count(logical=False)
    params.hostnames, params.port = ["127.0.0.1"], port
    params.fit_params = False
    params.verbosity = -1
    server = xllamacpp.Server(params)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    while server:
        time.sleep(1)


SIDES: dict[str, Any] = {
    "znatok torch": lambda args: znatok("torch", args),
    "znatok llamacpp": lambda args: znatok("llamacpp", args),
    "llama.cpp": llama,
}


if __name__ == "__main__":
    main()
