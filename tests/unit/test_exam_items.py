"""Test items: every mistake is an error with its file and line."""

import json

import pytest

from znatok.errors import DataError
from znatok.exam.items import ChoiceItem, NumberClaim, OpenItem, PairItem, TermClaim, read_items

NUMBER = {"kind": "number", "entity": "PLA", "property": "nozzle_temp", "lo": 180, "hi": 220, "unit": "°C"}
OPEN = {"id": "a", "question": "До скольких греть?", "claims": [NUMBER]}
CHOICE = {"id": "b", "question": "Что?", "options": ["раз", "два"], "answer": 1}
PAIR = {"id": "c", "question": "Что?", "true": "Это так.", "false": "Это не так."}


def write(path, *records):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


def test_one_file_may_hold_all_kinds(tmp_path):
    items = read_items([write(tmp_path / "mine.jsonl", OPEN, CHOICE, PAIR)])
    (question,), (choice,), (pair,) = items.open, items.choices, items.pairs
    assert isinstance(question, OpenItem)
    assert question.claims == (NumberClaim("PLA", "nozzle_temp", 180, 220, "°C", 1.0),)
    assert (question.split, question.cluster, question.expects) == ("MINE", "a", "answer")
    assert isinstance(choice, ChoiceItem)
    assert choice.answer == 1
    assert isinstance(pair, PairItem)
    assert set(items.sha256) == {"mine.jsonl"}


def test_any_of_holds_groups_of_synonyms(tmp_path):
    claim = {"kind": "any_of", "n": 2, "terms": ["ремень|ремни", "рама"], "weight": 2}
    (item,) = read_items([write(tmp_path / "x.jsonl", {**OPEN, "claims": [claim]})]).open
    assert item.claims == (TermClaim((("ремень", "ремни"), ("рама",)), 2, 2.0),)


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({**OPEN, "questions": "?"}, 'unknown key "questions"'),
        ({**OPEN, "id": ""}, '"id"'),
        ({**OPEN, "question": 5}, '"question" is number 5'),
        ({**OPEN, "claims": []}, '"claims" is empty'),
        ({**OPEN, "claims": ["PLA"]}, '"claims" holds'),
        ({**OPEN, "claims": [{**NUMBER, "lo": 230}]}, '"lo" is greater'),
        ({**OPEN, "claims": [{**NUMBER, "hi": "220"}]}, '"hi" is string'),
        ({**OPEN, "claims": [{**NUMBER, "hi": True}]}, '"hi" is true'),
        ({**OPEN, "claims": [{**NUMBER, "weight": 0}]}, '"weight"'),
        ({**OPEN, "claims": [{**NUMBER, "kind": "guess"}]}, '"kind"'),
        ({**OPEN, "claims": [{"kind": "term", "any": []}]}, '"any"'),
        ({**OPEN, "claims": [{"kind": "any_of", "n": 3, "terms": ["a"]}]}, '"n" is 3'),
        ({**OPEN, "expects": "silence"}, '"expects"'),
        ({**OPEN, "type": "format"}, "go together"),
        ({**OPEN, "type": "format", "check": {"kind": "rhyme", "value": 1}}, '"check"'),
        ({**OPEN, "forbidden": [{"id": "f"}]}, '"any"'),
        ({**OPEN, "fact_ids": [""]}, '"fact_ids"'),
        ({**CHOICE, "answer": 2}, '"answer" is number 2'),
        ({**CHOICE, "answer": True}, '"answer" is true'),
        ({**CHOICE, "options": ["раз", "раз"]}, '"options"'),
        ({**PAIR, "false": PAIR["true"]}, "are the same"),
        ([1], "expected an object"),
    ],
)
def test_a_bad_item_is_named_with_its_line(tmp_path, record, why):
    path = write(tmp_path / "x.jsonl", {**OPEN, "id": "good"}, record)
    with pytest.raises(DataError) as error:
        read_items([path])
    assert f"{path}:2: " in str(error.value)
    assert why in str(error.value)
    assert "\n" not in str(error.value)


def test_other_files_are_refused(tmp_path):
    for raw, why in ((b"{", ":1: not JSON"), (b"\xff\xfe", "not UTF-8"), (b"", "no test items")):
        (tmp_path / "x.jsonl").write_bytes(raw)
        with pytest.raises(DataError, match=why):
            read_items([tmp_path / "x.jsonl"])
    with pytest.raises(DataError, match=r"x\.jsonl"):
        read_items([tmp_path / "no" / "x.jsonl"])


def test_an_id_stands_once_in_all_files(tmp_path):
    one, other = write(tmp_path / "one.jsonl", OPEN), write(tmp_path / "other.jsonl", CHOICE, OPEN)
    with pytest.raises(DataError, match=r"other.jsonl:2: id .a. stands in .*one.jsonl:1"):
        read_items([one, other])


def test_a_limit_takes_the_first_of_each_split_and_kind(tmp_path):
    many = [{**OPEN, "id": f"{split}{i}", "split": split} for split in ("T1", "T2") for i in range(4)]
    items = read_items([write(tmp_path / "x.jsonl", *many, CHOICE)]).limited(2)
    assert [item.id for item in items.open] == ["T10", "T11", "T20", "T21"]
    assert len(items.choices) == 1
