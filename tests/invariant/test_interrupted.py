"""A signal at any moment of a run: what is there is kept, ``status.json`` is true, and the run goes on to the bit."""

import os
import signal

import pytest

import helpers
import tiny
from znatok.errors import Interrupted
from znatok.train import checkpoints
from znatok.train import run as run_module
from znatok.train.trainer import AnswerTrainer

# PEFT 0.21 reads a property that transformers 5.23 has renamed; goes with the filter in znatok.model.adapters
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

OPTIONS = {"save_steps": 2}
"""Nine steps, a checkpoint after each second one, a validation after each third, the end of an epoch."""


@pytest.fixture(scope="module")
def straight(tiny_dir, tmp_path_factory):
    """Return the data, and the adapter of a run nobody disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    data = tiny.write_pairs(folder / "pairs.jsonl")
    return data, helpers.adapter_bytes(helpers.trained(tiny_dir, data, folder / "run", **OPTIONS))


def strike(monkeypatch, owner, name, call, *numbers):
    """Send this process signals as it enters a function for the ``call``-th time."""
    real, calls = getattr(owner, name), [0]

    def struck(*arguments, **options):
        calls[0] += 1
        if calls[0] == call:
            for number in numbers:
                os.kill(os.getpid(), number)
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, struck)


@pytest.mark.parametrize(
    ("number", "place", "stopped"),
    [
        (signal.SIGINT, (AnswerTrainer, "training_step", 1), 1),
        (signal.SIGTERM, (AnswerTrainer, "training_step", 5), 5),
        (signal.SIGINT, (AnswerTrainer, "evaluate", 1), 4),
        (signal.SIGTERM, (checkpoints, "seal", 1), 3),
        (signal.SIGINT, (checkpoints, "prune", 2), 5),
    ],
    ids=["the first step", "a step", "a validation", "a save", "the end of a save"],
)
def test_a_signal_within_the_loop_costs_nothing(tiny_dir, straight, tmp_path, monkeypatch, number, place, stopped):
    """The signal comes as a function is entered for the n-th time."""
    data, whole = straight
    strike(monkeypatch, *place, number)
    with pytest.raises(Interrupted, match=f"stopped at step {stopped}; go on with") as caught:
        helpers.trained(tiny_dir, data, tmp_path / "run", **OPTIONS)
    assert caught.value.exit_code == 128 + number
    assert helpers.status(tmp_path / "run") == "interrupted"
    newest = checkpoints.newest(tmp_path / "run" / "checkpoints", pytest.fail)
    assert checkpoints.step_of(newest) == stopped
    monkeypatch.undo()
    helpers.trained(tiny_dir, data, tmp_path / "run", resume=True, **OPTIONS)
    assert helpers.adapter_bytes(tmp_path / "run") == whole


@pytest.mark.parametrize(
    ("number", "ended", "name"),
    [
        (signal.SIGINT, KeyboardInterrupt, "build_trainer"),
        (signal.SIGTERM, SystemExit, "build_trainer"),
        (signal.SIGINT, KeyboardInterrupt, "finish"),
        (signal.SIGTERM, SystemExit, "peak_rss_bytes"),  # the last that finish calls
    ],
)
def test_a_signal_outside_the_loop_ends_the_run_at_once_and_its_status_says_so(
    tiny_dir, straight, tmp_path, monkeypatch, number, ended, name
):
    """SIGTERM left «running» for ever."""
    data, whole = straight
    strike(monkeypatch, run_module, name, 1, number)
    with pytest.raises(ended) as caught:
        helpers.trained(tiny_dir, data, tmp_path / "run", **OPTIONS)
    assert number == signal.SIGINT or caught.value.code == 143
    assert helpers.status(tmp_path / "run") == "interrupted"
    monkeypatch.undo()
    helpers.trained(tiny_dir, data, tmp_path / "run", resume=True, **OPTIONS)
    assert helpers.adapter_bytes(tmp_path / "run") == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_model_is_loaded_leaves_no_run(tiny_dir, straight, tmp_path, monkeypatch, number):
    strike(monkeypatch, run_module, "prepare", 1, number)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        helpers.trained(tiny_dir, straight[0], tmp_path / "run", **OPTIONS)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", [(checkpoints, "seal", 2), (AnswerTrainer, "training_step", 4)], ids=["save", "step"])
def test_a_second_signal_ends_at_once_and_the_checkpoint_before_is_gone_on_from(
    tiny_dir, straight, tmp_path, monkeypatch, place
):
    data, whole = straight
    strike(monkeypatch, *place, signal.SIGINT, signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        helpers.trained(tiny_dir, data, tmp_path / "run", **OPTIONS)
    assert caught.value.code == 143
    assert helpers.status(tmp_path / "run") == "interrupted"
    assert checkpoints.newest(tmp_path / "run" / "checkpoints", pytest.fail).name == "step-000002"
    monkeypatch.undo()
    helpers.trained(tiny_dir, data, tmp_path / "run", resume=True, **OPTIONS)
    assert helpers.adapter_bytes(tmp_path / "run") == whole
