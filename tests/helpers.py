"""Short ways to a training run on the tiny model, in this process and in another."""

import gc
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file

import tiny
from znatok.config import DataOptions, LoraOptions, ModelOptions, TrainConfig, TrainOptions
from znatok.files import read_json, read_jsonl
from znatok.runs import Run
from znatok.train.run import train

gc.freeze()  # a run makes two full collections; over all modules they would take longer than its nine steps

ROW_KEYS = {
    *("step", "epoch", "loss", "learning_rate", "grad_norm"),
    *("tokens", "tokens_per_second", "seconds", "peak_rss_bytes"),
}


def settings(model_dir, data, output_dir, *, lora=None, data_options=None, dtype="float32", **train_options):
    """Return a configuration with a learning rate at which the tiny model learns in a few steps."""
    options = {"learning_rate": 5e-3, "threads": 1, "output_dir": str(output_dir)} | train_options
    return TrainConfig(
        model=ModelOptions(model_name=str(model_dir), dtype=dtype),
        data=DataOptions(data_path=str(data), **(data_options or {})),
        lora=LoraOptions(**(lora or {})),
        train=TrainOptions(**options),
    )


def trained(model_dir, data, output_dir, **options):
    """Train in this process; return the run."""
    run = train(settings(model_dir, data, output_dir, **options)).run
    assert run is not None
    return run


def adapter(run):
    """Return the adapter's tensors."""
    return load_file(Path(getattr(run, "path", run)) / "adapter_model.safetensors")


def adapter_bytes(run):
    """Return the adapter's file as it is."""
    return (Path(getattr(run, "path", run)) / "adapter_model.safetensors").read_bytes()


def rows(run):
    """Return the rows of steps, without validations."""
    return [row for row in read_jsonl(Run(Path(getattr(run, "path", run))).metrics) if "loss" in row]


def losses(run):
    """Return the loss of every step."""
    return [row["loss"] for row in rows(run)]


def validations(run):
    """Return the rows of validations."""
    return [row for row in read_jsonl(Run(Path(getattr(run, "path", run))).metrics) if "val_loss" in row]


def status(run):
    """Return the state in ``status.json``."""
    return read_json(Path(getattr(run, "path", run)) / "status.json")["state"]


def environment(**changes):
    """Return the environment of a subprocess: offline, English, one thread."""
    fixed = {"HF_HUB_OFFLINE": "1", "ZNATOK_LANG": "en", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **fixed, **changes}


def script(name, *words, cwd, stdin="", timeout=300, **changes):
    """Run a root script, or ``znatok`` where ``name`` is that, to its end; return the completed process."""
    return subprocess.run(
        command(name, *words),
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environment(**changes),
        timeout=timeout,
        check=False,
    )


def started(name, *words, cwd, **changes):
    """Start a root script and return the running process, its stderr in a pipe."""
    pipe, env = subprocess.PIPE, environment(**changes)
    return subprocess.Popen(command(name, *words), cwd=cwd, stdout=pipe, stderr=pipe, text=True, env=env)


HOLD = """
import os, signal, sys

def hold(event, args):
    global rows
    if event == "open" and args[2] & os.O_APPEND and str(args[0]).endswith("metrics.jsonl"):
        rows += 1
        if rows == MOST + 1:
            os.read(heard, 1)

rows = 0
heard, tell = os.pipe()
os.set_blocking(tell, False)
signal.set_wakeup_fd(tell)  # so that a signal that comes early is heard, too
signal.signal(signal.SIGUSR1, lambda *_: None)
sys.addaudithook(hold)
"""


def held(folder, rows):
    """Return changes of an environment in which a training writes so many rows, then waits for a signal.

    SIGUSR1 does nothing else. So a training is in the middle when a signal comes, however slow the sender is.
    """
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"MOST = {rows}{HOLD}", encoding="utf-8")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))}


def command(name, *words):
    """Return the argv of a root script or of ``znatok``."""
    program = ["-m", "znatok"] if name == "znatok" else [str(tiny.REPO / name)]
    return [sys.executable, *program, *map(str, words)]


@contextmanager
def small_files(limit):
    """Let no file of this process grow beyond ``limit`` bytes: what a full disk does, and root can't overrule."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def wait_for(condition, process, seconds=300):
    """Wait until ``condition()`` holds while a process runs."""
    ends = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended too early: {process.stderr.read()}"
        assert time.monotonic() < ends, "waited too long"
        time.sleep(0.005)


def stop(process, number=signal.SIGINT):
    """Send a signal; return exit code and stderr once the process has ended."""
    process.send_signal(number)
    _out, err = process.communicate(timeout=300)
    return process.returncode, err


@contextmanager
def unprivileged(folder):
    """Be nobody in the block where this process is root, whom no mode stops; return a folder that all may use."""
    if os.geteuid() != 0:
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:  # those of pytest are closed to others
        Path(place).chmod(0o777)
        os.seteuid(65534)
        try:
            yield Path(place)
        finally:
            os.seteuid(0)
