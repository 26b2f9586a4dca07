"""Several processes train what one would: the same adapter for the same batches, and fail together."""

import os
import re
import resource
import subprocess

import pytest
import torch

import helpers
import tiny
from teams import TORCHRUN, members, same, together, wait_for_steps, words
from znatok.runs import Run
from znatok.tokens.collate import IGNORE, Collator
from znatok.train.batches import LengthGroupedBatches
from znatok.train.team import Team


@pytest.fixture(scope="module")
def nine(tmp_path_factory):
    """Return a file of nine pairs; in batches of four the last is one pair, and one process has none."""
    return tiny.write_pairs(tmp_path_factory.mktemp("nine") / "pairs.jsonl", tiny.PAIRS[:9])


@pytest.mark.parametrize("accumulated", [1, 2])
def test_two_processes_make_the_adapter_of_one_with_the_same_batches(tiny_dir, nine, tmp_path, accumulated):
    options = {"val_share": 0, "gradient_accumulation_steps": accumulated}
    two, one = tmp_path / "two", tmp_path / "one"
    done = together(*words(tiny_dir, nine, two, per_device_train_batch_size=2, **options), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("chat format") == 1  # the first speaks for both
    assert "processes: 2" in done.stderr
    alone = helpers.script(
        "znatok", *words(tiny_dir, nine, one, per_device_train_batch_size=4, **options), cwd=tmp_path
    )
    assert alone.returncode == 0, alone.stderr
    same(two, one)
    assert helpers.losses(two) == pytest.approx(helpers.losses(one), rel=1e-4)
    for name in ("step", "epoch", "tokens", "learning_rate"):
        assert [row[name] for row in helpers.rows(two)] == pytest.approx([row[name] for row in helpers.rows(one)])
    assert Run(two).read_manifest()["processes"] == 2
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())


def test_a_team_validates_what_one_would(tiny_dir, tmp_path):
    data = tiny.write_pairs(tmp_path / "pairs.jsonl")
    runs = []
    for name, launch, batch in (("two", together, 1), ("one", None, 2)):
        given = words(tiny_dir, data, tmp_path / name, per_device_train_batch_size=batch, val_share=0.3)
        done = launch(*given, cwd=tmp_path) if launch else helpers.script("znatok", *given, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        runs.append([row["val_loss"] for row in helpers.validations(tmp_path / name)])
    assert len(runs[0]) == 2
    assert runs[0] == pytest.approx(runs[1], rel=1e-5)


SPLIT = """
import tiny, torch
from znatok.config import LoraOptions
from znatok.model.adapters import inject
from znatok.train.shards import shard
from znatok.train.team import join

with join() as team:
    model = inject(tiny.tiny_model(), LoraOptions(), seed=1)
    layers = model.get_base_model().model.layers
    whole = sum(parameter.numel() for parameter in layers.parameters() if not parameter.requires_grad)
    shard(model, team)
    held = lambda: sum(p.to_local().numel() for p in layers.parameters() if not p.requires_grad)
    before = held()
    model(torch.tensor([[5, 6, 7]])).logits.sum().backward()
    assert held() == before
    assert not any(hasattr(p, "to_local") for p in model.parameters() if p.requires_grad)
    shares = team.each(before)
    if team.first:
        print("shares", shares, whole)
"""


def test_each_process_holds_its_share_of_the_layers(tmp_path):
    (tmp_path / "split.py").write_text(SPLIT, encoding="utf-8")
    environment = helpers.environment(PYTHONPATH=str(tiny.REPO / "tests"))
    launcher = [*TORCHRUN[:-2], "split.py"]
    done = subprocess.run(launcher, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    shares, whole = re.search(r"shares \[(.+)\] (\d+)", done.stdout).groups()
    assert [float(share) for share in shares.split(", ")] == pytest.approx([int(whole) / 2] * 2, rel=0.02)


def test_the_others_are_told_when_one_is_killed(tiny_dir, nine, tmp_path):
    given = words(tiny_dir, nine, tmp_path / "run", num_train_epochs=200, val_share=0, save_steps=900)
    with members(*given, cwd=tmp_path) as (first, second):
        wait_for_steps(tmp_path / "run", 1)
        second.kill()
        _out, said = first.communicate(timeout=120)
    assert first.returncode == 5
    assert "error: process 0 of 2: another one ended or can't be reached" in said
    assert "Traceback" not in said
    assert helpers.status(tmp_path / "run") == "failed"


def test_the_others_are_told_when_one_has_an_error_of_its_own(tiny_dir, nine, tmp_path):
    """The disk of the first fills up: it says so, and the other one does not wait for it."""
    given = words(tiny_dir, nine, tmp_path / "run", num_train_epochs=200, val_share=0, save_steps=3)
    with members(*given, cwd=tmp_path) as (first, second):
        resource.prlimit(first.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))  # less than an adapter
        (_out, said), (_none, told) = (process.communicate(timeout=120) for process in (first, second))
    assert (first.returncode, second.returncode) == (5, 5)
    assert "error: " in said
    assert "the checkpoint of step 3 can't be written: " in said
    assert "error: process 1 of 2: another one ended or can't be reached" in told
    assert "Traceback" not in said + told
    assert helpers.status(tmp_path / "run") == "failed"


def test_half_of_the_variables_is_an_error(tiny_dir, nine, tmp_path):
    done = helpers.script("znatok", *words(tiny_dir, nine, tmp_path / "run"), cwd=tmp_path, WORLD_SIZE="2", RANK="0")
    assert done.returncode == 2
    assert "WORLD_SIZE=2 without LOCAL_RANK: start it with torchrun" in done.stderr


def test_different_adapters_at_the_end_are_an_error(tmp_path):
    (tmp_path / "apart.py").write_text(
        "import torch\nfrom znatok.errors import TrainingError\nfrom znatok.train.team import join\n"
        "with join() as team:\n"
        "    team.refuse_apart([torch.ones(3)])\n"
        "    assert team.total(team.rank + 1, 2) == [3, 4]\n"
        "    try:\n        team.refuse_apart([torch.ones(3) + team.rank])\n"
        "    except TrainingError as error:\n        print(error)\n"
    )
    launcher = [*TORCHRUN[:-2], "apart.py"]
    done = subprocess.run(launcher, cwd=tmp_path, env=helpers.environment(), capture_output=True, text=True, check=True)
    assert done.stdout.count("the processes hold different adapters at the end (3, 6)") == 2


def test_parts_are_the_whole():
    parts = [LengthGroupedBatches(range(1, 12), 2, 7, Team(rank, 3)) for rank in range(3)]
    whole = LengthGroupedBatches(range(1, 12), 6, 7)
    assert {len(part) for part in (*parts, whole)} == {2}
    for batch, *shares in zip(whole, *parts, strict=True):
        assert sorted(batch) == sorted(index for share in shares for index in share)
    assert os.environ.get("WORLD_SIZE") is None


def test_no_work_is_a_batch_of_padding():
    batch = Collator(pad_id=5)([])
    assert batch["input_ids"].tolist() == [[5]]
    assert batch["attention_mask"].tolist() == [[0]]
    assert torch.equal(batch["labels"], torch.tensor([[IGNORE]]))
