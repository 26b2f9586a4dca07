"""Trainings by two processes, as torchrun starts them or as a launcher that leaves them alone."""

import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import helpers
from znatok.runs import Run

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "znatok"]


def words(model, data, run, **options):
    """Return a command line that trains in float32 with one thread."""
    fixed = {"model_name": model, "data_path": data, "output_dir": run, "threads": 1, "dtype": "float32"}
    fixed |= {"learning_rate": 5e-3, "num_train_epochs": 2, "lora_dropout": 0.0, "recipe": "seed"}
    return ["train", *(part for name, value in (fixed | options).items() for part in (f"--{name}", str(value)))]


def together(*given, cwd):
    """Train with two processes; return the completed launcher."""
    return subprocess.run(
        [*TORCHRUN, *given],
        cwd=cwd,
        env=helpers.environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def same(run, other):
    """Assert that two runs hold the same adapter, as far as sums in another order allow."""
    ours, theirs = helpers.adapter(run), helpers.adapter(other)
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 2e-5
    assert max(float(weights.abs().max()) for weights in ours.values()) > 1e-3  # or all would be the same


def wait_for_steps(run, count):
    """Wait until a run has logged so many steps."""
    metrics, deadline = Run(run).metrics, time.monotonic() + 120
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) >= count):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def members(*given, cwd, **changes):
    """Start two processes as a launcher would, but one that leaves them alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in (0, 1):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = helpers.environment(**changes, **{name: str(value) for name, value in own.items()})
        started.append(
            subprocess.Popen(
                helpers.command("znatok", *given), env=environment, cwd=cwd, stderr=subprocess.PIPE, text=True
            )
        )
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()
