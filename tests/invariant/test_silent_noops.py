"""A run that can't have worked ends as an error, says so in ``status.json``, and keeps its last good checkpoint."""

import errno
import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

import helpers
import tiny
import znatok
from znatok.errors import DataError, ModelError, SystemFault, TrainingError, UsageError, as_faults
from znatok.fast.backbone import Backbone
from znatok.files import read_json
from znatok.model import score
from znatok.runs import Run
from znatok.train import checkpoints, computation, engine
from znatok.train.trainer import AnswerTrainer

NAN = torch.tensor(float("nan"))


@pytest.fixture(params=["fast", "int8", "transformers"])
def computed_by(request):
    """Return options that make a run compute with each of the engines."""
    if request.param == "int8":
        request.getfixturevalue("int8_here")
        yield {"dtype": "int8"}
    elif request.param == "fast":
        yield {"dtype": "float32"}
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "obstacle", lambda _model: "a test asks for it")
            yield {"dtype": "float32"}


def change_hidden(monkeypatch, change, during="training_step"):
    """Let ``change(hidden states, count)`` have what any engine computes inside a method of the trainer."""
    method, seen, inside = getattr(AnswerTrainer, during), [0], [False]

    def counted(*arguments, **options):
        seen[0] += 1
        inside[0] = True
        try:
            return method(*arguments, **options)
        finally:
            inside[0] = False

    def changed(real):
        def compute(*arguments):
            hidden = real(*arguments)
            return change(hidden, seen[0]) if inside[0] else hidden

        return compute

    monkeypatch.setattr(AnswerTrainer, during, counted)
    monkeypatch.setattr(Backbone, "hidden", changed(Backbone.hidden))
    for module in (computation, score):
        monkeypatch.setattr(module, "hidden_states", changed(module.hidden_states))


def spoil_after(monkeypatch, calls, value, during="training_step"):
    """Make the hidden states of the training loop ``value`` after so many good batches."""
    change_hidden(monkeypatch, lambda hidden, count: hidden if count <= calls else hidden * value, during)


def no_constant(name):
    raise AssertionError(f"{name} in a JSON file")


