"""``znatok data``: what its verbs write, say and return for files as users have them."""

import json
from pathlib import Path

import pytest

import tiny
from znatok.cli import main
from znatok.verbs.data import questions_of

ANSWER = "Сопло для PLA нагревают до двухсот градусов, а стол — до шестидесяти, и закрывают корпус."
ODD = [
    '{"prompt": "Что такое PLA?",   "response": "Пластик.", "x": "\\ud800"}',
    '{"prompt": "Чем моют смолу?", "response": "Спиртом.", "score": 1.50}',
    '{"prompt": "Что такое мост?", "response": "Участок над \\u043f\\u0443стотой."}',
]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name, *rows):
    Path(name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return name


def row(prompt, response="Да.", **more):
    return {"prompt": prompt, "response": response, **more}


@pytest.fixture
def odd():
    """Return a file that the reader accepts: marks, CRLF, half a character under an unknown key, no last line feed."""
    Path("odd.jsonl").write_bytes(f"\ufeff{ODD[0]}\r\n\n\ufeff{ODD[1]}\n{ODD[2]}".encode())
    return "odd.jsonl"


def test_a_split_passes_on_the_records_as_they_stand(odd):
    assert main(["data", "split", odd, "--share", "0.4", "--out", "train.jsonl", "test.jsonl"]) == 0
    parts = [Path(name).read_text(encoding="utf-8").splitlines() for name in ("train.jsonl", "test.jsonl")]
    assert [len(part) for part in parts] == [2, 1]
    assert sorted(parts[0] + parts[1]) == sorted(ODD)


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_too_few_to_split_is_not_split_into_something_and_nothing(count, capsys):
    write("few.jsonl", *[row(question, answer) for question, answer in tiny.PAIRS[:count]])
    assert main(["data", "split", "few.jsonl", "--out", "train.jsonl", "test.jsonl"]) == 3
    assert "few.jsonl: can't be split: validation is off: " in capsys.readouterr().err
    assert not Path("train.jsonl").exists()


def test_repeated_questions_are_left_out_and_everything_else_stays_as_it_stands(odd, capsys):
    more = [
        json.dumps(row("ЧТО ТАКОЕ  PLA?", "Полилактид."), ensure_ascii=False),  # the question again
        json.dumps(row("Как греть?", ANSWER), ensure_ascii=False),
        json.dumps(row("Чем греть?", ANSWER), ensure_ascii=False),  # the answer again, to another question
        json.dumps(row("Как греть?", ANSWER), ensure_ascii=False),  # both again
    ]
    with Path(odd).open("a", encoding="utf-8") as file:
        file.write("\n" + "\n".join(more))
    assert main(["data", "dedupe", odd, "--out", "clean.jsonl", "--json"]) == 0
    said = capsys.readouterr()
    assert Path("clean.jsonl").read_text(encoding="utf-8").splitlines() == [*ODD, more[1], more[2]]
    left_out = json.loads(said.out)["left_out"]
    assert [(one["first"], one["second"], one["part"]) for one in left_out] == [(1, 5, "prompt"), (6, 8, "both")]
    assert "line 5 left out: its question repeats line 1, similarity 1.00" in said.err


@pytest.mark.parametrize("verb", ["check", "leaks"])
@pytest.mark.parametrize(
    ("test", "code"),
    [
        (row("что такое сопло?", "Деталь принтера."), 3),
        (row("Чем греют?", ANSWER.upper()), 3),
        (row("Зачем кайма?", "Держит углы."), 0),
    ],
)
def test_a_test_that_the_data_give_away_is_the_exit_code_of_bad_data(verb, test, code, capsys):
    data = write("data.jsonl", row("Что такое сопло?"), row("Как греть?", ANSWER))
    assert main(["data", verb, data, "--against", write("test.jsonl", test)]) == code
    assert ("similarity 1.00" in capsys.readouterr().out) == (code == 3)


def test_shared_facts_are_leaks_where_they_are_asked_for(capsys):
    data = write("data.jsonl", row("Что такое сопло?", fact_ids=["nozzle"]))
    test = write("test.jsonl", row("Зачем кайма?", fact_ids=["nozzle"]))
    assert main(["data", "leaks", data, "--against", test]) == 0
    assert "nothing of the tests stands in data.jsonl" in capsys.readouterr().out
    assert main(["data", "leaks", data, "--against", test, "--facts"]) == 3
    assert "test.jsonl:1 stands in line 1: facts" in capsys.readouterr().out


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["", "\n"])
def test_tests_may_be_pairs_or_items_with_or_without_a_mark_and_a_last_line_feed(mark, end):
    Path("pairs.jsonl").write_text(f'{mark}\n{{"prompt": "Почему?", "response": "Да."}}{end}', encoding="utf-8")
    item = '{"id": "i", "topic": "t", "question": "Зачем?", "options": ["а", "б"], "answer": 0}'
    Path("items.jsonl").write_text(mark + item + end, encoding="utf-8")
    assert [test.prompt for test in questions_of(Path("pairs.jsonl"))] == ["Почему?"]
    assert [test.prompt for test in questions_of(Path("items.jsonl"))] == ["Зачем?"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"prompt": "Что такое сопло?", "response": "Деталь."}'.encode("cp1251"), "in cp1251; expected UTF-8"),
        (b"\xff\xfe{\x00", "in utf-16; expected UTF-8"),
        (b"\x1f\x8b\x08", "compressed"),
        (b'{"instruction": "q", "output": "a"}\n', 'rename "instruction" to "prompt"'),
        (b'{"prompt": "q"', "cut short"),
        (b"q,a\n", "not JSON Lines"),
        (b"[" * 100_000, "one JSON array"),
        (b"", "no records"),
    ],
)
def test_a_test_file_that_can_not_be_read_is_one_line(content, said, capsys):
    Path("test.jsonl").write_bytes(content)
    data = write("data.jsonl", row("Что такое сопло?"))
    assert main(["data", "leaks", data, "--against", "test.jsonl"]) == 3
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["с пробелом и ё.jsonl", "😀 'q'.jsonl", "a\nb.jsonl", "./-n.jsonl"])
def test_a_file_may_have_any_name_on_the_command_line(name, capsys):
    folder = Path("мои данные")
    folder.mkdir()
    tiny.write_pairs(Path(name))
    parts = [str(folder / "для обучения.jsonl"), str(folder / "проверка\n.jsonl")]
    assert main(["data", "check", name, "--against", name]) == 3  # it gives itself away
    assert main(["data", "split", name, "--share", "0.2", "--out", *parts]) == 0
    assert main(["data", "dedupe", parts[0], "--out", f"{name}.clean"]) == 0
    assert main(["data", "leaks", f"--against={parts[1]}", "--", name]) == 3
    assert main(["data", "leaks", parts[0], "--against", parts[1]]) == 0
    said = capsys.readouterr()
    assert "проверка\n" not in said.err + said.out
    assert main(["data", "split", name, "--out", parts[0], name]) == 2
    assert capsys.readouterr().err.count("\n") == 1
