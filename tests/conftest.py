"""Fixtures and settings of every test: offline, English messages, one thread, deterministic."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches the hub
os.environ["ZNATOK_LANG"] = "en"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis
import pytest
import torch

import tiny

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("ci")


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


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    """Return a file of ten pairs."""
    return tiny.write_pairs(tmp_path / "pairs.jsonl")
