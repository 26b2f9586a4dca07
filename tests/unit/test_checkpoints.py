import shutil

import pytest

from znatok.files import read_json, sha256
from znatok.train import checkpoints
from znatok.train.checkpoints import SEAL, complete, damage, newest, prune, seal, staging, step_of, tidy


def save(folder, step, **files):
    """Seal a checkpoint of two files, one of them in a folder; return it."""
    staged = staging(folder) / f"checkpoint-{step}"
    (staged / "best").mkdir(parents=True)
    for name, content in ({"weights.bin": b"w" * 1000, "best/best.json": b"{}"} | files).items():
        (staged / name).write_bytes(content)
    return seal(staged, folder, step)


def ignore(_warning):
    """Take a warning and forget it."""


def test_a_sealed_checkpoint_names_every_file_with_its_hash(tmp_path):
    saved = save(tmp_path, 7)
    assert saved == tmp_path / "step-000007"
    assert step_of(saved) == 7
    hashes = {name: sha256(saved / name) for name in ("weights.bin", "best/best.json")}
    assert read_json(saved / SEAL) == {"step": 7, "sha256": hashes}
    assert damage(saved) == ""


def test_the_newest_is_the_one_with_the_highest_step(tmp_path):
    for step in (10, 9, 100):
        save(tmp_path, step)
    assert [path.name for path in complete(tmp_path)] == ["step-000009", "step-000010", "step-000100"]
    assert newest(tmp_path, pytest.fail) == tmp_path / "step-000100"


def test_no_checkpoint_is_none(tmp_path):
    assert newest(tmp_path, pytest.fail) is None
    assert newest(tmp_path / "missing", pytest.fail) is None


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda saved: truncate(saved / "weights.bin"), "weights.bin has changed since it was saved"),
        (lambda saved: flip_a_bit(saved / "weights.bin"), "weights.bin has changed since it was saved"),
        (lambda saved: flip_a_bit(saved / "best/best.json"), "best/best.json has changed since it was saved"),
        (lambda saved: (saved / "weights.bin").unlink(), "weights.bin is missing"),
        (lambda saved: (saved / SEAL).write_text('{"step": 2, "sha'), f"{SEAL}: "),
        (lambda saved: (saved / SEAL).write_text("{}"), f"{SEAL}: 'sha256'"),
        (lambda saved: (saved / SEAL).write_text('{"sha256": []}'), f"{SEAL}: "),
        (lambda saved: (saved / SEAL).write_bytes(b"\xff\xfe"), f"{SEAL}: "),
    ],
    ids=[
        "truncated",
        "bit flipped",
        "bit flipped inside a folder",
        "missing",
        "seal cut",
        "seal empty",
        "sums no table",
        "seal not text",
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_reason(tmp_path, harm, why):
    save(tmp_path, 1)
    harm(save(tmp_path, 2))
    warnings = []
    assert newest(tmp_path, warnings.append) == tmp_path / "step-000001"
    (warning,) = warnings
    assert warning.startswith(f"{tmp_path / 'step-000002'}: skipped, {why}")


def test_nothing_is_left_when_every_checkpoint_is_damaged(tmp_path):
    truncate(save(tmp_path, 1) / "weights.bin")
    warnings = []
    assert newest(tmp_path, warnings.append) is None
    assert len(warnings) == 1


def test_what_a_crash_left_behind_is_no_checkpoint_and_blocks_no_save(tmp_path):
    save(tmp_path, 1)
    (staging(tmp_path) / "checkpoint-2").mkdir()  # died while writing
    (tmp_path / "step-000003").mkdir()  # never sealed
    assert newest(tmp_path, pytest.fail) == tmp_path / "step-000001"
    save(tmp_path, 2)
    save(tmp_path, 3)
    assert [path.name for path in complete(tmp_path)] == ["step-000001", "step-000002", "step-000003"]


def test_staging_starts_empty(tmp_path):
    (staging(tmp_path) / "half").write_bytes(b"old")
    assert list(staging(tmp_path).iterdir()) == []


def test_the_same_step_saved_again_replaces_the_old_one(tmp_path):
    save(tmp_path, 5, **{"weights.bin": b"old", "extra.bin": b"old"})
    saved = save(tmp_path, 5, **{"weights.bin": b"new"})
    assert (saved / "weights.bin").read_bytes() == b"new"
    assert not (saved / "extra.bin").exists()
    assert damage(saved) == ""


def test_pruning_keeps_the_newest(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step)
    prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-000004", "step-000005"]
    prune(tmp_path, 10)
    assert len(complete(tmp_path)) == 2


def test_a_removal_cut_short_leaves_nothing_that_looks_complete(tmp_path, monkeypatch):
    for step in (1, 2):
        save(tmp_path, step)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # the power fails after the seal is gone
    prune(tmp_path, 1)
    assert (tmp_path / "step-000001" / "weights.bin").is_file()
    assert [path.name for path in checkpoints.complete(tmp_path)] == ["step-000002"]


def test_a_crash_between_sealing_and_renaming_keeps_the_checkpoint_before(tmp_path):
    save(tmp_path, 1)
    staged = staging(tmp_path) / "checkpoint-2"
    staged.mkdir()
    (staged / "weights.bin").write_bytes(b"half")
    (staged / SEAL).write_text('{"step": 2, "sha256": {}}', encoding="utf-8")
    assert newest(tmp_path, pytest.fail) == tmp_path / "step-000001"


def test_a_kill_between_renaming_and_pruning_leaves_nothing_after_the_run_went_on(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    staging(tmp_path)
    (tmp_path / "step-000001" / SEAL).unlink()  # a removal cut short
    tidy(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000003"]
