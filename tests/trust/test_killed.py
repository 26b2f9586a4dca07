"""kill -9 at any moment of a training costs the steps since the last checkpoint, and not a bit of the result.

Once before every change that a training makes to its run directory (between write and rename, too), and in float32 and
in int8 at 25 random moments by the clock each, every other one killed once more while it goes on.
"""

import pytest

import helpers
import tiny
from killed import FORKS, Trainings, moments
from znatok.files import read_json
from znatok.model.load import machine_capabilities

OPTIONS = {
    "learning_rate": "5e-3", "num_train_epochs": "2", "per_device_train_batch_size": "3", "threads": "1",
    "save_steps": "2", "eval_steps": "3", "keep_checkpoints": "2", "keep": "best",
}  # fmt: skip


@pytest.fixture(scope="module", params=["float32", "int8"])
def trainings(request, tiny_dir, tmp_path_factory):
    """Return a training to be cut short, and the directory of one that was not."""
    if request.param == "int8" and not machine_capabilities()["avx512_vnni"]:
        pytest.skip("this processor does not train in int8")
    room = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tiny.REPO / "tests"))  # the server of forks does not take over sys.path
        patch.setenv("ZNATOK_HOME", str(room / "home"))  # rounded models are written there: that is cut short, too
        patch.chdir(room)
        FORKS.set_forkserver_preload(["killed"])
        data = tiny.write_pairs(room / "pairs.jsonl")
        words = ["--model_name", str(tiny_dir), "--data_path", str(data), "--dtype", request.param]
        for name, value in OPTIONS.items():
            words += [f"--{name}", value]
        yield Trainings(words, room)


@pytest.fixture(scope="module")
def straight(trainings):
    """Return the run nobody cut short, and how many changes it made to its directory."""
    count = trainings.room / "count.txt"
    run = trainings.whole("straight", counted=count)
    return run, int(count.read_text())


def finished_equally(trainings, name, straight):
    """Go on with a run that was killed; hold what comes out against the straight one."""
    run = trainings.room / name
    trainings.whole(name, *(["--resume"] if (run / "run.toml").is_file() else []))
    assert helpers.adapter_bytes(run) == helpers.adapter_bytes(straight)
    assert helpers.losses(run) == helpers.losses(straight)
    assert helpers.validations(run) == helpers.validations(straight)
    assert helpers.status(run) == "finished"
    assert read_json(run / "manifest.json")["result"]["best"] == read_json(straight / "manifest.json")["result"]["best"]
    assert files(run) == files(straight), "what a killed process left behind stays there"


def files(run):
    """Return the names of all files in a run directory."""
    return {path.relative_to(run).as_posix() for path in run.rglob("*")}


def test_killed_before_any_change_to_its_directory(trainings, straight):
    if "int8" in trainings.words:
        pytest.skip("the same files are written in float32")
    run, changes = straight
    assert changes > 100
    for number in range(changes):
        process = trainings.begin(f"change-{number}", dies_before=number)
        process.join(120)
        assert process.exitcode == -9, f"change {number}: {trainings.said()}"
        finished_equally(trainings, f"change-{number}", run)


def test_killed_at_random_moments(trainings, straight):
    run, _changes = straight
    lasts = trainings.seconds()
    still_ran = 0
    for number, moment in enumerate(moments(seed=1, count=25, within=lasts)):
        name = f"moment-{number}"
        still_ran += trainings.killed(name, seconds=moment)
        if number % 2 and (trainings.room / name / "run.toml").is_file():
            trainings.killed(name, "--resume", seconds=lasts - moment)
        finished_equally(trainings, name, run)
    assert still_ran > 12, "most were to be killed while they ran"
