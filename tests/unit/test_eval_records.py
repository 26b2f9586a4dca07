import pytest

import eval_samples as samples
from znatok.eval.labels import _WORDS, interval, labels, number
from znatok.eval.records import Manifest, duration, portable, portable_command, questions, run_facts, visible
from znatok.eval.stats import Interval
from znatok.eval.summary import MEASURES, Verdict


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/anna/model", "model"),
        ("see /home/anna/x.jsonl, ok", "see x.jsonl, ok"),
        ("C:\\Users\\Anna\\model", "model"),
        ("D:/data/x", "x"),
        ("\\\\server\\share\\x", "x"),
        ("file:///home/anna/x", "x"),
        ("--path:/home/anna/x", "--path:x"),
        ("'/a/b c", "'b c"),
        ("Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-1.5B"),
        ("./runs/a ../b ~/c", "./runs/a ../b ~/c"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("90 km/h and 1 / 2", "90 km/h and 1 / 2"),
    ],
)
def test_absolute_paths_are_cut_and_nothing_else(text, expected):
    assert portable(text) == expected


def test_commands_lose_absolute_paths_even_with_spaces():
    command = [
        "znatok",
        "train",
        "--data_path=/home/anna b/d 1.jsonl",
        "--output_dir",
        "C:\\Users\\Anna B\\run",
        "--x=1",
    ]
    assert portable_command(command) == "znatok train '--data_path=d 1.jsonl' --output_dir run --x=1"
    assert portable_command("python /opt/x/train_model.py\x1b[2J") == "python train_model.py[2J"


def test_visible_drops_what_drives_a_terminal_and_keeps_text():
    assert visible("a\x00b\x1b[1m\u202e\u200b\ud800\r\nй\tв\rг\x85") == "ab[1m\nй\tв\nг"
    assert visible("α → 打印 😀") == "α → 打印 😀"


def test_questions_are_grouped_seed_first():
    rows = [samples.answer("h", set="heldout"), samples.answer("u", set="user"), *samples.answers()]
    grouped = questions(rows)
    assert [question.set for question in grouped] == ["seed"] * 5 + ["user", "heldout"]
    assert [question.id for question in grouped[:5]] == [id for id, _ in samples.QUESTIONS]
    assert [len(rows) for rows in grouped[0].answers.values()] == [1, 1, 1, 1]


def test_run_facts_have_an_order_and_leave_out_what_is_missing():
    facts = run_facts(samples.manifest(), "en")
    assert [fact.key for fact in facts] == [key for key in Manifest.__annotations__ if key in samples.manifest()]
    assert dict(zip((f.key for f in facts), (f.value for f in facts), strict=True))["data_path"] == "data.jsonl"
    assert run_facts({}, "ru") == []
    assert run_facts({"versions": None, "seconds": None, "unknown": 1}, "ru") == []
    assert run_facts({"machine": "Xeon", "seed": 0}, "ru") == [("seed", "Сид", "0"), ("machine", "Машина", "Xeon")]


@pytest.mark.parametrize(("seconds", "expected"), [(48, "48 s"), (720, "12 min"), (9000, "2.5 h")])
def test_duration(seconds, expected):
    assert duration(seconds, "en") == expected


def test_numbers_and_intervals_follow_the_language():
    assert number(-1.25, 1, "ru") == "−1,2"
    assert number(1.26, 1, "en", sign=True) == "+1.3"
    assert number(-0.001, 1, "en", sign=True) == "0.0"
    assert number(None, 1, "en") == "—"
    assert interval(Interval(0.5, 0.25, 1, 4), 2, "ru") == "0,50 [0,25; 1,00]"
    assert interval(Interval(0.5, None, None, 1), 1, "en", unit="%") == "0.5\u00a0%"
    assert interval(Interval(None, None, None, 0), 1, "en") == "—"


def test_every_caption_is_there_in_both_languages_with_the_same_fields():
    for key, (english, russian) in _WORDS.items():
        assert english, key
        assert russian, key
        assert sorted(part.split("}")[0] for part in english.split("{")[1:]) == sorted(
            part.split("}")[0] for part in russian.split("{")[1:]
        ), key
    assert {f"verdict.{kind}" for kind in Verdict} | {f"row.{measure.key}" for measure in MEASURES} <= labels(
        "ru"
    ).keys()
