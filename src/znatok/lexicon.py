"""What a scorer must know of a language and of a field: names, negations, units, which number is of what.

The language's part comes with znatok, the field's is a TOML file beside the questions. Code knows neither.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from znatok.data.expand import Phrases
from znatok.errors import DataError
from znatok.language import Forms, Phrase, Sentence, Word, find, forms, normalise, phrase, sentences

LANGUAGES = ("en", "ru")
SHARE = 0.02  # of the key: how far a number may be from it where the field says nothing
_ENGLISH_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
KEYS = {"language", "prompts", "allowed", "synonyms", "entities", "properties", "windows", "tolerances"}


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit: what it measures, and how many of that dimension's own unit it is."""

    dimension: str
    factor: float


@dataclass(frozen=True, slots=True)
class Property:
    """A quantity: its dimension, and the words that stand by its numbers."""

    dimension: str
    phrases: tuple[Phrase, ...]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a number may be from its key: so much in the key's unit, else such a share of it."""

    by: float | None = None
    share: float = SHARE

    def around(self, value: float) -> float:
        """Return the tolerance at a value."""
        return self.by if self.by is not None else abs(value) * self.share


@dataclass(frozen=True)
class Lexicon:
    """The words of a language and a field.

    Attributes:
        language: two letters, one of :data:`LANGUAGES`.
        path: the field's file, or None for the language alone.
        units: by the name keys use.
        entities: things spoken of, each with the phrases that name it.
        properties: quantities by the name keys use.
        windows: of an entity, then of a quantity: the least and the greatest that is not wrong.
        tolerances: of a quantity.
        allowed: words that rightly stand in another script.
        synonyms: main words, each with the phrases that are found where it is looked for.
        numerals: numbers written as words.
        prompts: ``expert``, a good system message for a model without tuning, and ``knowledge``, which puts passages
            before a question.
        phrases: by kind, what :meth:`has` and :meth:`count` look for.
    """

    language: str
    path: Path | None
    units: Mapping[str, Unit]
    unit_names: Mapping[str, str]
    entities: Mapping[str, tuple[Phrase, ...]]
    properties: Mapping[str, Property]
    windows: Mapping[str, Mapping[str, tuple[float, float]]]
    tolerances: Mapping[str, Tolerance]
    allowed: frozenset[str]
    synonyms: Mapping[str, tuple[Phrase, ...]]
    numerals: Mapping[str, float]
    prompts: Mapping[str, str]
    phrases: Mapping[str, tuple[Phrase, ...]] = field(repr=False)

    def read(self, text: str) -> list[Sentence]:
        """Cut a text into sentences; a synonym carries the forms of its main word too."""
        if self.language == "en":
            text = _ENGLISH_THOUSANDS.sub("", text)
        return [Sentence(sentence.text, self._named(sentence.words)) for sentence in sentences(text)]

    def has(self, kind: str, words: Sequence[Word]) -> bool:
        """Tell whether one of the phrases of a kind («abstention», «vague», …) stands among these words."""
        return any(find(wanted, words, gap=1) for wanted in self.phrases[kind])

    def begins(self, kind: str, words: Sequence[Word]) -> bool:
        """Tell whether these words begin with one of the phrases of a kind."""
        return any(start == 0 for wanted in self.phrases[kind] for start, _end in find(wanted, words, gap=0))

    def count(self, kind: str, words: Sequence[Word]) -> int:
        """Return how many phrases of a kind stand among these words."""
        return sum(len(find(wanted, words, gap=0)) for wanted in self.phrases[kind])

    def mentions(self, words: Sequence[Word]) -> list[tuple[int, str]]:
        """Return (place, entity) of what is named, in order; of two names at one place the longer one."""
        found: dict[int, tuple[int, str]] = {}
        for name, phrases in self.entities.items():
            for wanted in phrases:
                for start, end in find(wanted, words, gap=0):
                    if found.get(start, (0, ""))[0] < end - start:
                        found[start] = (end - start, name)
        return [(place, name) for place, (_length, name) in sorted(found.items())]

    def entities_of(self, text: str) -> frozenset[str]:
        """Return what a text names."""
        return frozenset(name for sentence in sentences(text) for _place, name in self.mentions(sentence.words))

    def concepts(self, words: Sequence[Word]) -> list[str]:
        """Return what is named by any of its names: things, quantities and synonyms, each once."""
        named = [name for _place, name in self.mentions(words)]
        named += [name for name, row in self.properties.items() if any(find(w, words, gap=0) for w in row.phrases)]
        named += [
            name for name, rows in self.synonyms.items() if any(find(w, words, gap=0) for w in (phrase(name), *rows))
        ]
        return list(dict.fromkeys(named))

    @cached_property
    def unit_pattern(self) -> str:
        """A regular expression of every way to write a unit, the longest first, with the space or hyphen before it."""
        names = sorted(self.unit_names, key=len, reverse=True)
        long = [name for name in names if len(name) > 3]  # «30-minute»; «5-м» is the fifth
        any_name, long_name = ("|".join(map(re.escape, chosen)) for chosen in (names, long))
        return rf"(?:\s?(?:{any_name})|-(?:{long_name}))(?![^\W_])"

    def unit(self, name: str) -> Unit:
        """Return a unit by the name keys use; what no lexicon knows is a dimension of its own."""
        return self.units.get(name, Unit(name, 1.0))

    def _named(self, words: tuple[Word, ...]) -> tuple[Word, ...]:
        extra: dict[int, Forms] = {}
        for main, phrases in self.synonyms.items():
            for wanted in phrases:
                for _start, end in find(wanted, words, gap=0):
                    extra[end - 1] = extra.get(end - 1, frozenset()) | forms(normalise(main).lower())
        if not extra:
            return words
        return tuple(Word(w.text, w.forms | extra[i], w.start, w.end) if i in extra else w for i, w in enumerate(words))


