import gzip
import json
import os
import threading

import pytest

import tiny
from znatok.data.questions import Question, read_questions
from znatok.errors import DataError


def test_a_text_file_holds_a_question_a_line_numbered_as_editors_do(tmp_path):
    path = tmp_path / "вопросы.txt"
    path.write_text("\ufeffЧто такое PLA?\r\n\n   \n  Что такое шов? \n", encoding="utf-8")
    assert read_questions(path) == (Question("вопросы-1", "Что такое PLA?"), Question("вопросы-4", "Что такое шов?"))


@pytest.mark.parametrize("strange", ["\u2028", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_line_ends_end_a_line(tmp_path, strange):
    path = tmp_path / "q.txt"
    path.write_text(f"один{strange}вопрос\nдругой", encoding="utf-8")
    assert read_questions(path) == (Question("q-1", f"один{strange}вопрос"), Question("q-2", "другой"))


def test_json_lines_bring_their_references(tmp_path):
    path = tiny.write_pairs(tmp_path / "test.jsonl")
    questions = read_questions(path)
    assert [(q.text, q.reference) for q in questions] == tiny.PAIRS
    assert questions[2].id == "test-3"


@pytest.mark.parametrize("text", ["", "\n \n\t\n", "\ufeff"])
def test_a_file_without_a_question_is_refused(tmp_path, text):
    path = tmp_path / "q.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"q\.txt: no question in it"):
        read_questions(path)


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt: no such file"):
        read_questions(tmp_path / "none.txt")
    with pytest.raises(DataError, match="a directory"):
        read_questions(tmp_path)
    (tmp_path / "q.txt").write_bytes("Что?".encode("cp1251"))
    with pytest.raises(DataError, match=r"q\.txt: not UTF-8 at byte 0"):
        read_questions(tmp_path / "q.txt")


@pytest.mark.parametrize("encoding", ["cp1251", "koi8-r", "utf-16"])
@pytest.mark.parametrize("name", ["q.txt", "q.jsonl"])
def test_another_encoding_is_named_with_the_command_that_converts(tmp_path, name, encoding):
    path = tmp_path / name
    path.write_bytes('{"prompt": "Что такое сопло?", "response": "Деталь."}'.encode(encoding))
    with pytest.raises(DataError, match=rf"{name}: in {encoding}; expected UTF-8; convert it: iconv -f {encoding} "):
        read_questions(path)


def test_an_archive_is_no_list_of_questions(tmp_path):
    path = tmp_path / "q.txt"
    path.write_bytes(gzip.compress(b"Why?"))
    with pytest.raises(DataError, match=r"q\.txt: compressed; unpack it first: gunzip"):
        read_questions(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "q.txt")
    said = []

    def read():
        with pytest.raises(DataError) as caught:
            read_questions(tmp_path / "q.txt")
        said.append(str(caught.value))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(timeout=5)
    assert "a pipe" in said[0]


def test_a_name_with_a_line_feed_stays_on_one_line(tmp_path):
    path = tmp_path / "a\nb.txt"
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_questions(path)
    assert str(caught.value).isprintable()


def test_a_bad_record_is_refused_with_its_line(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"prompt": "a", "response": "b"}) + '\n{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"q\.jsonl:2: no key"):
        read_questions(path)
