"""Numbers in an answer: their range, their unit, and what they are said to be of.

A number counts for a key only when it can be of the same quantity and of the same thing, so each is bound: to the
nearest word that names a quantity of its dimension, and to the nearest entity, both within the sentence. What is bound
to nothing may be of anything the question asks about.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from znatok.language import Sentence, Word, find, is_directive, is_link
from znatok.lexicon import Lexicon

REACH = 9  # words between a number and the word that says what it is of
AFTER = 1.5  # a word that follows a number is so much farther than one that stands before it
DENIES = 4  # words before a number in which it may be denied
CLAUSE = 3.0  # a comma, semicolon or bracket between them counts as so many words; none may stand before what follows

_NUMBER = r"\d+(?:\.\d+)?"
_TO = r"(?:\s?-\s?|\s?\.\.\.?\s?|\s+(?:до|to)\s+|(?(since)\s+по\s+|(?!)))"  # «с 3 по 5», not «3 слоя по 0.2 мм»
_JOINED = re.compile(r"\s*(?:,|и|или|либо|and|or)\s*", re.IGNORECASE)
_BORDER = re.compile(r"[,;:()]|\s-\s")


@dataclass(frozen=True, slots=True)
class Mention:
    """A number or a range in a sentence.

    Attributes:
        lo, hi: its ends; alike for a single number.
        dimension: what its unit measures; None without a unit.
        factor: how many of the dimension's own unit one is.
        properties: the quantities it may be of: those the nearest word names; empty when no word is near.
        entities: what it is said of, empty when the sentence names nothing.
        delta: a change («на 5–10 °C») or a factor of a sum («8 × 0,02»), not a value.
        denied: it is said not to be the value: «не 200 °C, а», «нельзя греть до 205 °C».
        sentence: the index of its sentence.
    """

    lo: float
    hi: float
    dimension: str | None
    factor: float
    properties: frozenset[str]
    entities: frozenset[str]
    delta: bool
    denied: bool
    sentence: int


def mentions(read: Sequence[Sentence], lexicon: Lexicon) -> list[Mention]:
    """Find the numbers of an answer, bound to quantities and entities.

    Args:
        read: the answer as :meth:`Lexicon.read` cut it.
        lexicon: units, quantities and names.
    """
    found = []
    for index, sentence in enumerate(read):
        named, triggers = lexicon.mentions(sentence.words), _triggers(sentence, lexicon)
        for figure in [*_figures(sentence, lexicon), *_numerals(sentence, lexicon)]:
            unit = lexicon.units[figure.unit] if figure.unit else None
            dimension = unit.dimension if unit else None
            found.append(
                Mention(
                    figure.lo,
                    figure.hi,
                    dimension,
                    unit.factor if unit else 1.0,
                    _property(sentence, figure, dimension, triggers),
                    _entity(sentence, figure, named, lexicon),
                    _is_change(sentence, figure, lexicon) or (dimension is None and _is_factor(sentence, figure)),
                    _is_denied(sentence, figure, lexicon),
                    index,
                )
            )
    return found


def figures(text: str, lexicon: Lexicon) -> set[float]:
    """Return the numbers a text holds, as they stand."""
    read = lexicon.read(text)
    return {end for sentence in read for figure in _figures(sentence, lexicon) for end in (figure.lo, figure.hi)}


@dataclass(frozen=True, slots=True)
class _Figure:
    """A number as it stands: its ends, its unit by the name keys use, and the words from ``first`` to ``last``."""

    lo: float
    hi: float
    unit: str | None
    first: int
    last: int


def _figures(sentence: Sentence, lexicon: Lexicon) -> list[_Figure]:
    found = []
    for match in _pattern(lexicon.unit_pattern).finditer(sentence.text):
        if _is_label(sentence.text, match.start(), match.end("lo")):
            continue
        unit = (match["unit"] or match["unit_lo"] or "").strip(" -").lower()
        first, last = _place(sentence.words, match.start("lo")), _place(sentence.words, match.end() - 1)
        found.append(_Figure(*_ends(match), lexicon.unit_names[unit] if unit else None, first, last))
    for place in reversed(range(len(found) - 1)):  # «50 и 100 мкм»: the unit is said once
        one, following = found[place], found[place + 1]
        between = sentence.text[sentence.words[one.last].end : sentence.words[following.first].start]
        if one.unit is None and _JOINED.fullmatch(between):
            found[place] = replace(one, unit=following.unit)
    return found


def _numerals(sentence: Sentence, lexicon: Lexicon) -> list[_Figure]:
    """Find numbers written as one word."""
    found = []
    for place, word in enumerate(sentence.words):
        value = next((lexicon.numerals[form] for form in word.forms if form in lexicon.numerals), None)
        if value is not None:
            following = sentence.words[place + 1].text.lower() if place + 1 < len(sentence.words) else ""
            found.append(_Figure(value, value, lexicon.unit_names.get(following), place, place))
    return found


@lru_cache(maxsize=8)
def _pattern(units: str) -> re.Pattern[str]:
    """Return what finds «200», «200–220 °C», «от 200 до 220», «20 °C ± 5»; not the number of «Термоласт-7»."""
    return re.compile(
        rf"(?:\b(?P<since>со?)\s)?(?<![\w.\[])(?<![^\W\d]-)±?\s?(?P<lo>{_NUMBER})(?:(?P<unit_lo>{units})(?=-\d|\s?(?:±|до|по|to)\s?\d))?"
        rf"(?:{_TO}(?P<hi>{_NUMBER})|\s?±\s?(?P<spread>{_NUMBER}))?(?!\.?\d)(?P<unit>{units})?",
        re.IGNORECASE,
    )


def _ends(match: re.Match[str]) -> tuple[float, float]:
    lo = float(match["lo"])
    if match["spread"]:
        return lo - float(match["spread"]), lo + float(match["spread"])
    hi = float(match["hi"]) if match["hi"] else lo
    return min(lo, hi), max(lo, hi)


def _is_label(text: str, start: int, end: int) -> bool:
    """Tell whether a number only counts a line of a list («1.», «2)»)."""
    return start == 0 and end <= 2 and re.match(r"[.)](?:\s|$)", text[end:]) is not None


def _place(words: Sequence[Word], offset: int) -> int:
    """Return the index of the word that holds a place of the sentence's text."""
    return next((i for i, word in enumerate(words) if word.end > offset), len(words) - 1)


