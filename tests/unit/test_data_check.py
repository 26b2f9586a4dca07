import json

import pytest

from znatok.data.check import check_file
from znatok.errors import DataError
from znatok.files import write_jsonl

ANSWER = "Для пластика PLA сопло нагревают до двухсот градусов, а стол — до шестидесяти."


@pytest.fixture
def file(tmp_path):
    rows = [
        {
            "prompt": f"{place} сопел?",
            "response": "Ответ" * place,
            "topic": "odd" if place % 3 else "сопло",
            "fact_ids": [str(place)],
        }
        for place in range(1, 8)
    ]
    rows += [{"prompt": "Как греть?", "response": ANSWER}, {"prompt": "КАК ГРЕТЬ?", "response": ANSWER.upper()}]
    rows += [
        {"prompt": "", "response": "a"},
        {"prompt": "Где сoпло?", "response": "a\u00a0<|im_end|>", "topic": "t\n\u202e"},
    ]
    write_jsonl(tmp_path / "data.jsonl", rows)
    return tmp_path / "data.jsonl"


def test_a_report_counts_everything(file):
    report = check_file(file)
    assert report.pairs == 10
    assert [problem.fields["line"] for problem in report.problems] == [10]
    assert [(copy.first, copy.second, copy.part) for copy in report.duplicates] == [(8, 9, "both")]
    assert {finding.kind for finding in report.findings} == {"mixed_script", "no_break_space", "control_token"}
    assert report.topics == (("odd", 5), ("", 2), ("сопло", 2), ("t\n\u202e", 1))
    assert report.answers.smallest == 5
    assert report.answers.largest == len(ANSWER)
    assert sum(count for _low, _high, count in report.answers.bins) == 10


def test_bins_cover_every_length_without_gaps(file):
    lengths = check_file(file).prompts
    assert lengths.bins[0][0] <= lengths.smallest
    assert lengths.bins[-1][1] > lengths.largest
    assert all(low[1] == high[0] for low, high in zip(lengths.bins, lengths.bins[1:], strict=False))
    assert len(lengths.bins) <= 12


def test_the_report_for_people_is_printable_lines_with_bars(file):
    lines = check_file(file).lines()
    assert all(line.isprintable() for line in lines)
    text = "\n".join(lines)
    assert "pairs 10, bad records 1, duplicates 1" in lines[0]
    assert f"{file}:10: " in text
    assert "lines 8 and 9: same question and answer, similarity 1.00" in text
    assert "words that mix look-alike" in text
    assert " odd 5 ########################################" in text
    assert "'t\\n\\u202e' 1 ########" in text
    assert "answers, characters: shortest 5, median" in text


def test_the_report_for_programs_is_json(file):
    value = json.loads(json.dumps(check_file(file).to_json(), allow_nan=False))
    assert value["pairs"] == 10
    assert value["problems"][0]["line"] == 10
    assert value["topics"]["сопло"] == 2
    assert value["duplicates"] == [{"first": 8, "second": 9, "part": "both", "similarity": 1.0}]


def test_a_test_file_is_checked_for_leaks(file, tmp_path):
    rows = [
        {"prompt": "как греть?", "response": "Сильно."},
        {"prompt": "Новое", "response": "да", "fact_ids": ["3", "9"]},
    ]
    write_jsonl(tmp_path / "test.jsonl", rows)
    report = check_file(file, against=tmp_path / "test.jsonl")
    assert [(leak.train, leak.test, leak.part) for leak in report.leaks] == [(8, 1, "prompt"), (3, 2, "facts")]
    assert "line 2 of the test file is given away by line 3: same facts, '3', similarity 1.00" in report.lines()


def test_bad_records_of_the_test_file_are_told(file, tmp_path):
    (tmp_path / "test.jsonl").write_text('{"prompt": "Новое", "response": "да"}\n{"prompt": "a"}\n', encoding="utf-8")
    notes = check_file(file, against=tmp_path / "test.jsonl").notes
    assert [note for note in notes if note.startswith(f"{tmp_path}/test.jsonl:2: no key")]


def test_answers_in_another_script_than_most_are_counted_with_their_lines(tmp_path):
    russian = [{"prompt": f"Вопрос {n}: PLA?", "response": f"Да, PLA и PETG греют до {n} градусов."} for n in range(8)]
    others = [{"prompt": "Как греть?", "response": "Heat the nozzle."}, {"prompt": "Сколько?", "response": "20–30"}]
    write_jsonl(tmp_path / "data.jsonl", [*russian[:3], *others, *russian[3:]])
    report = check_file(tmp_path / "data.jsonl")
    assert "answers in another script than most: 1 of 10, 10 %; lines 4" in report.lines()
    assert report.to_json()["other_script"] == [4]
    write_jsonl(tmp_path / "data.jsonl", russian)
    assert not any("another script" in line for line in check_file(tmp_path / "data.jsonl").lines())


def test_a_file_of_bad_records_only_is_still_reported(tmp_path):
    write_jsonl(tmp_path / "data.jsonl", [{"prompt": "a"}] * 30)
    report = check_file(tmp_path / "data.jsonl")
    assert (report.pairs, len(report.problems), report.answers) == (0, 30, None)
    assert len(report.lines()) == 31
    assert report.to_json()["answers"] is None


def test_pairs_without_topics_have_no_topic_table(tmp_path):
    write_jsonl(tmp_path / "data.jsonl", [{"prompt": "q", "response": "a"}])
    lines = check_file(tmp_path / "data.jsonl").lines()
    assert not any("topic" in line for line in lines[1:])
    assert lines[-1] == f"  1-1 1 {'#' * 40}"


def test_many_findings_of_a_kind_are_one_line(tmp_path):
    write_jsonl(
        tmp_path / "data.jsonl", [{"prompt": f"{'слой' * place}\u00a0мм", "response": "a"} for place in range(1, 12)]
    )
    (line,) = [line for line in check_file(tmp_path / "data.jsonl").lines() if "no-break" in line]
    assert line == "no-break spaces: 11; first 'слой\\xa0мм'; lines 1, 2, 3, 4, 5, 6, 7, 8, …"


def test_a_file_that_is_none_raises(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        check_file(tmp_path / "data.jsonl")