def assert_failed(run, *, steps):
    state = read_json(run / "status.json")
    assert state["state"] == "failed"
    assert state["error"]
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    parsed = [json.loads(line, parse_constant=no_constant) for line in text.splitlines()]
    assert [row["step"] for row in parsed if "loss" in row] == list(range(1, steps + 1))
    assert not (run / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("value", [NAN, torch.tensor(float("inf"))], ids=["nan", "inf"])
def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint(
    tiny_dir, pairs_file, tmp_path, monkeypatch, computed_by, value
):
    spoil_after(monkeypatch, 5, value)
    with pytest.raises(TrainingError, match=r"step 6: the loss is nan; try a --learning_rate below 0\.005"):
        helpers.trained(tiny_dir, pairs_file, tmp_path / "run", save_steps=2, **computed_by)
    assert_failed(tmp_path / "run", steps=5)
    kept = checkpoints.newest(tmp_path / "run" / "checkpoints", pytest.fail)
    assert kept.name == "step-000004"


def test_a_failed_run_goes_on_from_its_last_good_checkpoint(tiny_dir, pairs_file, tmp_path, monkeypatch, computed_by):
    options = {"save_steps": 2} | computed_by
    spoil_after(monkeypatch, 5, NAN)
    with pytest.raises(TrainingError):
        helpers.trained(tiny_dir, pairs_file, tmp_path / "run", **options)
    monkeypatch.undo()
    helpers.trained(tiny_dir, pairs_file, tmp_path / "run", resume=True, **options)
    straight = helpers.trained(tiny_dir, pairs_file, tmp_path / "straight", **options)
    assert helpers.adapter_bytes(tmp_path / "run") == helpers.adapter_bytes(straight)


@pytest.mark.parametrize(("factor", "norm"), [(NAN, "nan"), (torch.tensor(1e22), "inf")], ids=["nan", "inf"])
def test_a_gradient_that_is_no_number_ends_the_run_before_it_reaches_the_weights(
    tiny_dir, pairs_file, tmp_path, monkeypatch, computed_by, factor, norm
):
    """The norm of a finite gradient of 1e22 is infinite in float32."""

    def poisoned(hidden, count):
        if count == 3:
            hidden.register_hook(lambda gradient: gradient * factor)
        return hidden

    change_hidden(monkeypatch, poisoned)
    with pytest.raises(TrainingError, match=rf"step 3: .*gradient is {norm}"):
        helpers.trained(tiny_dir, pairs_file, tmp_path / "run", save_steps=2, **computed_by)
    assert_failed(tmp_path / "run", steps=2)


def test_a_validation_loss_that_is_no_number_ends_the_run(tiny_dir, pairs_file, tmp_path, monkeypatch, computed_by):
    spoil_after(monkeypatch, 1, NAN, during="evaluate")
    with pytest.raises(TrainingError, match="step 6: the validation loss is nan"):
        helpers.trained(tiny_dir, pairs_file, tmp_path / "run", **computed_by)
    assert_failed(tmp_path / "run", steps=6)


def test_a_run_that_learned_nothing_is_an_error(tiny_dir, pairs_file, tmp_path):
    """The first step of a warm-up has the learning rate 0: one step is none."""
    with pytest.raises(TrainingError, match="still zero after 1 steps"):
        helpers.trained(tiny_dir, pairs_file, tmp_path / "run", max_steps=1)
    assert_failed(tmp_path / "run", steps=1)


def test_weights_that_never_move_are_an_error(tiny_dir, pairs_file, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)
    with pytest.raises(TrainingError, match="nothing was learned"):
        helpers.trained(tiny_dir, pairs_file, tmp_path / "run")
    assert helpers.status(tmp_path / "run") == "failed"


def test_the_smallest_learning_rate_still_learns_something(tiny_dir, pairs_file, tmp_path):
    run = helpers.trained(tiny_dir, pairs_file, tmp_path / "run", learning_rate=1e-9)
    assert 0 < read_json(run.manifest)["result"]["adapter_delta_norm"] < 1e-3


def test_training_without_lora_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(UsageError, match="--use_lora false"):
        helpers.trained("no/such-model", tmp_path / "none.jsonl", tmp_path / "run", lora={"use_lora": False})
    assert not (tmp_path / "run").exists()


def test_a_model_without_the_projections_is_refused(tiny_dir, pairs_file, tmp_path, monkeypatch):
    monkeypatch.setattr("znatok.model.adapters.TARGETS", ("c_attn",))
    with pytest.raises(ModelError, match=r"no layer to train: expected modules called c_attn, the model has .*q_proj"):
        helpers.trained(tiny_dir, pairs_file, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_used_directory_is_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="not empty"):
        helpers.trained("no/such-model", tmp_path / "none.jsonl", tmp_path / "run")


def test_forcing_replaces_the_run_and_spares_what_is_not_its_own(tiny_dir, pairs_file, tmp_path):
    run = helpers.trained(tiny_dir, pairs_file, tmp_path / "run", max_steps=4)
    (run.path / "thesis.txt").write_text("mine", encoding="utf-8")
    (run.path / "report.html").write_text("of the old run", encoding="utf-8")
    helpers.trained(tiny_dir, pairs_file, run.path, max_steps=2, force=True)
    assert (run.path / "thesis.txt").read_text(encoding="utf-8") == "mine"
    assert not (run.path / "report.html").exists()
    assert [p.name for p in checkpoints.complete(run.checkpoints)] == ["step-000002"]
    assert len(helpers.losses(run)) == 2


def test_a_full_disk_leaves_the_old_checkpoint_and_says_what_to_do(tiny_dir, pairs_file, tmp_path, monkeypatch):
    real = checkpoints.seal

    def full(staged, folder, step):
        if step > 2:
            raise OSError(28, "No space left on device")
        return real(staged, folder, step)

    monkeypatch.setattr(checkpoints, "seal", full)
    with pytest.raises(SystemFault, match=r"step 4 can't be written: .*No space left on device; free space"):
        helpers.trained(tiny_dir, pairs_file, tmp_path / "run", save_steps=2)
    assert helpers.status(tmp_path / "run") == "failed"
    assert checkpoints.newest(tmp_path / "run" / "checkpoints", pytest.fail).name == "step-000002"


@pytest.mark.parametrize("limit", [3000, 20_000, 40_000], ids=["adapter", "optimiser", "rest"])
def test_a_disk_that_fills_up_leaves_a_run_that_goes_on_once_there_is_room(
    tiny_dir, pairs_file, tmp_path, monkeypatch, limit
):
    """Whoever writes a checkpoint is cut short by the system: safetensors, torch's writer, Python."""
    real = checkpoints.staging

    def filling(folder):
        if (folder / "step-000002").is_dir():
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return real(folder)

    monkeypatch.setattr(checkpoints, "staging", filling)
    with helpers.small_files(resource.RLIM_INFINITY), pytest.raises(SystemFault, match="step 4 can't be written: "):
        helpers.trained(tiny_dir, pairs_file, tmp_path / "run", save_steps=2)
    assert helpers.status(tmp_path / "run") == "failed"
    assert checkpoints.newest(tmp_path / "run" / "checkpoints", pytest.fail).name == "step-000002"
    monkeypatch.undo()
    run = helpers.trained(tiny_dir, pairs_file, tmp_path / "run", save_steps=2, resume=True)
    assert not run.leftovers()
    assert len(helpers.losses(run)) == 9


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS], ids=errno.errorcode.get)
def test_a_disk_that_fails_leaves_a_run_that_goes_on_once_it_works(tiny_dir, pairs_file, tmp_path, monkeypatch, number):
    real = checkpoints.seal

    def failing(staged, folder, step):
        if step == 4:
            raise OSError(number, os.strerror(number))
        return real(staged, folder, step)

    monkeypatch.setattr(checkpoints, "seal", failing)
    with pytest.raises(SystemFault, match=rf"step 4 can't be written: .*{os.strerror(number)}"):
        helpers.trained(tiny_dir, pairs_file, tmp_path / "run", save_steps=2)
    assert helpers.status(tmp_path / "run") == "failed"
    assert checkpoints.newest(tmp_path / "run" / "checkpoints", pytest.fail).name == "step-000002"
    monkeypatch.undo()
    assert len(helpers.losses(helpers.trained(tiny_dir, pairs_file, tmp_path / "run", save_steps=2, resume=True))) == 9