@dataclass(frozen=True, slots=True)
class _Trigger:
    """Words of a sentence that name a quantity: from ``first`` to ``last``."""

    name: str
    dimension: str
    first: int
    last: int


def _triggers(sentence: Sentence, lexicon: Lexicon) -> list[_Trigger]:
    return [
        _Trigger(name, quantity.dimension, start, end - 1)
        for name, quantity in lexicon.properties.items()
        for wanted in quantity.phrases
        for start, end in find(wanted, sentence.words, gap=0)
    ]


def _property(
    sentence: Sentence, figure: _Figure, dimension: str | None, triggers: Sequence[_Trigger]
) -> frozenset[str]:
    """Return the quantities that the nearest word names; several where one word names several."""
    distances: dict[str, float] = {}
    for trigger in triggers:
        if dimension is None or trigger.dimension == dimension:
            away = _distance(sentence, trigger.first, trigger.last, figure)
            if away <= REACH and away < distances.get(trigger.name, REACH + 1):
                distances[trigger.name] = away
    nearest = min(distances.values(), default=0.0)
    return frozenset(name for name, away in distances.items() if away == nearest)


def _distance(sentence: Sentence, start: int, end: int, figure: _Figure) -> float:
    """Return how far the words ``start`` to ``end`` are from a number."""
    words = sentence.words
    if end < figure.first:
        between = sentence.text[words[end].end : words[figure.first].start]
        return figure.first - end + CLAUSE * len(_BORDER.findall(between))
    if start <= figure.last:
        return AFTER
    return REACH + 1 if border_between(sentence, figure.last, start) else start - figure.last + AFTER


def _entity(sentence: Sentence, figure: _Figure, named: Sequence[tuple[int, str]], lexicon: Lexicon) -> frozenset[str]:
    """Return what a number is said of: «у ASA» right after it, else the last thing named before, else the next one."""
    before = [name for at, name in named if at < figure.first]
    at, following = next(((at, name) for at, name in named if at > figure.last), (0, ""))
    if at and border_between(sentence, figure.last, at):
        following = ""
    close = at - figure.last <= 3 and lexicon.has("of", sentence.words[figure.last + 1 : at])
    if following and (close or not before):
        return frozenset({following})
    return frozenset(before[-1:])


def border_between(sentence: Sentence, left: int, right: int) -> bool:
    """Tell whether a comma, colon, bracket or dash stands between two words of a sentence."""
    return _BORDER.search(sentence.text[sentence.words[left].end : sentence.words[right].start]) is not None


def _is_change(sentence: Sentence, figure: _Figure, lexicon: Lexicon) -> bool:
    """Tell «на 5 °C выше» and «снизить на 5 °C» from «держат на 60 °C»."""
    words = sentence.words
    if not figure.first or not lexicon.has("delta", words[figure.first - 1 : figure.first]):
        return False
    if lexicon.has("change", words[max(0, figure.first - 5) : figure.first]):
        return True
    following = figure.last + 1
    if following >= len(words) or border_between(sentence, figure.last, following):
        return False
    return lexicon.has("change", words[following : following + 1])


def _is_denied(sentence: Sentence, figure: _Figure, lexicon: Lexicon) -> bool:
    """Tell «не 200 °C» and «нельзя греть до 200 °C» from «не выше 200 °C» and «не выдерживает 200 °C»."""
    words = sentence.words[max(0, figure.first - DENIES) : figure.first]
    at = next((i for i in reversed(range(len(words))) if lexicon.has("denial", words[i : i + 1])), None)
    if at is None or border_between(sentence, figure.first - len(words) + at, figure.first):
        return False
    between = words[at + 1 :]
    if lexicon.has("bound", between):
        return False
    return all(is_link(word.text.lower()) for word in between) or is_directive(between[0].text.lower())


def _is_factor(sentence: Sentence, figure: _Figure) -> bool:
    """Tell whether a number is only calculated with; what follows «=» is a result."""
    before = sentence.text[: sentence.words[figure.first].start].rstrip()[-1:]
    after = sentence.text[sentence.words[figure.last].end :].lstrip()[:1]
    return before in {"×", "*", "/", "+", "·"} or after in {"×", "*", "/", "+", "·"}
