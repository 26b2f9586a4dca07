"""What one answer shows by itself: repetition, language, length. Same text, same number, on every machine."""

import re
import unicodedata
from collections.abc import Collection
from difflib import SequenceMatcher

GRAM = 4  # words in a row that a fluent answer seldom says twice

_WORD = re.compile(r"\d+(?:[.,]\d+)+|[^\W_]+(?:[-'’][^\W_]+)*")  # «0,4» and «3D-печать» are one word each
_RUN = re.compile(r"[^\W\d_]+")
_CJK = re.compile(
    "[\u1100-\u11ff\u2e80-\u2fdf\u3000-\u30ff\u3100-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff"
    "\uf900-\ufaff\uff01-\uffee\U00020000-\U000323af]"
)  # Han, kana, Hangul, and the full-width punctuation that comes with them


def words(text: str) -> list[str]:
    """Return the words and numbers of a text, composed (NFC) and lower-cased."""
    return [match.group().casefold() for match in _WORD.finditer(unicodedata.normalize("NFC", text))]


def word_count(text: str) -> int:
    """Return the number of words; a number and a hyphenated word count as one."""
    return len(words(text))


def repetition(text: str) -> float:
    """Return the share of word 4-grams that were said before: 0 for fluent text, towards 1 for a loop."""
    said = words(text)
    grams = [tuple(said[i : i + GRAM]) for i in range(len(said) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def cyrillic_share(text: str, allowed: Collection[str] = ()) -> float | None:
    """Return the share of Cyrillic among the letters, None for a text without letters.

    Args:
        text: the answer.
        allowed: words that rightly stand in another script («PLA», «G-code»); they are left out, whatever their case.
    """
    left_out = {word.casefold() for word in allowed}
    letters = [c for word in words(text) if word not in left_out for c in word if c.isalpha()]
    if not letters:
        return None
    return sum(_script(c) == "CYRILLIC" for c in letters) / len(letters)


def has_cjk(text: str) -> bool:
    """Say whether a Chinese, Japanese or Korean character slipped in; multilingual models leak them."""
    return _CJK.search(text) is not None


def mixed_script_words(text: str) -> list[str]:
    """Return the runs of letters that mix Latin and Cyrillic («сoпло» with a Latin o), in order of appearance."""
    runs = _RUN.findall(unicodedata.normalize("NFC", text))
    return [run for run in runs if {"LATIN", "CYRILLIC"} <= {_script(c) for c in run}]


def longest_copied_run(text: str, source: str) -> int:
    """Return how many words in a row ``text`` has in common with ``source``: long runs are recitation."""
    said, given = words(text), words(source)
    return SequenceMatcher(None, said, given, autojunk=False).find_longest_match().size


def _script(letter: str) -> str:
    return unicodedata.name(letter, "").split(" ", 1)[0]
