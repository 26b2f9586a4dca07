import datetime
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers import small_files, unprivileged
from znatok import runs
from znatok.errors import DataError, ModelError, SystemFault, UsageError
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


@pytest.mark.parametrize("name", ["CON", "nul.gguf", "aux", "COM1.bin"])
def test_a_run_is_not_called_what_windows_keeps_for_devices(name):
    """There such a name is a device whatever follows its first dot; the date before it makes it another one."""
    run = create(None, f"models/{name}")
    assert run.path.name.endswith(f"_{name}")
    assert not re.match(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)", run.path.name)


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
    with pytest.raises(SystemFault, match=r"^file/run: can't be written to \(Not a directory\); "):
        create("file/run", "m")


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize(("place", "why"), [("x" * 300, "File name too long"), ("/proc/run", "No such file")])
def test_a_place_no_run_can_stand_at_is_one_error_whoever_asks(place, why, force):
    """These were tracebacks: a name of 300 characters, and a file system that lets nobody write."""
    for ask in (create, lambda where, _model, force: runs.refuse_used(where, force=force)):
        if ask is create or len(place) == 300:
            with pytest.raises(SystemFault, match=f"can't be written to \\({why}"):
                ask(place, "m", force=force)
    with pytest.raises(ModelError, match="no such run directory"):
        find(place)


def test_a_folder_that_may_not_be_written_to_is_one_error(tmp_path):
    with unprivileged(tmp_path) as place:
        (place / "closed").mkdir(mode=0o500)
        with pytest.raises(SystemFault, match=r"closed/run: can't be written to \(Permission denied\)"):
            create(str(place / "closed" / "run"), "m")
        (place / "shut").mkdir(mode=0)
        with pytest.raises(SystemFault, match=r"shut/run: can't be written to \(Permission denied\)"):
            runs.refuse_used(str(place / "shut" / "run"))


def test_a_stated_directory_is_the_users_own_wherever_it_lies(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert create("../../x", "m").path.resolve() == tmp_path / "x"
    assert not (tmp_path / "a" / "b" / "runs").exists()


def test_a_run_that_can_not_be_locked_or_cleared_is_one_error(tmp_path):
    (tmp_path / "run" / ".lock").mkdir(parents=True)
    with pytest.raises(SystemFault, match=r"run: can't be written to \(Is a directory\)"), held(Run(tmp_path / "run")):
        pytest.fail("no lock was taken")
    (tmp_path / "old" / "report.html").mkdir(parents=True)
    with pytest.raises(SystemFault, match="old: can't be written to"):
        create("old", "m", force=True)


def test_a_disk_that_is_full_when_a_run_begins_is_one_error(tmp_path):
    run = Run(tmp_path)
    with small_files(0):
        with pytest.raises(SystemFault, match=r"new: can't be written to \(File too large\); make room"):
            create("new", "m")
        with pytest.raises(SystemFault, match=r"can't be written to \(File too large\)"), held(run):
            pytest.fail("its holder is not named")
    with held(run), small_files(0):
        pass  # and nobody is in the way of the next one
    with held(run):
        pass


def test_what_was_killed_before_its_options_were_stored_is_no_run():
    """Such a folder could neither be resumed nor, without --force, be used."""
    run = create("run", "m")
    (run.path / ".lock").touch()
    (run.path / ".run.toml.ab12_xyz.toml").write_text("[mod")
    assert create("run", "m").path == run.path
    assert sorted(path.name for path in run.path.iterdir()) == [".lock", "status.json"]
    run.options.touch()
    with pytest.raises(UsageError, match="not empty"):
        create("run", "m")


def test_starting_anew_sets_aside_what_the_user_made_of_the_old_run(capsys):
    """An export and votes were left in place, as if they were of the new adapter."""
    run = create("run", "m")
    for number in ("", "-2"):
        (run.path / "export" / "merged").mkdir(parents=True)
        (run.path / "votes.jsonl").write_text(number)
        create("run", "m", force=True)
        aside = run.path / f"earlier{number}"
        assert f"run: export, votes.jsonl of the run before now stand in {aside}" in capsys.readouterr().err
        assert (aside / "votes.jsonl").read_text() == number
        assert (aside / "export" / "merged").is_dir()
    create("run", "m", force=True)
    assert {path.name for path in run.path.iterdir()} == {".lock", "status.json", "earlier", "earlier-2"}


def test_starting_anew_clears_the_temporary_files_of_a_killed_run_and_no_others():
    run = create("run", "m")
    for name in (".adapter_model.safetensors.ab12_xyz.safetensors", ".status.json.00000000.json", ".README.md.notes"):
        (run.path / name).touch()
    create("run", "m", force=True)
    assert {path.name for path in run.path.iterdir()} == {".lock", "status.json", ".README.md.notes"}


def test_runs_of_one_second_are_numbered_whatever_the_clock_says(monkeypatch):
    """The clock is set back, or summer time ends: a name that is taken gets a number."""

    class Stopped(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 10, 25, 2, 30, tzinfo=datetime.UTC)

    monkeypatch.setattr(runs.datetime, "datetime", Stopped)
    names = [create(None, "m").path.name for _ in range(3)]
    assert names == [f"2026-10-25_02-30-00_m{number}" for number in ("", "-2", "-3")]
    assert find(None).path.name == names[-1]


@pytest.mark.parametrize("zone", ["Asia/Kamchatka", "America/St_Johns", "UTC0"])
def test_names_and_stamps_do_not_depend_on_the_time_zone(zone):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        run = create(None, "MINI/I")
        run.set_status("running")
    time.tzset()
    assert re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}_[0-9]{2}-[0-9]{2}-[0-9]{2}_I", run.path.name)
    stamp = datetime.datetime.fromisoformat(run.read_status()["updated"])
    assert stamp.utcoffset() == datetime.timedelta(0)
    assert abs(datetime.datetime.now(datetime.UTC) - stamp) < datetime.timedelta(minutes=1)


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


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ('{"base": 5}', "base is 5,"),
        ('{"base": null}', "base is null,"),
        ('{"base": {"sha256": []}}', r"base\.sha256 is \[\],"),
        ('{"base": {"name": 7}}', r"base\.name is 7,"),
        ('{"chat": []}', r"chat is \[\],"),
        ('{"chat": {"system": {"a": "' + "x" * 99 + '"}}}', r'chat\.system is {"a": "x{33},'),
        ('{"data": "data.jsonl"}', 'data is "data.jsonl",'),
        ('{"validation": {"sha256": 0}}', r"validation\.sha256 is 0,"),
        ('{"result": {"wall_seconds": "1"}}', r'result\.wall_seconds is "1",'),
    ],
)
def test_a_manifest_that_is_not_as_we_write_it_is_an_error_with_its_name(tmp_path, facts, said):
    """Each of them was an AttributeError or a TypeError where it was read."""
    Run(tmp_path).manifest.write_text(facts, encoding="utf-8")
    with pytest.raises(DataError, match=rf"manifest\.json: damaged, {said} which znatok does not write there; bring"):
        Run(tmp_path).read_manifest()


def test_a_manifest_may_say_less_than_ours(tmp_path):
    for facts in ("{}", '{"base": {"name": "b", "sha256": null}}', '{"validation": null, "result": null, "more": 5}'):
        Run(tmp_path).manifest.write_text(facts, encoding="utf-8")
        assert Run(tmp_path).read_manifest() == json.loads(facts)
