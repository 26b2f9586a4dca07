import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from znatok import runs
from znatok.errors import ModelError, SystemFault, UsageError
from znatok.runs import OWN_FILES, OWN_FOLDERS, Run, create, find, held

HOLDER = """
import sys, time
from pathlib import Path
from znatok.runs import Run, held
with held(Run(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def holder(tmp_path):
    """Start another process that holds the run ``held``; return it and the run."""
    run = Run(tmp_path / "held")
    run.path.mkdir()
    process = subprocess.Popen([sys.executable, "-c", HOLDER, run.path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process, run
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_run_without_a_name_gets_date_and_model_and_is_the_latest():
    run = create(None, "Qwen/Qwen2.5-1.5B")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_Qwen2\.5-1\.5B", run.path.name)
    assert run.path.parent == Path("runs")
    assert find(None).path == run.path.resolve()
    assert json.loads((run.path / "status.json").read_text()) == {}


def test_the_newest_run_under_runs_is_the_latest():
    create("runs/one", "m")
    create("runs/two", "m")
    create("elsewhere", "m")
    assert find(None).path == Path("runs/two").resolve()
    assert not Path("latest").exists()
    assert (Path("runs") / "latest").is_symlink()


def test_the_latest_run_can_be_started_anew_by_that_name():
    """Once ``latest`` came to point at itself."""
    create("runs/one", "m")
    create("runs/latest", "m", force=True)
    assert find(None).path == Path("runs/one").resolve()


def test_a_run_called_latest_stays_a_directory():
    run = create("runs/latest", "m")
    assert not run.path.is_symlink()
    assert find(None).path == run.path.resolve()
    create("runs/other", "m")
    assert find("runs/latest").path == run.path


def test_where_links_cannot_be_made_latest_is_a_text_file(monkeypatch):
    monkeypatch.setattr(Path, "symlink_to", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    run = create("runs/one", "m")
    assert (Path("runs") / "latest").read_text() == "one\n"
    assert find(None).path == run.path
    create("runs/two", "m")
    assert find(None).path == Path("runs/two")


def test_a_run_is_found_by_directory_or_by_name():
    run = create("runs/one", "m")
    assert find("one").path == run.path
    assert find(str(run.path.resolve())).path == run.path.resolve()
    with pytest.raises(ModelError, match="two: no such run directory"):
        find("two")


@pytest.mark.parametrize("leftover", [None, "link", "file"])
def test_without_a_run_there_is_no_latest(leftover):
    Path("runs").mkdir()
    if leftover == "link":
        Path("runs/latest").symlink_to("gone")
    if leftover == "file":
        Path("runs/latest").write_text("gone\n")
    with pytest.raises(ModelError, match="no run yet"):
        find(None)


def test_a_directory_that_is_not_empty_is_refused_and_left_alone():
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("dear to me")
    with pytest.raises(UsageError, match=r"--output_dir mine: not empty; --resume .* --force"):
        create("mine", "m")
    assert [p.name for p in Path("mine").iterdir()] == ["thesis.txt"]


def test_an_empty_directory_is_taken():
    Path("mine").mkdir()
    assert create("mine", "m").path == Path("mine")


def test_force_removes_what_a_run_wrote_and_nothing_else():
    run = Path("mine")
    for name in (*OWN_FILES, "thesis.txt", "notes/plan.md", *(f"{folder}/deep/file" for folder in OWN_FOLDERS)):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("old")
    create("mine", "m", force=True)
    left = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    assert left - {".lock"} == {"thesis.txt", "notes/plan.md", "status.json"}
    assert (run / "status.json").read_text() == "{}\n"


def test_force_is_not_needed_and_harmless_for_a_new_directory():
    assert create("new", "m", force=True).path.is_dir()


def test_force_does_not_clear_a_run_that_is_being_written(holder):
    process, run = holder
    (run.path / "metrics.jsonl").write_text("precious")
    with pytest.raises(SystemFault, match=f"process {process.pid} is writing to this run"):
        create(str(run.path), "m", force=True)
    assert (run.path / "metrics.jsonl").read_text() == "precious"


def test_a_file_in_the_place_of_the_directory_is_refused():
    Path("file").write_text("x")
    with pytest.raises(UsageError, match="--output_dir file: a file stands there"):
        create("file", "m", force=True)


def test_a_place_that_cannot_be_written_is_named():
    Path("file").write_text("x")
    with pytest.raises(SystemFault, match=r"--output_dir file/run: can't be written to \(Not a directory\)"):
        create("file/run", "m")


def test_the_second_process_is_told_who_holds_the_run(holder):
    process, run = holder
    with pytest.raises(SystemFault, match=f"held: process {process.pid} is writing to this run"), held(run):
        pytest.fail("two writers")


def test_a_lock_ends_with_its_process_however_it_ends(holder):
    process, run = holder
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (run.path / ".lock").read_text() == f"{process.pid}\n"  # stale
    with held(run):
        assert (run.path / ".lock").read_text() == f"{os.getpid()}\n"
    assert (run.path / ".lock").read_text() == ""


def test_a_lock_is_freed_by_an_error(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(ValueError, match="inside"), held(run):
        raise ValueError("inside")
    with held(run):
        pass


def test_where_there_are_no_locks_the_file_names_its_holder(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "fcntl", None)
    with held(Run(tmp_path)):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Qwen2.5-1.5B", "Qwen2.5-1.5B"),
        ("мой файл.gguf", "gguf"),
        ("a b/c\\d", "a-b-c-d"),
        ("../..", "run"),
        ("знаток", "run"),
        ("x" * 100, "x" * 64),
    ],
)
def test_slugs_are_safe_file_names(text, expected):
    assert runs.slug(text) == expected


def test_status_says_what_is_known_and_the_rest_of_the_run_is_where_it_should_be(tmp_path):
    run = Run(tmp_path)
    assert run.read_manifest() == {}
    assert run.read_status() == {}
    assert not run.has_adapter()
    run.set_status("failed", error="нет памяти")
    status = json.loads((tmp_path / "status.json").read_text(encoding="utf-8"))
    assert run.read_status() == status
    assert status["state"] == "failed"
    assert status["error"] == "нет памяти"
    assert status["pid"] == os.getpid()
    assert status["updated"].endswith("+00:00")
    run.manifest.write_text('{"base": {}}')
    (tmp_path / "adapter_model.safetensors").touch()
    assert run.read_manifest() == {"base": {}}
    assert run.has_adapter()
    names = {p.name for p in (run.metrics, run.manifest, run.options, run.checkpoints, run.images, run.compare)}
    assert names <= {*OWN_FILES, *OWN_FOLDERS}
