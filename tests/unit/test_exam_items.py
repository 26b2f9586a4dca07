"""Test items: every mistake is an error with its file and line."""

import json

import pytest

from znatok.errors import DataError
from znatok.exam.claims import keeps_form
from znatok.exam.items import ChoiceItem, NumberClaim, OpenItem, PairItem, TermClaim, read_items
from znatok.files import sha256

NUMBER = {"kind": "number", "entity": "PLA", "property": "nozzle_temp", "lo": 180, "hi": 220, "unit": "°C"}
OPEN = {"id": "a", "question": "До скольких греть?", "claims": [NUMBER]}
CHOICE = {"id": "b", "question": "Что?", "options": ["раз", "два"], "answer": 1}
PAIR = {"id": "c", "question": "Что?", "true": "Это так.", "false": "Это не так."}


def formed(kind, value):
    """Return a question that asks for a form."""
    return {"id": "f", "question": "Скажи это!", "type": "format", "check": {"kind": kind, "value": value}}


def write(path, *records):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


def test_one_file_may_hold_all_kinds(tmp_path):
    items = read_items([write(tmp_path / "mine.jsonl", OPEN, CHOICE, PAIR)])
    (question,), (choice,), (pair,) = items.open, items.choices, items.pairs
    assert isinstance(question, OpenItem)
    assert question.claims == (NumberClaim("PLA", "nozzle_temp", 180, 220, "°C", 1.0),)
    assert (question.split, question.cluster, question.expects) == ("T1", "a", "answer")
    assert isinstance(choice, ChoiceItem)
    assert choice.answer == 1
    assert isinstance(pair, PairItem)
    assert set(items.sha256) == {"mine.jsonl"}
    assert items.unnamed == {str(tmp_path / "mine.jsonl"): 3}


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
        (
            {**OPEN, "claims": [{"kind": "any_of", "n": 1.5, "terms": ["a", "b"]}]},
            '"n" is number 1.5; expected a whole',
        ),
        ({**OPEN, "claims": [{"kind": "any_of", "terms": ["a||b"]}]}, "'a||b' has an empty alternative"),
        ({**OPEN, "claims": [{"kind": "any_of", "terms": ["a"], "from": 1}]}, 'unknown key "from"'),
        ({**OPEN, "claims": [{"kind": "term", "any": ["a"], "hint": 2}]}, 'unknown key "hint"'),
        ({**OPEN, "claims": [{**NUMBER, "tol": -5}]}, '"tol" is number -5; expected 0 or more'),
        ({**OPEN, "claims": [{**NUMBER, "hi": 10**400}]}, '"hi" is number 1'),
        ({**OPEN, "expects": "silence"}, '"expects"'),
        ({**OPEN, "type": "format"}, "go together"),
        (formed("rhyme", 1), '"check": expected an object with "value" and a "kind" of bullets, '),
        (formed("bullets", "3"), "\"value\" is string '3'; expected a whole number, 1 or more"),
        (formed("numbered", 0), '"value" is number 0; expected a whole number, 1 or more'),
        (formed("sentences", 2.0), '"value" is number 2.0; expected a whole number, 1 or more'),
        (formed("max_words", "ten"), "\"value\" is string 'ten'; expected a whole number, 1 or more"),
        (formed("max_words", True), '"value" is true; expected a whole number, 1 or more'),
        (formed("json_keys", 5), '"value" is number 5; expected an array'),
        (formed("json_keys", []), '"value": expected an array of strings that are not empty'),
        (formed("json_keys", ["город", 5]), '"value": expected an array of strings that are not empty'),
        (formed("yes_no", True), '"value" is true; expected text'),
        (formed("starts_with", 3), '"value" is number 3; expected text'),
        (formed("starts_with", " "), "\"value\" is string ' '; expected text"),
        (formed("language", "de"), "\"value\" is string 'de'; expected one of en, ru"),
        (formed("no_digits", False), '"value" is false; expected true'),
        (formed("uppercase", "yes"), "\"value\" is string 'yes'; expected true"),
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


@pytest.mark.parametrize(
    ("kind", "value", "kept", "broken"),
    [
        ("bullets", 2, "- раз\n- два", "- раз"),
        ("numbered", 1, "1. раз", "раз"),
        ("sentences", 1, "Раз.", "Раз. Два."),
        ("json_keys", ["б", "а"], '{"а": 1, "б": 2}', '{"а": 1}'),
        ("yes_no", "да", "Да.", "Нет."),
        ("no_digits", True, "раз", "1"),
        ("uppercase", True, "РАЗ", "раз"),
        ("max_words", 1, "раз", "раз два"),
        ("starts_with", "раз", "Раз, два", "Два"),
        ("language", "ru", "раз", "one"),
    ],
)
def test_every_check_that_is_read_can_be_scored(tmp_path, kind, value, kept, broken):
    """A value of another type was refused by the scorer only, once everything had been generated, or never kept."""
    (item,) = read_items([write(tmp_path / "x.jsonl", formed(kind, value))]).open
    assert keeps_form(item.check, kept)
    assert not keeps_form(item.check, broken)


def test_other_files_are_refused(tmp_path):
    cp1251 = '{"id": "a", "question": "До скольких греть сопло?"}\n'.encode("cp1251")
    for raw, why in (
        (b"{", ":1: cut short at character 2"),
        (b"5\n", ":1: number 5; expected an object"),
        (b'{"id": "a", "id": "b"}\n', ':1: the key "id" stands twice'),
        (b'{"id": NaN}\n', ":1: NaN is not JSON"),
        (b"\xff\xfe", "utf-16"),
        (cp1251, "iconv -f cp1251"),
        (b"", "no test items"),
    ):
        (tmp_path / "x.jsonl").write_bytes(raw)
        with pytest.raises(DataError, match=why):
            read_items([tmp_path / "x.jsonl"])
    with pytest.raises(DataError, match=r"x\.jsonl"):
        read_items([tmp_path / "no" / "x.jsonl"])


def test_two_files_of_one_name_are_both_in_the_record(tmp_path):
    places = [tmp_path / "one" / "mine.jsonl", tmp_path / "two" / "mine.jsonl"]
    for place in places:
        place.parent.mkdir()
    items = read_items([write(places[0], OPEN), write(places[1], CHOICE)])
    assert items.sha256 == {"mine.jsonl": sha256(places[0]), str(places[1]): sha256(places[1])}


def test_an_id_stands_once_in_all_files(tmp_path):
    one, other = write(tmp_path / "one.jsonl", OPEN), write(tmp_path / "other.jsonl", CHOICE, OPEN)
    with pytest.raises(DataError, match=r"other.jsonl:2: id .a. stands in .*one.jsonl:1"):
        read_items([one, other])


def test_a_limit_takes_the_first_of_each_split_and_kind(tmp_path):
    many = [{**OPEN, "id": f"{split}{i}", "split": split} for split in ("T1", "T2") for i in range(4)]
    items = read_items([write(tmp_path / "x.jsonl", *many, CHOICE)]).limited(2)
    assert [item.id for item in items.open] == ["T10", "T11", "T20", "T21"]
    assert len(items.choices) == 1
