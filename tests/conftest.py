"""Fixtures and settings of every test: offline, English messages, one thread, deterministic."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches the hub
os.environ["ZNATOK_LANG"] = "en"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis
import pytest
import torch

import tiny
from znatok.fast.compiler import build
from znatok.fast.product import INT_MM
from znatok.files import cache_home
from znatok.model import catalogue, load

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs the tests in the background
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("ci")


LONG = {"e2e", "invariant", "numeric"}  # folders of tests that start processes, train, or load real weights


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, in any order: so no process waits at the end for another one's last file."""
    items.sort(key=lambda item: LONG.isdisjoint(item.path.parts))


@pytest.hookimpl(tryfirst=True)  # before fixtures of any scope
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fetch the weights a test is marked with."""
    for mark in item.iter_markers("real"):
        fetch(*mark.args)


@cache
def fetch(name: str) -> None:
    """Have a model of the catalogue fetched where it is not here: by another process, for this one may not."""
    if not catalogue.find(name).path.is_file():
        command = [sys.executable, "-m", "znatok", "model", "get", name]
        subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": "0"}, check=True)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a tiny Qwen2 and its tokenizer."""
    return tiny.save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Return the tiny tokenizer."""
    return tiny.tiny_tokenizer()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what tests make out of the user's cache, where the newest push the oldest out; but take its models."""
    build()  # into the user's own: it takes seconds
    users, own = cache_home(), tmp_path_factory.mktemp("cache")
    for shared in ("models", "kernels"):
        (users / shared).mkdir(parents=True, exist_ok=True)
        (own / shared).symlink_to(users / shared)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZNATOK_HOME", str(own))
        yield
    shutil.rmtree(own)  # models in int8 are large


@pytest.fixture
def int8_here() -> Iterator[None]:
    """Let int8 (with bfloat16) be chosen on any processor."""
    if not INT_MM.exact():
        pytest.skip("this processor's int8 product is not exact")
    real = load.machine_capabilities
    with pytest.MonkeyPatch.context() as patch:  # a context of its own: tests undo theirs midway
        patch.setattr(load, "machine_capabilities", lambda: {**real(), "avx512_vnni": True, "avx512_bf16": True})
        yield


@pytest.fixture(params=["float32", "int8"])
def trained_in(request: pytest.FixtureRequest) -> str:
    """Return the number format of a run: what is exact, and what users get."""
    if request.param == "int8":
        request.getfixturevalue("int8_here")
    return str(request.param)


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    """Return a file of ten pairs."""
    return tiny.write_pairs(tmp_path / "pairs.jsonl")