@pytest.mark.parametrize(
    "error",
    [
        *(OSError(number, os.strerror(number)) for number in (errno.ENOSPC, errno.EIO, errno.EROFS)),
        SafetensorError("I/O error: No space left on device"),
    ],
    ids=str,
)
def test_a_disk_that_can_not_even_take_the_status_is_told(tiny_dir, pairs_file, tmp_path, monkeypatch, error):
    def full(*_args, **_options):
        raise error

    status, number = Run.set_status, getattr(error, "errno", errno.ENOSPC)

    def set_status(self, state, **facts):
        if state != "running":
            raise OSError(number, os.strerror(number))
        status(self, state, **facts)

    monkeypatch.setattr(Run, "set_status", set_status)
    monkeypatch.setattr("znatok.train.callbacks.append_jsonl", full)
    with pytest.raises(SystemFault, match=rf"run: can't be written or read: .*{os.strerror(number)}; make room"):
        helpers.trained(tiny_dir, pairs_file, tmp_path / "run")


@pytest.mark.parametrize(("mask", "never", "always"), [(0o077, 0o077, 0o600), (0o000, 0o111, 0o666)])
def test_a_run_has_the_rights_the_umask_leaves(tiny_dir, pairs_file, tmp_path, mask, never, always):
    """Under 077 nobody else reads it; under 000 all may, whoever wrote the file: safetensors, torch or we."""
    before = os.umask(mask)
    try:
        run = helpers.trained(tiny_dir, pairs_file, tmp_path / "run", max_steps=3)
    finally:
        os.umask(before)
    rights = {path.name: path.stat().st_mode for path in run.path.rglob("*") if path.is_file()}
    assert {name: mode for name, mode in rights.items() if mode & never or mode & always != always} == {}


