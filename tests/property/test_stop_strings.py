"""Stop strings: the answer ends exactly before the first of them, whatever the pieces it arrives in."""

from functools import cache
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tiny
from znatok.generate.engine import Speech, Stop
from znatok.generate.text import StopCutter
from znatok.tokens.chat import ChatFormat

few = settings(max_examples=150, deadline=None)
letters = st.text(alphabet="abё🦔", max_size=30)  # so few that stop strings begin, fail, and overlap
stop_strings = st.lists(st.text(alphabet="abё🦔", min_size=1, max_size=4), max_size=4)
END = 2


@cache
def chat():
    return ChatFormat("chatml", "", tiny.tiny_tokenizer(), END)


@cache
def byte_names():
    """Return the tokens of the 256 bytes, spelled as GPT-2 spells them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def cut(text, stops):
    """Return what is said of a text, letter by letter: the plainest way to say when it ends."""
    for end in range(1, len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, found))], True
    return text, False


def pieces(text, places):
    """Return the text broken at these places."""
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in pairwise(edges)]


def fed(stops, parts):
    """Return what a cutter lets through of each part, what it says at last, and the cutter."""
    cutter = StopCutter(stops)
    return [cutter.add(part) for part in parts], cutter.flush(), cutter


@given(letters, stop_strings, st.lists(st.integers(min_value=0, max_value=30), max_size=8))
@example("abcd", ["abcd", "bc"], [])  # one inside another
@example("abcd", ["abcd", "bc"], [1, 2, 3])
@example("aab", ["ab"], [1])  # a false beginning, and a true one in it
@example("ab", ["ab"], [1])  # at the very end
@example("ab", ["abё"], [1])  # only ever begun
@few
def test_a_text_ends_before_the_first_stop_string_in_whatever_pieces_it_comes(text, stops, places):
    told, last, cutter = fed(stops, pieces(text, places))
    assert ("".join(told) + last, cutter.found) == cut(text, stops)


@given(letters, stop_strings, st.lists(st.integers(min_value=0, max_value=30), max_size=8), letters)
@few
def test_nothing_is_let_through_that_a_later_letter_makes_a_part_of_a_stop_string(text, stops, places, more):
    told, _last, _cutter = fed(stops, pieces(text, places))
    assert cut(text + more, stops)[0].startswith("".join(told))


@given(letters, stop_strings)
@few
def test_no_more_is_held_back_than_may_become_a_stop_string(text, stops):
    told, last, cutter = fed(stops, list(text))
    assert last == "" or (not cutter.found and any(stop.startswith(last) for stop in stops))
    if not stops:
        assert "".join(told) == text


def test_after_the_end_nothing_is_said():
    cutter = StopCutter(["стоп"])
    assert [cutter.add(part) for part in ("да с", "то", "п и ещё", "стоп", "нет")] == ["да ", "", "", "", ""]
    assert (cutter.flush(), cutter.found) == ("", True)


# Tokens


def byte_tokens(text):
    """Spell a text byte by byte, so that every Cyrillic letter and emoji is split over tokens."""
    return chat().tokenizer.convert_tokens_to_ids([byte_names()[byte] for byte in text.encode()])


def spoken(ids, stops, last=Stop.LENGTH):
    """Return the pieces an answer of these tokens is told in, and the speech."""
    speech, told = Speech(chat(), stops), []
    for place, token in enumerate(ids, 1):
        told.append(speech.take(token, last if place == len(ids) else None))
        if speech.stop is not None:
            break
    return told, speech


@pytest.mark.parametrize(
    ("text", "stops", "said"),
    [
        ("Ёж 🦔 и уж", ["🦔"], "Ёж"),
        ("Ёж 🦔 и уж", ["🦔 и", "ж 🦔"], "Ё"),
        ("Ёж 🦔 и уж", ["🦊", "уж"], "Ёж 🦔 и"),  # the fox begins with the hedgehog's bytes
        ("Ёж 🦔 и уж", ["ужин"], "Ёж 🦔 и уж"),
        ("Ёж\n\nUser: ", ["\nUser:", "\n\n"], "Ёж"),
        ("стоп", ["стоп"], ""),
    ],
)
@pytest.mark.parametrize("split", [True, False])
def test_a_stop_string_may_be_split_over_tokens_within_a_letter(text, stops, said, split):
    told, speech = spoken(byte_tokens(text) if split else chat().text_ids(text), stops)
    assert "".join(told) == speech.text == said
    assert speech.stop is (Stop.WORDS if any(stop in text for stop in stops) else Stop.LENGTH)
    assert not any("�" in part for part in told)


def test_half_a_letter_at_the_length_limit_is_dropped_and_what_was_held_back_is_said():
    _told, speech = spoken(byte_tokens("Ёж🦔")[:-2], ["ж🦔"])
    assert (speech.text, speech.stop) == ("Ёж", Stop.LENGTH)


def test_a_false_beginning_is_said_once_the_answer_is_over():
    ids = [*byte_tokens("Ну стой"), END]
    told, speech = spoken(ids, ["стойка"], Stop.END)
    assert told[-1] == " стой"  # the space before it was held back too: it might have been the answer's end
    assert (speech.text, speech.stop, speech.tokens) == ("Ну стой", Stop.END, len(ids))


@given(
    st.text(alphabet="Ёж 🦔ab\n", max_size=20),
    st.lists(st.text(alphabet="Ёж 🦔ab\n", min_size=1, max_size=4), max_size=4),
)
@few
def test_streamed_tokens_with_stop_strings_are_the_whole_text_cut(text, stops):
    told, speech = spoken([*byte_tokens(text), END], stops, Stop.END)
    said, found = cut(text, stops)
    assert "".join(told) == speech.text == said.strip()
    assert (speech.stop is Stop.WORDS) == found
