"""Text as a scorer sees it: normalised, cut into sentences and words, each word with the dictionary forms it may be of.

Russian words get the normal forms of every parse pymorphy3 finds, words it does not know a stem as well, words in
Latin letters themselves and their English stem. Two words agree when they share a form, so a term is found in all its
cases, and a wrong parse costs a form too many rather than a miss.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

from razdel import sentenize

Forms = frozenset[str]
"""The dictionary forms one word may be of."""

_SPACES = re.compile(r"[\u00a0\u2000-\u200a\u202f\u205f\u3000]")
_DASHES = re.compile("[\u2010-\u2015\u2212]")
_THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3})((?: \d{3})+)(?![\d])")
_DECIMAL_COMMA = re.compile(r"(?<=\d),(?=\d)")
_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|[%°±$₽]")
_EXACT = re.compile(r"=?(?:\d+(?:\.\d+)?|[^\W\d_]+|[%°±$₽])")
_UNIT_END = re.compile(r"\d\s?[^\s\d.]{1,6}\.\s+(?=[А-ЯA-Z«])")
_FRACTIONS = {"½": ".5", "¼": ".25", "¾": ".75"}
_DENIAL = re.compile(r"n['’]t\b", re.IGNORECASE)
_CYRILLIC = re.compile("[а-яё]", re.IGNORECASE)


def normalise(text: str) -> str:
    """Return ``text`` with one spelling for what people write in many.

    Compatibility forms are composed («³» is «3», «℃» is «°C»), ё is е, dashes are hyphens, a decimal comma is a point,
    a space inside a number is left out, «½» is 0.5, «isn't» is «is not». Letters keep their case.
    """
    for sign, value in _FRACTIONS.items():
        text = re.sub(rf"(?<=\d)\s?{sign}", value, text).replace(sign, "0" + value)
    text = unicodedata.normalize("NFKC", text.replace("º", "°")).replace("ё", "е").replace("Ё", "Е")
    text = _DENIAL.sub(" not", text)
    text = _DASHES.sub("-", _SPACES.sub(" ", text))
    text = _DECIMAL_COMMA.sub(".", text)
    return _THOUSANDS.sub(lambda match: match.group(1) + match.group(2).replace(" ", ""), text)


@dataclass(frozen=True, slots=True)
class Word:
    """A word, a number or a sign of a sentence; ``start`` and ``end`` are places in the sentence's text."""

    text: str
    forms: Forms
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence or a line of a list, normalised."""

    text: str
    words: tuple[Word, ...]


def sentences(text: str) -> list[Sentence]:
    """Cut a text into sentences; a line end always ends one."""
    found = []
    for line in normalise(text).splitlines():
        for span in sentenize(line):
            for part in _after_units(span.text):
                words = tuple(words_of(part))
                if words:
                    found.append(Sentence(part, words))
    return found


def _after_units(text: str) -> list[str]:
    """Cut «…145–155 °C. У PETG…»: razdel takes what follows a number for an abbreviation."""
    borders = [0, *(match.end() for match in _UNIT_END.finditer(text)), len(text)]
    return [text[start:end].strip() for start, end in pairwise(borders)]


def words_of(normalised: str) -> Iterator[Word]:
    """Yield the words of normalised text; letters and digits written together are words of their own."""
    for match in _WORD.finditer(normalised):
        yield Word(match.group(), forms(match.group().lower()), match.start(), match.end())


@lru_cache(maxsize=1 << 16)
def forms(word: str) -> Forms:
    """Return the dictionary forms a lower-case word may be of, and the word as it stands, marked by «=»."""
    return _dictionary_forms(word) | {"=" + word}


def _dictionary_forms(word: str) -> Forms:
    if _CYRILLIC.search(word):
        parses = _morphology().parse(word)
        found = {str(parse.normal_form).replace("ё", "е") for parse in parses}
        if not _morphology().word_is_known(word):
            found.add("~" + _stemmer("russian").stemWord(word))
        return frozenset(found)
    if word.isalpha():
        return frozenset({word, "~" + _stemmer("english").stemWord(word)})
    return frozenset({word})


@lru_cache(maxsize=1 << 14)
def is_predicate(word: str) -> bool:
    """Tell whether a Russian word can be what a sentence says of its subject: a verb, a short adjective, «нужно»."""
    parts = {"VERB", "INFN", "ADJS", "PRTS", "PRED", "COMP"}
    return bool(_CYRILLIC.search(word)) and any(parse.tag.POS in parts for parse in _morphology().parse(word))


@lru_cache(maxsize=1 << 14)
def is_directive(word: str) -> bool:
    """Tell whether a Russian word can tell somebody to do something: an imperative or an infinitive."""
    if not _CYRILLIC.search(word):
        return False
    return any(parse.tag.POS == "INFN" or parse.tag.mood == "impr" for parse in _morphology().parse(word)[:2])


@lru_cache(maxsize=1 << 14)
def is_link(word: str) -> bool:
    """Tell whether a word only joins others: a Russian preposition, or an English one that stands before an amount."""
    return word in {"at", "to", "by", "for"} or (
        bool(_CYRILLIC.search(word)) and _morphology().parse(word)[0].tag.POS == "PREP"
    )


@lru_cache(maxsize=1 << 14)
def can_be_denied(word: str) -> bool:
    """Tell whether «не» before this word denies it: in Russian a verb or an adjective, not a noun; else any word."""
    parts = {"VERB", "INFN", "ADJF", "ADJS", "PRTF", "PRTS", "PRED", "COMP", "GRND", "ADVB"}
    return not _CYRILLIC.search(word) or _morphology().parse(word)[0].tag.POS in parts


Phrase = tuple[Forms, ...]
"""Words to be found in this order."""


@cache
def phrase(text: str) -> Phrase:
    """Return what :func:`find` looks for; a word after «=» is found in no other form than its own."""
    words = _EXACT.findall(normalise(text).lower())
    return tuple(frozenset({word}) if word[0] == "=" else forms(word) for word in words)


def find(wanted: Phrase, words: Sequence[Word], gap: int = 2) -> list[tuple[int, int]]:
    """Return (first, last + 1) of every place where the words of a phrase stand in order.

    Args:
        wanted: the phrase; an empty one is found nowhere.
        words: where to look.
        gap: how many other words may stand between two words of the phrase.
    """
    return [] if not wanted else [
        (start, end) for start in range(len(words)) if (end := _matched(wanted, words, start, gap)) is not None
    ]  # fmt: skip


def _matched(wanted: Phrase, words: Sequence[Word], start: int, gap: int) -> int | None:
    if not wanted[0] & words[start].forms:
        return None
    place = start
    for part in wanted[1:]:
        reach = range(place + 1, min(place + 2 + gap, len(words)))
        following = next((i for i in reach if part & words[i].forms), None)
        if following is None:
            return None
        place = following
    return place + 1


@cache
def _morphology() -> Any:
    from pymorphy3 import MorphAnalyzer

    return MorphAnalyzer(lang="ru")


@cache
def _stemmer(language: str) -> Any:
    import snowballstemmer

    return snowballstemmer.stemmer(language)
