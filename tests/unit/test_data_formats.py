import gzip
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

import helpers
from znatok.data import formats, lines
from znatok.data.load import read_pairs
from znatok.data.schema import Pair
from znatok.errors import DataError

GOOD = '{"prompt": "Что такое PLA?", "response": "Это пластик."}'
PAIR = Pair("Что такое PLA?", "Это пластик.", line=1)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "data.jsonl"


def write(file, content):
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def complaint(file):
    with pytest.raises(DataError) as caught:
        read_pairs(file)
    assert caught.value.exit_code == 3
    text = str(caught.value)
    assert text.isprintable()
    return text


# Files that are none


def test_a_missing_file_is_answered_with_its_neighbours(tmp_path):
    write(tmp_path / "data.jsonl", GOOD)
    text = complaint(tmp_path / "dta.jsonl")
    assert text == f'{tmp_path}/dta.jsonl: no such file; beside it: "data.jsonl"'
    assert complaint(tmp_path / "other").endswith('; beside it: "data.jsonl"')
    assert complaint(tmp_path / "nowhere" / "data.jsonl").endswith("no such file")
    assert "no such file" in complaint(tmp_path / "data.jsonl" / "x")
    assert "no such file" in complaint(tmp_path / "a\0b")
    assert "can't be read" in complaint(tmp_path / ("a" * 5000))


def test_a_directory_is_refused(tmp_path):
    assert "a directory" in complaint(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    said = []
    reader = threading.Thread(target=lambda: said.append(complaint(tmp_path / "pipe")), daemon=True)
    reader.start()
    reader.join(timeout=5)
    assert not reader.is_alive(), "the reader waits for a writer"
    assert "a pipe" in said[0]


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="no devices here")
def test_a_device_is_refused():
    assert "a device" in complaint(Path("/dev/null"))


def test_a_symlink_loop_is_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "can't be read" in complaint(tmp_path / "a")


def test_an_unreadable_file_is_refused(file):
    with helpers.unprivileged(file.parent) as place:
        write(place / file.name, GOOD).chmod(0)
        assert complaint(place / file.name).endswith("can't be read: Permission denied")


def test_a_failing_disk_is_a_data_error(file, monkeypatch):
    def broken(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(lines.formats, "refuse_head", broken)
    assert complaint(write(file, GOOD)).endswith("can't be read: Input/output error")


@pytest.mark.parametrize("content", ["", "\n", " \n\t\r\n\n", "\ufeff", "\ufeff\n"])
def test_a_file_without_records_is_refused(file, content):
    assert "no records" in complaint(write(file, content))


def test_a_file_over_the_limit_is_refused_unread(file):
    with file.open("wb") as opened:
        opened.truncate(formats.MAX_FILE + 1)  # sparse: takes no disk
    assert "larger than" in complaint(file)


def test_a_file_that_grows_while_it_is_read_is_stopped(file, monkeypatch):
    write(file, f"{GOOD}\n" * 20)
    monkeypatch.setattr(formats, "refuse_irregular", lambda path: None)
    monkeypatch.setattr(formats, "MAX_FILE", 500)
    assert "larger than 500 bytes" in complaint(file)


# Files that are something else


@pytest.mark.parametrize(
    ("content", "command"),
    [
        (gzip.compress(GOOD.encode(), mtime=0), "gunzip -k"),
        (b"\x28\xb5\x2f\xfd rest", "zstd -d"),
        (b"\xfd7zXZ\x00 rest", "xz -dk"),
        (b"BZh9 rest", "bunzip2 -k"),
    ],
)
def test_a_compressed_file_is_refused_with_the_command_that_unpacks_it(file, content, command):
    assert complaint(write(file, content)).endswith(f"{command} {file}")


def test_a_zip_is_refused(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.jsonl", GOOD)
    assert f"unzip {file}" in complaint(file)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_utf16_and_utf32_are_named_with_a_command_that_works(file, encoding):
    text = complaint(write(file, GOOD.encode(encoding)))
    assert f"in {encoding.replace('-le', 'le').replace('-be', 'be')}; expected UTF-8" in text
    assert_converted(text, file)


@pytest.mark.parametrize("encoding", ["cp1251", "koi8-r", "cp866"])
def test_one_byte_cyrillic_is_named_with_a_command_that_works(file, encoding):
    text = complaint(write(file, f'{{"prompt": "3D", "response": "ok"}}\n{GOOD}\n'.encode(encoding)))
    assert f"in {encoding}; expected UTF-8" in text
    write(file, f"{GOOD}\n{GOOD}\n".encode(encoding))
    assert_converted(complaint(file), file)


def assert_converted(text, file):
    command = text.partition("convert it: ")[2]
    if shutil.which("iconv"):
        subprocess.run(command, shell=True, check=True, cwd=file.parent)  # noqa: S602 - the line a user would paste
        assert read_pairs(Path(f"{file}.utf8")).pairs[0] == PAIR


def test_a_json_array_is_refused_with_a_command_that_works(tmp_path):
    file = write(tmp_path / "it's.json", json.dumps([json.loads(GOOD)] * 2, indent=1))
    text = complaint(file)
    assert "one JSON array" in text
    command = text.partition("convert it: ")[2].replace("python3", sys.executable, 1)
    subprocess.run(command, shell=True, check=True)  # noqa: S602 - the line a user would paste
    assert len(read_pairs(Path(f"{file}.jsonl")).pairs) == 2


def test_a_json_array_on_one_very_long_line_is_still_called_an_array(file):
    assert "one JSON array" in complaint(write(file, "\ufeff\n [" + GOOD + "," + " " * lines.MAX_LINE))


@pytest.mark.parametrize("first", ["[]", "\ufeff[1, [2]]", '["q", "a"]'])
def test_a_list_on_the_first_line_is_a_problem_of_that_line_and_not_an_array_file(file, first):
    write(file, f"{first}\n{GOOD}\n")
    assert complaint(file) == f'{file}:1: array; expected an object {{"prompt": …, "response": …}}'
    assert [pair.line for pair in read_pairs(file, skip_bad=True).pairs] == [2]


def test_a_list_with_nothing_after_it_is_one_array(file):
    assert "one JSON array" in complaint(write(file, f"[{GOOD}]\n \n"))


def test_a_hundred_thousand_open_brackets_are_an_array(file):
    assert "one JSON array" in complaint(write(file, "[" * 100_000))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("prompt,response\nq,a\nq2,a2\n", "(CSV?)"),
        ("prompt;response\n", "(CSV?)"),
        ("- prompt: q\n  response: a\n", "(YAML?)"),
        ("---\nprompt: q\n", "(YAML?)"),
        ("<!doctype html>\n<p>404\n", "(HTML or XML?)"),
        ('{\n "prompt": "q",\n "response": "a"\n}\n', "(a record must stand on one line)"),
        ("просто текст\n", "not JSON Lines: starts with 'просто текст'"),
    ],
)
def test_other_text_formats_are_one_error_not_one_per_line(file, content, kind):
    text = complaint(write(file, content))
    assert kind in text
    assert "\n" not in text
    assert '{"prompt": …, "response": …} on each line' in text
