"""Readers under bytes that a fuzzer chooses by the branches they reach: half a minute each, from a corpus kept here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import helpers

pytest.importorskip("atheris", reason="there is a fuzzer for Linux only")
HERE = Path(__file__).parent
SECONDS = int(os.environ.get("FUZZ", "30"))


def fuzz(reader, tmp_path, *flags):
    """Fuzz a reader from what the repository keeps; return the finished process."""
    found = tmp_path / "found"  # before the corpus: what is found is written to the first folder
    found.mkdir()
    corpus = [found, *HERE.glob(f"corpus/{reader}")]
    limits = [f"-max_total_time={SECONDS}", "-timeout=10", "-rss_limit_mb=3000", "-max_len=24000", "-seed=1"]
    return subprocess.run(
        [sys.executable, HERE / "fuzz.py", reader, *limits, *flags, f"-artifact_prefix={tmp_path}/", *corpus],
        capture_output=True,
        text=True,
        errors="replace",
        env=helpers.environment(),
        timeout=SECONDS + 120,
        check=False,
    )


@pytest.mark.parametrize("reader", ["pairs", "items", "knowledge", "options", "gguf"])
def test_nothing_but_its_own_errors_comes_out_of_a_reader(reader, tmp_path):
    done = fuzz(reader, tmp_path)
    crashes = [path.read_bytes()[:300] for path in tmp_path.glob("*-*") if path.is_file()]
    assert done.returncode == 0, f"{crashes}\n{done.stdout[-3000:]}"
    assert "Done " in done.stderr
    assert list((tmp_path / "found").iterdir()), "it reached nothing beyond the corpus: is anything instrumented?"


def test_the_fuzzer_would_tell_of_an_error_that_is_not_ours(tmp_path):
    done = fuzz("broken", tmp_path)
    assert done.returncode != 0
    assert "RecursionError: planted" in done.stdout
