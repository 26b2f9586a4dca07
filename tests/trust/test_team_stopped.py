"""A team that was stopped, or lost a process, goes on and ends where it would have."""

import signal
import subprocess

import pytest

import helpers
import tiny
from teams import TORCHRUN, members, same, together, wait_for_steps, words
from znatok.runs import Run


def test_a_team_that_was_stopped_goes_on_as_if_it_had_not_been(tiny_dir, tmp_path):
    data = tiny.write_pairs(tmp_path / "pairs.jsonl", tiny.PAIRS[:9])  # one process has none of the last batch
    options = {"per_device_train_batch_size": 1, "lora_dropout": 0.2, "num_train_epochs": 12, "val_share": 0}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert together(*words(tiny_dir, data, whole, **options), cwd=tmp_path).returncode == 0
    given = words(tiny_dir, data, cut, **options)
    env = helpers.environment(**helpers.held(tmp_path / "held", rows=4))
    process = subprocess.Popen([*TORCHRUN, *given], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    wait_for_steps(cut, 4)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert helpers.status(cut) == "interrupted"
    assert len(helpers.rows(cut)) < len(helpers.rows(whole))
    done = together(*given, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert helpers.adapter_bytes(cut) == helpers.adapter_bytes(whole)
    alone = helpers.script("znatok", *given, "--resume", cwd=tmp_path)
    assert alone.returncode == 2
    assert "processes: 2 → 1" in alone.stderr


def test_a_split_base_makes_the_same_adapter(tiny_dir, tmp_path):
    """Five pairs to train and three to validate: one process has nothing in the last batch, and less to validate.

    One process is killed on the way, the other says so, and both go on.
    """
    data = tiny.write_pairs(tmp_path / "pairs.jsonl", tiny.PAIRS[:8])
    two, one = tmp_path / "two", tmp_path / "one"
    options = {"val_share": 0.4, "keep": "best", "num_train_epochs": 20}
    given = [*words(tiny_dir, data, two, per_device_train_batch_size=2, **options), "--shard_base", "true"]
    with members(*given, cwd=tmp_path, **helpers.held(tmp_path / "held", rows=4)) as (first, second):
        wait_for_steps(two, 4)
        second.kill()
        first.send_signal(signal.SIGUSR1)
        _out, said = first.communicate(timeout=120)
    assert first.returncode == 5
    assert "pairs: 5 to train, 3 to validate" in said
    assert "engine: transformers, the base is split over 2 processes" in said
    assert "error: process 0 of 2: another one ended or can't be reached" in said
    assert "Traceback" not in said
    assert "another one ended" in Run(two).read_status()["error"]
    done = together(*given, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "going on from" in done.stderr
    given = words(tiny_dir, data, one, per_device_train_batch_size=4, **options)
    assert helpers.script("znatok", *given, cwd=tmp_path).returncode == 0
    same(two, one)
    for rows in (helpers.losses, lambda run: [row["val_loss"] for row in helpers.validations(run)]):
        assert rows(two) == pytest.approx(rows(one), rel=1e-4)
    assert Run(two).read_manifest()["engine"]["name"] == "transformers"
