"""The teaching loop and the package are the same method."""

import importlib.util
import subprocess
import sys

import pytest
import torch

import helpers
import tiny

SCRIPT = tiny.REPO / "examples" / "minimal_sft.py"


@pytest.fixture
def minimal():
    spec = importlib.util.spec_from_file_location("minimal_sft", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# PEFT 0.21 reads a property that transformers 5.23 has renamed; goes with the filter in znatok.model.adapters
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("learning_rate", [2e-4, 5e-3])
def test_the_teaching_loop_takes_the_same_steps_as_the_package(minimal, tiny_dir, pairs_file, tmp_path, learning_rate):
    by_hand = minimal.main(
        str(tiny_dir), str(pairs_file), str(tmp_path / "minimal"), dropout=0.0, learning_rate=learning_rate
    )
    run = helpers.trained(
        tiny_dir,
        pairs_file,
        tmp_path / "package",
        lora={"lora_dropout": 0.0},
        data_options={"val_share": 0},
        learning_rate=learning_rate,
    )
    assert helpers.losses(run) == pytest.approx(by_hand, abs=1e-5)
    ours, theirs = helpers.adapter(run), helpers.adapter(tmp_path / "minimal")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-5)


def test_the_teaching_loop_runs_as_its_docstring_says(tiny_dir, pairs_file, tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, tiny_dir, pairs_file, tmp_path / "out"],
        capture_output=True,
        text=True,
        env=helpers.environment(),
        timeout=300,
        check=True,
    )
    printed = [float(line.split("loss ")[1]) for line in done.stdout.splitlines() if line.startswith("step ")]
    assert len(printed) == 9
    assert printed[-1] < printed[0]
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_the_teaching_loop_stays_on_one_page():
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) <= 150
