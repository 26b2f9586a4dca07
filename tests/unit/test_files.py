import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from znatok import files
from znatok.errors import DataError, SystemFault


def test_cache_home_is_znatoks_then_the_desktops_then_the_users(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("ZNATOK_HOME", "/z")
    assert files.cache_home() == Path("/z")
    monkeypatch.delenv("ZNATOK_HOME")
    assert files.cache_home() == Path("/x/znatok")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert files.cache_home() == Path.home() / ".cache" / "znatok"


def test_a_user_without_a_home_is_told(monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("ZNATOK_HOME", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(SystemFault, match="no home directory is known for this user; set HOME"):
        files.cache_home()


@pytest.mark.parametrize("size", [0, 1, files.BLOCK, files.BLOCK + 1])
def test_sha256_reads_files_of_any_size(tmp_path, size):
    path = tmp_path / "f"
    path.write_bytes(b"z" * size)
    assert files.sha256(path) == hashlib.sha256(b"z" * size).hexdigest()


def test_text_is_written_as_utf8_with_lf_into_folders_made_on_the_way(tmp_path):
    path = tmp_path / "a" / "b.txt"
    files.write_text(path, "щель\nёж\n")
    assert path.read_bytes() == "щель\nёж\n".encode()
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


def fail_after_half(path):
    path.write_text("half")
    raise ZeroDivisionError


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "f.json"
    files.write_text(path, "old")
    with pytest.raises(ZeroDivisionError), files.replacing(path) as temporary:
        fail_after_half(temporary)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_sees_the_old_file_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "f.safetensors"
    path.write_text("old")
    with files.replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == path.suffix
        assert temporary.parent == path.parent
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize(("mask", "left"), [(0o027, 0o640), (0o077, 0o600), (0o000, 0o666)])
def test_a_new_file_has_the_rights_the_umask_leaves(tmp_path, mask, left):
    before = os.umask(mask)
    try:
        files.write_text(tmp_path / "f", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == left


@pytest.mark.parametrize("raw", [b"[1]", b"{", b"\xff", b"[" * 100_000, b""])
def test_a_file_of_ours_that_is_damaged_is_an_error_with_its_name(tmp_path, raw):
    """A list passed under python -O, and the rest was a traceback."""
    (tmp_path / "f.json").write_bytes(raw)
    with pytest.raises(DataError, match=r"f\.json: damaged, .*; bring back a copy"):
        files.read_json(tmp_path / "f.json")


def test_what_killed_writers_left_is_told_from_other_files(tmp_path):
    for name in (".f.json.ab12_xyz.json", "f.json", ".f.json.notes", ".g.json.ab12_xyz.json", ".f.json.ab12_xyz.toml"):
        (tmp_path / name).touch()
    with files.replacing(tmp_path / "f.json") as temporary:
        assert set(files.leftovers(tmp_path / "f.json")) == {tmp_path / ".f.json.ab12_xyz.json", temporary}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_refused_and_the_old_file_stays(tmp_path, bad):
    path = tmp_path / "f.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"a": bad})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_jsonl(path, [{"a": bad}])
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.append_jsonl(path, {"a": bad})
    assert files.read_json(path) == {"a": 1}


def test_json_round_trip_keeps_cyrillic_readable(tmp_path):
    path = tmp_path / "f.json"
    files.write_json(path, {"вопрос": "Что такое PLA?\u2028"})
    assert "вопрос" in path.read_text(encoding="utf-8")
    assert files.read_json(path) == {"вопрос": "Что такое PLA?\u2028"}


def test_rows_written_and_appended_are_read_in_order(tmp_path):
    path = tmp_path / "f.jsonl"
    files.write_jsonl(path, [{"n": 1, "text": "строка\u2028с разделителем\x85"}])
    files.append_jsonl(path, {"n": 2})
    assert files.read_jsonl(path) == [{"n": 1, "text": "строка\u2028с разделителем\x85"}, {"n": 2}]
    assert all(json.loads(line) for line in path.read_bytes().splitlines())


@pytest.mark.parametrize("line", [b'{"n": 2', b"5", b"[2]", b"\0" * 64, b'{"n": "\xff"}', b"[" * 100_000])
def test_a_damaged_line_is_an_error_with_its_number_or_left_out(tmp_path, line):
    """It was a JSONDecodeError, or a row that was no table."""
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'{"n": 1}\n' + line + b'\n{"n": 3}\n{"n": 4')
    with pytest.raises(DataError, match=r"f\.jsonl:2: damaged, .*; bring back a copy, or remove the line"):
        files.read_jsonl(path)
    heard = []
    assert files.read_jsonl(path, damaged=heard.append) == [{"n": 1}, {"n": 3}]
    assert [error.fields["line"] for error in heard] == [2]


def test_appending_begins_a_file(tmp_path):
    files.append_jsonl(tmp_path / "f.jsonl", {"n": 1})
    assert files.read_jsonl(tmp_path / "f.jsonl") == [{"n": 1}]


def test_a_last_row_cut_short_anywhere_is_left_out(tmp_path):
    """A crash can cut within a letter: such a file was not readable at all."""
    path = tmp_path / "f.jsonl"
    files.write_jsonl(path, [{"n": 1}, {"text": "щ"}])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole)):
        path.write_bytes(whole[:length])
        assert files.read_jsonl(path) == [{"n": 1}]
    path.write_bytes(b"")
    assert files.read_jsonl(path) == []
