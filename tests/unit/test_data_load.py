import copy
import hashlib
import json
import tracemalloc
from pathlib import Path

import pytest

from znatok.data import lines
from znatok.data.load import BadRecords, copy_lines, read_pairs, scan
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


def complaint(file, kind=DataError):
    with pytest.raises(kind) as caught:
        read_pairs(file)
    text = str(caught.value)
    assert caught.value.exit_code == 3
    assert all(line.isprintable() for line in text.split("\n"))
    return text


def complaint_of_line(file, content, line):
    """The one problem of a file: it names the line, and --skip_bad keeps the records before and after it."""
    text = complaint(write(file, content), BadRecords)
    assert text.startswith(f"{file}:{line}: ")
    assert "\n" not in text
    kept = read_pairs(file, skip_bad=True)
    assert [str(problem) for problem in kept.problems] == [text]
    assert kept.pairs
    assert kept.notes[-1].endswith("bad records left out: 1")
    return text


# Good files


def test_pairs_have_lines_and_the_hash_is_that_of_the_file(file):
    write(file, f"{GOOD}\n\n  \n{GOOD}")
    data = read_pairs(file)
    assert [pair.line for pair in data.pairs] == [1, 4]
    assert data.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert data.notes == data.problems == ()


def test_a_byte_order_mark_is_accepted_with_a_note(file):
    data = read_pairs(write(file, "\ufeff" + GOOD + "\n"))
    assert data.pairs == (PAIR,)
    (note,) = data.notes
    assert "byte order mark" in note
    assert data.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    write(file, "\n".join(["\ufeff" + GOOD] * 2))  # files that were simply put one after another
    assert len(read_pairs(file).pairs) == 2


def test_crlf_is_accepted(file):
    assert len(read_pairs(write(file, f"{GOOD}\r\n\r\n{GOOD}\r\n")).pairs) == 2


def test_unknown_keys_are_named_in_one_note_with_a_count(file):
    lines = [json.dumps({"prompt": "q", "response": "a", "lang": "ru", "score": place}) for place in range(3)]
    data = read_pairs(write(file, "\n".join([GOOD, *lines])))
    assert data.notes == (f'{file}: unknown keys are not read: "lang", "score"; records with them: 3',)


@pytest.mark.parametrize("name", ["с пробелом и ё.jsonl", "😀.jsonl", "-n.jsonl", "a\nb.jsonl", "'q'.jsonl"])
def test_any_file_name_works(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write(Path(name), GOOD)
    assert read_pairs(Path(name)).pairs == (PAIR,)
    complaint(write(Path(name), "5\n"))


# Bad records


def test_invalid_utf8_is_reported_with_line_and_byte(file):
    bad = GOOD.encode().replace(b"PLA", b"P\xffA")
    offset = bad.index(b"\xff") + 1
    text = complaint_of_line(file, GOOD.encode() + b"\n" + bad + b"\n", 2)
    assert f"byte {offset}, 0xFF, is not UTF-8" in text


def test_accented_latin_letters_are_not_taken_for_cyrillic(file):
    text = complaint(write(file, '{"prompt": "café à la carte, déjà vu", "response": "élève"}'.encode("latin-1")))
    assert "0xE9, is not UTF-8; rewrite the line" in text


def test_one_line_in_another_encoding_is_a_problem_of_that_line(file):
    text = complaint_of_line(file, GOOD.encode() + b"\n" + GOOD.encode("cp1251") + b"\n", 2)
    assert "looks like cp1251" in text


@pytest.mark.parametrize("content", [f"{GOOD}\r{GOOD}\r\n{GOOD}\n", f"{GOOD}\r\r\n{GOOD}\n"])
def test_a_lone_cr_is_reported(file, content):
    assert "a lone CR" in complaint_of_line(file, content, 1)


def test_a_file_of_lone_crs_only_is_refused(file):
    assert ":1: a lone CR" in complaint(write(file, f"{GOOD}\r{GOOD}\r"))


@pytest.mark.parametrize("end", range(1, len(GOOD.encode())))
def test_a_last_line_cut_anywhere_is_reported(file, end):
    content = GOOD.encode() + b"\n" + GOOD.encode()[:end]
    text = complaint_of_line(file, content, 2)
    assert "cut short" in text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("5", "number 5; expected an object"),
        ('"text"', "string 'text'; expected an object"),
        ("[1]", "array; expected an object"),
        ("null", "null; expected an object"),
        ('{"prompt": "a", "prompt": "b", "response": "c"}', 'the key "prompt" stands twice'),
        ('{"prompt": "a", "response": "b", "x": {"\\n": 1, "\\n": 2}}', 'the key "\\n" stands twice'),
        ('{"prompt": NaN, "response": "b"}', "NaN is not JSON"),
        ('{"prompt": "a", "response": "b", "x": -Infinity}', "-Infinity is not JSON"),
        ('{"prompt": "a", "response": "b", "x": ' + "9" * 10_000 + "}", "too many digits"),
        ('{"prompt": "a", "response": "b", "x": [1e999]}', "'1e999' is too large a number"),
        ('{"prompt": "a", "response": "b", "x": -' + "9" * 5000 + ".0}", "is too large a number"),
        ('{"prompt": "a", "response": "\\ufe0f"}', '"response" is empty'),
        ('{"prompt": "a" "response": "b"}', "not JSON at character 16"),
        ('{"prompt": "a\tb", "response": "b"}', "not JSON"),
        ("prompt,response", "not JSON at character 1"),
        ('{"prompt": "a", "response": null}', '"response" is null'),
        ('{"prompt": "a", "response": "\\ud800"}', "surrogate"),
        ('{"prompt": "a", "response": "\\u0000"}', "U+0000"),
        ('{"prompt": "a", "response": "\\u001b[31m"}', "U+001B"),
        ('{"prompt": "a", "response": "\U000f0001"}', "U+F0001"),
        ('{"prompt": "a", "response": " "}', "is empty"),
        ('{"prompt": "a"}', 'no key "response"'),
    ],
)
def test_a_bad_record_is_reported_with_its_line(file, line, said):
    assert said in complaint_of_line(file, f"{GOOD}\n{line}\n{GOOD}\n", 2)


