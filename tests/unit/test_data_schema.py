import copy
import json
from pathlib import Path

import pytest

from znatok.data.schema import Pair, parse_record, quoted, shown, shown_path, unknown_keys
from znatok.errors import DataError

FILE = Path("data.jsonl")


def record(**changes):
    return {"prompt": "Что такое PLA?", "response": "Это пластик.", **changes}


def complaint(value):
    with pytest.raises(DataError) as caught:
        parse_record(value, FILE, 7)
    text = str(caught.value)
    assert text.startswith("data.jsonl:7: ")
    assert "\n" not in text
    assert text.isprintable()
    assert caught.value.fields["line"] == 7
    return text


def test_a_record_becomes_a_pair_with_its_line_and_extra_keys():
    value = record(
        topic="materials",
        fact_ids=["mat-001", "mat-002", "mat-001"],
        source="wiki",
        id=5,
        calc=["1 = 1"],
        kind="direct",
    )
    assert parse_record(value, FILE, 3) == Pair(
        "Что такое PLA?", "Это пластик.", "materials", ("mat-001", "mat-002"), 3, "wiki", "direct"
    )


def test_only_the_ends_and_the_line_ends_of_a_text_are_normalised():
    pair = parse_record(record(prompt="  a\u00a0 b\r\nc\td \n", response="\n\n  é e\u0301 «ё»"), FILE, 1)
    assert pair.prompt == "a\u00a0 b\nc\td"
    assert pair.response == "é e\u0301 «ё»"


@pytest.mark.parametrize(
    ("value", "found"),
    [(5, "number 5"), ("text", "string 'text'"), ([], "array"), (None, "null"), (True, "true"), (1.5, "number 1.5")],
)
def test_a_record_that_is_no_object_is_described(value, found):
    assert f": {found}; expected an object" in complaint(value)


def test_a_missing_key_is_named_with_the_keys_found_and_the_likely_one():
    text = complaint({"instruction": "q", "output": "a"})
    assert 'no key "prompt", "response"' in text
    assert 'found "instruction", "output"' in text
    assert 'rename "instruction" to "prompt"' in text
    assert 'rename "output" to "response"' in text


@pytest.mark.parametrize("key", ["Response", "rresponse", "ANSWER"])
def test_other_case_and_typos_of_a_key_are_recognised(key):
    text = complaint({"prompt": "q", key: "a"})
    assert f'no key "response"; expected "prompt" and "response", found "prompt", "{key}"' in text
    assert text.endswith(f'; rename "{key}" to "response"')


def test_nothing_is_suggested_where_nothing_is_alike():
    assert complaint({"prompt": "q", "zzz": "a"}).endswith('found "prompt", "zzz"')
    assert complaint({}).endswith("found {}")


def test_chat_records_are_told_apart():
    assert "chat records are not read" in complaint({"messages": [{"role": "user", "content": "q"}]})


@pytest.mark.parametrize("key", ["prompt", "response", "topic", "source", "kind"])
@pytest.mark.parametrize("value", [None, 5, ["a"], {"a": 1}, False])
def test_a_value_of_the_wrong_type_is_named_with_its_type(key, value):
    text = complaint(record(**{key: value}))
    assert f'"{key}" is ' in text
    assert "expected a string" in text


@pytest.mark.parametrize("value", [None, "mat-001", [1], [""], ["a", None], {"a": 1}, ["  "]])
def test_fact_ids_are_an_array_of_filled_strings(value):
    assert '"fact_ids"' in complaint(record(fact_ids=value))


@pytest.mark.parametrize(
    "text",
    [
        *("", "   ", "\n\t\n", "\u00a0", "\u200b \u200b", "\ufeff", "\u200b\n\u200b", "\ufe0f", "\u0301", "\u034f"),
        *("\u3164", "\u115f\u1160", "\uffa0", "\u2800 \u2800", "\U000e0041"),
    ],
)
@pytest.mark.parametrize("key", ["prompt", "response"])
def test_a_text_without_a_visible_character_is_empty(key, text):
    assert f'"{key}" is empty' in complaint(record(**{key: text}))


@pytest.mark.parametrize(
    ("char", "said"),
    [
        ("\x00", "control character U+0000"),
        ("\x1b", "control character U+001B"),
        ("\x0c", "control character U+000C"),
        ("\x7f", "control character U+007F"),
        ("\x85", "control character U+0085"),
        ("\x9b", "control character U+009B"),
        ("\r", "control character U+000D"),
        ("\x1f", "control character U+001F"),
        ("\ud800", "U+D800"),
        ("\udfff", "half of a surrogate pair"),
        ("\U000f0000", "private-use character U+F0000"),
        ("\U0010fffd", "private-use character U+10FFFD"),
    ],
)
def test_characters_that_no_text_needs_are_refused_with_their_place(char, said):
    text = complaint(record(response=f"ab{char}c"))
    assert said in text
    assert '3 of "response"' in text
    assert said in complaint(record(prompt=char + "a"))  # stripping the ends must not hide it
    assert said in complaint(record(fact_ids=["ab" + char]))


@pytest.mark.parametrize("text", ["❤\ufe0f", "?", "—", "😀", "1", "é", "e\u0301", "\u2801", "ᄀ", "和", "°"])
def test_a_single_visible_character_is_an_answer(text):
    assert parse_record(record(response=text), FILE, 1).response == text


def test_tab_line_feed_emoji_and_bmp_symbols_are_allowed():
    text = "a\tb\nc 👨‍👩‍👧 ° ½ \ue000"
    assert parse_record(record(response=text), FILE, 1).response == text


def test_unknown_keys_are_those_outside_the_schema():
    assert unknown_keys(record(topic="", fact_ids=[], source="", id=1, calc=[], lang="ru")) == {"lang"}
    assert unknown_keys([1]) == set()


def test_an_error_survives_copying():
    with pytest.raises(DataError) as caught:
        parse_record(record(prompt=None), FILE, 2)
    assert str(copy.copy(caught.value)) == str(caught.value)


@pytest.mark.parametrize("text", ["short", "\x1b[31m" * 20, "ю" * 100, "a" * 39 + "\n", json.dumps("\u202e")])
def test_quoted_values_are_short_and_printable(text):
    assert shown(text).isprintable()
    assert len(shown(text)) <= 42


def test_lists_of_names_are_cut_and_escaped():
    assert quoted(["a", "b\n"]) == '"a", "b\\n"'
    assert quoted("abcdefghij").endswith('"h", …')
    assert shown_path(Path("папка/файл 😀.jsonl")) == "папка/файл 😀.jsonl"
    assert shown_path(Path("a\nb")) == "'a\\nb'"
