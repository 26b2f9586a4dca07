"""A training to be killed, and what comes of one that was not."""

import pytest

import tiny
from killed import FORKS, Trainings
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