def test_deep_nesting_is_a_problem_of_its_line(file):
    assert "nested too deep" in complaint_of_line(file, f'{GOOD}\n{{"a": {"[" * 100_000}\n{GOOD}', 2)


def test_an_escaped_surrogate_pair_is_one_character(file):
    assert read_pairs(write(file, '{"prompt": "a", "response": "\\ud83d\\ude00"}')).pairs[0].response == "😀"


def test_records_of_other_schemas_are_each_a_problem_of_their_line(file):
    alpaca = '{"instruction": "q", "input": "", "output": "a"}'
    chat = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}'
    data = read_pairs(write(file, "\n".join([alpaca, GOOD, chat])), skip_bad=True)
    assert [pair.line for pair in data.pairs] == [2]
    first, second = map(str, data.problems)
    assert first.startswith(f"{file}:1: ")
    assert first.endswith('rename "instruction" to "prompt"; rename "output" to "response"')
    assert second.startswith(f"{file}:3: ")
    assert "chat records are not read" in second
    with pytest.raises(BadRecords):
        read_pairs(file)


def test_lines_are_copied_byte_for_byte_but_for_marks_and_line_ends(file, tmp_path):
    lines = [
        b'{"prompt":"a",  "response": "\\u0431", "x": "\\ud800", "score": 1.50}',
        b'{"prompt": "c", "response": "d"}',
        GOOD.encode(),
    ]
    write(file, b"\xef\xbb\xbf" + lines[0] + b"\r\n\n" + lines[1] + b"\n\xef\xbb\xbf" + lines[2])
    kept = {pair.line for pair in read_pairs(file).pairs} - {3}
    copy_lines(file, tmp_path / "copy.jsonl", kept)
    assert (tmp_path / "copy.jsonl").read_bytes() == lines[0] + b"\n" + lines[2] + b"\n"


def test_all_problems_are_kept_and_the_first_twenty_shown(file):
    write(file, "\n".join([GOOD, *['{"prompt": "a"}'] * 25]))
    with pytest.raises(BadRecords) as caught:
        read_pairs(file)
    lines = str(caught.value).split("\n")
    assert lines[0] == f"{file}: records that can't be used: 25"
    assert [line.split(": ")[0] for line in lines[1:21]] == [f"{file}:{place}" for place in range(2, 22)]
    assert lines[21].startswith("… and 5 more")
    assert len(lines) == 22
    assert len(caught.value.problems) == 25
    assert str(copy.copy(caught.value)) == str(caught.value)


def test_a_file_of_bad_records_only_is_refused_even_when_they_may_be_skipped(file):
    write(file, '{"prompt": "a"}\n{"response": "b"}\n')
    with pytest.raises(BadRecords):
        read_pairs(file, skip_bad=True)
    assert len(scan(file).problems) == 2


def test_reading_stops_at_ten_thousand_problems(file):
    write(file, f"{GOOD}\n" + "{}\n" * 10_050)
    with pytest.raises(DataError, match=r":10001: 10000 bad records up to here"):
        read_pairs(file, skip_bad=True)


def test_kept_problems_do_not_hold_the_lines_they_are_about(file):
    for problem in scan(write(file, f"{GOOD}\n{{bad\n")).problems:
        assert problem.__context__ is None
        assert problem.__traceback__ is None


# Bounded memory


def test_a_line_of_exactly_the_limit_is_read(file):
    start = '{"prompt": "a", "response": "'
    text = "b" * (lines.MAX_LINE - len(start) - 2)
    data = read_pairs(write(file, f'{start}{text}"}}\n'))
    assert len(data.pairs[0].response) == len(text)
    assert "longer than" in complaint(write(file, f'{start}{text}b"}}\n'))


def test_a_fifty_megabyte_line_is_refused_in_bounded_memory(file):
    block = b"a" * (1 << 20)
    with file.open("wb") as opened:
        opened.write(GOOD.encode() + b'\n{"prompt": "')
        for _part in range(50):
            opened.write(block)
        opened.write(b'"}\n' + GOOD.encode() + b"\n")
    tracemalloc.start()
    try:
        data = scan(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * lines.MAX_LINE
    assert [pair.line for pair in data.pairs] == [1, 3]
    assert [problem.fields["line"] for problem in data.problems] == [2]
    assert "longer than 4194304 bytes" in str(data.problems[0])
    with file.open("rb") as opened:
        assert data.sha256 == hashlib.file_digest(opened, "sha256").hexdigest()