def load_lexicon(path: Path | None, language: str = "ru") -> Lexicon:
    """Read a field's lexicon, and its language's.

    Args:
        path: the TOML file; None for what the language alone gives.
        language: where no file says it.

    Raises:
        DataError: the file can't be read, or holds what no lexicon has.
    """
    own = _read(path) if path else {}
    language = own.get("language", language)
    if language not in LANGUAGES:
        raise DataError(
            "{path}: language {language}: expected one of {known}",
            path=path, language=language, known=", ".join(LANGUAGES),
        )  # fmt: skip
    general = of_language(language)
    units = {name: Unit(unit["of"], float(unit.get("factor", 1.0))) for name, unit in general["units"].items()}
    names = {normalise(name).lower(): unit for unit, row in reversed(general["units"].items()) for name in row["names"]}
    lists = (
        *("negation", "denial", "spared", "bound", "agreement", "abstention", "vague", "advice", "conjunctions"),
        *("delta", "change", "of"),
    )
    try:
        properties = {
            name: Property(units[row["unit"]].dimension, tuple(phrase(word) for word in row["words"]))
            for name, row in own.get("properties", {}).items()
        }
        windows = {
            entity: {name: (float(low), float(high)) for name, (low, high) in row.items()}
            for entity, row in own.get("windows", {}).items()
        }
        tolerances = {name: Tolerance(**row) for name, row in own.get("tolerances", {}).items()}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError("{path}: {error}: expected the form docs/evaluation.md shows", path=path, error=error) from None
    return Lexicon(
        language=language,
        path=path,
        units=units,
        unit_names=names,
        entities={name: tuple(phrase(word) for word in words) for name, words in own.get("entities", {}).items()},
        properties=properties,
        windows=windows,
        tolerances=tolerances,
        allowed=frozenset(word.casefold() for word in own.get("allowed", [])),
        synonyms={name: tuple(phrase(word) for word in words) for name, words in own.get("synonyms", {}).items()},
        prompts={**general["prompts"], **own.get("prompts", {})},
        numerals={normalise(word): float(value) for word, value in general["numerals"].items()},
        phrases={kind: tuple(phrase(text) for text in general[kind]) for kind in lists},
    )


def lexicon_near(path: Path) -> Path | None:
    """Return the ``lexicon.toml`` beside a file of questions or passages, or in ``eval/`` beside it, if any."""
    places = (path.parent / "lexicon.toml", path.parent / "eval" / "lexicon.toml")
    return next((place for place in places if place.is_file()), None)


def of_language(language: str) -> dict[str, Any]:
    """Return what comes with znatok for a language, as its TOML file says it."""
    return tomllib.loads(resources.files("znatok.lexicons").joinpath(f"{language}.toml").read_text(encoding="utf-8"))


def language_of(text: str) -> str:
    """Return the language whose words a text needs: Russian where it has Cyrillic letters, else English."""
    return "ru" if any("а" <= letter.lower() <= "я" or letter in "ёЁ" for letter in text) else "en"


def phrases_of(language: str) -> Phrases:
    """Return how a language puts what is made from facts.

    Raises:
        DataError: znatok does not know the language.
    """
    if language not in LANGUAGES:
        raise DataError("language {language}: expected one of {known}", language=language, known=", ".join(LANGUAGES))
    own = of_language(language)
    made = own["expand"]
    return Phrases(
        tuple(made["fill"]),
        tuple(made["judge"]),
        made["right"],
        made["wrong"],
        own["prompts"]["knowledge"],
        made["absent"],
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError("{path}: {error}", path=path, error=error) from None
    unknown = sorted(set(found) - KEYS)
    if unknown:
        raise DataError(
            "{path}: unknown key {key}: expected {known}", path=path, key=unknown[0], known=", ".join(sorted(KEYS))
        )
    return found