def test_nothing_is_written_where_znatok_is_installed(tiny_dir, pairs_file, tmp_path):
    """A system's copy can't be written to."""

    def installed():
        return {path for path in Path(znatok.__file__).parent.rglob("*") if "__pycache__" not in path.parts}

    before = installed()
    helpers.trained(tiny_dir, pairs_file, tmp_path / "run", max_steps=3)
    assert installed() == before


@pytest.mark.parametrize("replaced", [False, True])
def test_a_run_that_was_removed_does_not_come_back(tiny_dir, pairs_file, tmp_path, monkeypatch, replaced):
    run, real = tmp_path / "run", AnswerTrainer.training_step

    def removed(trainer, *arguments):
        if trainer.state.global_step == 2:
            shutil.rmtree(run)
            if replaced:
                run.write_text("something else", encoding="utf-8")
        return real(trainer, *arguments)

    monkeypatch.setattr(AnswerTrainer, "training_step", removed)
    with pytest.raises(SystemFault, match=r"run: can't be written or read: (No such file|Not a dir).*; make room"):
        helpers.trained(tiny_dir, pairs_file, run)
    assert run.is_file() if replaced else not run.exists()


@pytest.mark.parametrize(
    ("during", "ask"),
    [
        ("training_step", lambda: torch.empty(1 << 60, dtype=torch.int8)),
        ("_save_checkpoint", lambda: bytearray(1 << 60)),
    ],
)
def test_memory_that_runs_out_leaves_a_run_that_goes_on(tiny_dir, pairs_file, tmp_path, monkeypatch, during, ask):
    """Real allocations that fail; the line for the user is that of every verb (scripts.run_command)."""
    real = getattr(AnswerTrainer, during)

    def greedy(trainer, *arguments):
        if trainer.state.global_step >= 4:
            ask()
        return real(trainer, *arguments)

    monkeypatch.setattr(AnswerTrainer, during, greedy)
    with pytest.raises(SystemFault, match=r"^memory ran out .*goes on with --resume"), as_faults():
        helpers.trained(tiny_dir, pairs_file, tmp_path / "run", save_steps=2)
    assert helpers.status(tmp_path / "run") == "failed"
    assert read_json(tmp_path / "run" / "status.json")["error"]
    monkeypatch.undo()
    run = helpers.trained(tiny_dir, pairs_file, tmp_path / "run", save_steps=2, resume=True)
    assert len(helpers.losses(run)) == 9


def test_a_run_killed_while_it_wrote_is_resumed_without_what_it_left(tiny_dir, pairs_file, tmp_path, monkeypatch):
    change_hidden(monkeypatch, lambda hidden, count: hidden if count < 4 else hidden * NAN)
    with pytest.raises(TrainingError):
        helpers.trained(tiny_dir, pairs_file, tmp_path / "run", save_steps=2)
    left = tmp_path / "run" / ".adapter_model.safetensors.ab12_xyz.safetensors"
    left.write_bytes(b"half")
    monkeypatch.undo()
    run = helpers.trained(tiny_dir, pairs_file, tmp_path / "run", save_steps=2, resume=True)
    assert not left.exists()
    assert not [path for path in run.path.iterdir() if path.name.startswith(".") and path.name != ".lock"]


def test_a_question_that_leaves_no_room_for_an_answer_is_refused(tiny_dir, tmp_path):
    data = tiny.write_pairs(tmp_path / "long.jsonl", [("Что? " * 200, "Да."), *tiny.PAIRS])
    with pytest.raises(DataError, match="line 1: the question takes"):
        helpers.trained(tiny_dir, data, tmp_path / "run", data_options={"max_length": 64})
