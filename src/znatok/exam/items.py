"""Test items: open questions with checkable keys, choices of one in several, and minimal pairs.

A file holds one JSON object a line; what it is shows by its keys: ``options`` makes a choice, ``true`` a pair, anything
else an open question. ``docs/evaluation.md`` describes every field. A bad item is an error with its file and line:
an evaluation that quietly leaves items out would be about other questions than its report says.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from znatok.data.formats import refuse_irregular
from znatok.data.schema import described, quoted, shown_path
from znatok.errors import DataError
from znatok.files import sha256

TYPES = (
    *("numeric", "term", "definition", "procedure", "cause", "comparison", "scenario", "reverse", "abstain", "premise"),
    *("general", "format"),
)
CHECKS = (
    *("bullets", "numbered", "sentences", "json_keys", "yes_no", "no_digits", "uppercase", "max_words", "starts_with"),
    "language",
)
Expects = Literal["answer", "abstain", "correct_premise"]


@dataclass(frozen=True, slots=True)
class NumberClaim:
    """A number the answer must give: of what, between what, in which unit; ``tol`` where the lexicon's won't do."""

    entity: str
    property: str
    lo: float
    hi: float
    unit: str
    weight: float
    tol: float | None = None


@dataclass(frozen=True, slots=True)
class TermClaim:
    """Something the answer must name: at least ``n`` of ``groups``, each a list of phrases that mean the same."""

    groups: tuple[tuple[str, ...], ...]
    n: int
    weight: float


Claim = NumberClaim | TermClaim


@dataclass(frozen=True, slots=True)
class Forbidden:
    """A false statement that the answer must not make, in several wordings."""

    id: str
    phrases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """A form the answer must have, for questions that ask for one."""

    kind: str
    value: Any


@dataclass(frozen=True, slots=True)
class OpenItem:
    """A question answered in free text.

    Attributes:
        id: unique in an evaluation.
        split: T0 to T5, or the user's own name.
        topic: for tables.
        type: one of :data:`TYPES`; what structure and practical value are asked of the answer.
        fact_ids: the facts it rests on.
        cluster: items of one cluster stand or fall together.
        question: what is asked.
        reference: a right answer.
        claims: what a right answer holds.
        forbidden: what it must not say.
        expects: an answer, an admission that it can't be known, or the correction of a false premise.
        check: the form asked for, for type ``format``.
    """

    id: str
    split: str
    topic: str
    type: str
    fact_ids: tuple[str, ...]
    cluster: str
    question: str
    reference: str
    claims: tuple[Claim, ...]
    forbidden: tuple[Forbidden, ...]
    expects: Expects
    check: Check | None = None


@dataclass(frozen=True, slots=True)
class ChoiceItem:
    """A question with options, of which ``options[answer]`` is right."""

    id: str
    split: str
    topic: str
    fact_ids: tuple[str, ...]
    cluster: str
    question: str
    options: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class PairItem:
    """A true statement and a false one that differs in one place; ``question`` is what both would answer."""

    id: str
    split: str
    topic: str
    fact_ids: tuple[str, ...]
    cluster: str
    family: str
    question: str
    true: str
    false: str


Item = OpenItem | ChoiceItem | PairItem


@dataclass(frozen=True)
class Items:
    """Everything that is asked in one evaluation, and the SHA-256 of each file it came from."""

    open: tuple[OpenItem, ...]
    choices: tuple[ChoiceItem, ...]
    pairs: tuple[PairItem, ...]
    sha256: Mapping[str, str]

    def limited(self, count: int) -> "Items":
        """Return the first ``count`` items of each split and kind; all of them for 0."""
        if not count:
            return self

        def first(items: Sequence[Any]) -> tuple[Any, ...]:
            seen: dict[str, int] = {}
            kept = []
            for item in items:
                seen[item.split] = seen.get(item.split, 0) + 1
                if seen[item.split] <= count:
                    kept.append(item)
            return tuple(kept)

        return Items(first(self.open), first(self.choices), first(self.pairs), self.sha256)


def read_items(paths: Iterable[Path]) -> Items:
    """Read files of test items.

    Raises:
        DataError: a file can't be read, an item is bad, an id stands twice, or there is no item at all.
    """
    found: list[Item] = []
    places: dict[str, str] = {}
    digests: dict[str, str] = {}
    for path in paths:
        for line, item in _read(path):
            place = f"{shown_path(path)}:{line}"
            if item.id in places:
                raise DataError(
                    '{place}: id "{id}" stands in {other} too: give each item its own',
                    place=place, id=item.id, other=places[item.id],
                )  # fmt: skip
            places[item.id] = place
            found.append(item)
        digests[path.name] = sha256(path)
    if not found:
        raise DataError("no test items: name a file of questions with --questions")
    return Items(
        tuple(item for item in found if isinstance(item, OpenItem)),
        tuple(item for item in found if isinstance(item, ChoiceItem)),
        tuple(item for item in found if isinstance(item, PairItem)),
        digests,
    )


def _read(path: Path) -> Iterable[tuple[int, Item]]:
    refuse_irregular(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise DataError("{path}: can't be read: {why}", path=shown_path(path), why=error.strerror) from error
    except UnicodeDecodeError as error:
        raise DataError("{path}: not UTF-8 at byte {at}; convert it first", path=path, at=error.start) from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            record = _Record(f"{shown_path(path)}:{number}", line, path.stem)
            yield number, record.item()


class _Record:
    """One line of an item file, read field by field; every error names its place."""

    def __init__(self, place: str, line: str, stem: str) -> None:
        self.place = place
        self.stem = stem
        try:
            self.values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError("{place}: not JSON: {why}", place=place, why=str(error)[:80]) from None
        if not isinstance(self.values, dict):
            raise DataError("{place}: {found}; expected an object", place=place, found=described(self.values))

    def item(self) -> Item:
        if "options" in self.values:
            return self._choice()
        return self._pair() if "true" in self.values else self._open()

    def _open(self) -> OpenItem:
        self._only({*OpenItem.__slots__})
        kind = self._one_of("type", TYPES, "term")
        expects = self._one_of("expects", ("answer", "abstain", "correct_premise"), "answer")
        claims = tuple(self._claim(value) for value in self._list("claims"))
        check = self._check() if "check" in self.values else None
        if (kind == "format") != (check is not None):
            raise self._bad('{place}: type "format" and "check" go together')
        if not claims and check is None and expects != "abstain":
            raise self._bad('{place}: "claims" is empty; expected what a right answer holds, or "expects": "abstain"')
        return OpenItem(
            **self._common(),
            type=kind,
            reference=self._text("reference", ""),
            claims=claims,
            forbidden=tuple(self._forbidden(value) for value in self._list("forbidden")),
            expects=expects,  # type: ignore[arg-type]  # one of the three
            check=check,
        )

    def _choice(self) -> ChoiceItem:
        self._only({*ChoiceItem.__slots__})
        options = self._texts("options")
        answer = self.values.get("answer")
        if len(options) < 2 or len(set(options)) < len(options):
            raise self._bad('{place}: "options": expected two or more, all different')
        if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(options):
            raise self._bad(
                '{place}: "answer" is {found}; expected the index of the right option, from 0', found=described(answer)
            )
        return ChoiceItem(**self._common(), options=options, answer=answer)

    def _pair(self) -> PairItem:
        self._only({*PairItem.__slots__})
        true, false = self._text("true"), self._text("false")
        if true == false:
            raise self._bad('{place}: "true" and "false" are the same')
        return PairItem(**self._common(), family=self._text("family", ""), true=true, false=false)

    def _common(self) -> dict[str, Any]:
        name = self._text("id")
        return {
            "id": name,
            "split": self._text("split", self.stem.upper()),
            "topic": self._text("topic", ""),
            "fact_ids": self._texts("fact_ids", least=0),
            "cluster": self._text("cluster", name),
            "question": self._text("question"),
        }

    def _claim(self, value: object) -> Claim:
        if not isinstance(value, dict):
            raise self._bad('{place}: "{key}" holds {found}; expected objects', key="claims", found=described(value))
        inner = _Record.__new__(_Record)
        inner.place, inner.stem, inner.values = self.place, self.stem, value
        weight = inner._number("weight", 1.0)
        if weight <= 0:
            raise self._bad('{place}: "weight": expected a positive number')
        readers: dict[str, Callable[[], Claim]] = {
            "number": lambda: inner._number_claim(weight),
            "term": lambda: TermClaim((inner._texts("any"),), 1, weight),
            "any_of": lambda: inner._any_of(weight),
        }
        kind = inner._one_of("kind", tuple(readers), None)
        return readers[kind]()

    def _number_claim(self, weight: float) -> NumberClaim:
        self._only({"kind", *NumberClaim.__slots__})
        lo, hi = self._number("lo"), self._number("hi")
        if lo > hi:
            raise self._bad('{place}: "lo" is greater than "hi"')
        tol = self._number("tol") if "tol" in self.values else None
        return NumberClaim(
            self._text("entity", ""), self._text("property"), lo, hi, self._text("unit", ""), weight, tol
        )

    def _any_of(self, weight: float) -> TermClaim:
        groups = tuple(tuple(part.strip() for part in group.split("|")) for group in self._texts("terms"))
        n = int(self._number("n", 1.0))
        if not 1 <= n <= len(groups):
            raise self._bad('{place}: "n" is {n}; expected 1 to {most}, as many as "terms"', n=n, most=len(groups))
        return TermClaim(groups, n, weight)

    def _forbidden(self, value: object) -> Forbidden:
        if not isinstance(value, dict):
            raise self._bad('{place}: "{key}" holds {found}; expected objects', key="forbidden", found=described(value))
        inner = _Record.__new__(_Record)
        inner.place, inner.stem, inner.values = self.place, self.stem, value
        inner._only({"id", "any"})
        return Forbidden(inner._text("id"), inner._texts("any"))

    def _check(self) -> Check:
        value = self.values["check"]
        if not isinstance(value, dict) or value.get("kind") not in CHECKS or "value" not in value:
            raise self._bad(
                '{place}: "check": expected an object with "value" and a "kind" of {known}', known=", ".join(CHECKS)
            )
        return Check(value["kind"], value["value"])

    # Values of their types

    def _bad(self, template: str, **fields: object) -> DataError:
        return DataError(template, place=self.place, **fields)

    def _only(self, known: set[str]) -> None:
        if unknown := sorted(set(self.values) - known):
            raise self._bad(
                "{place}: unknown key {key}; expected {known}",
                key=quoted(unknown),
                known=quoted(sorted(known), most=20),
            )

    def _text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str) or (default is None and not value.strip()):
            raise self._bad('{place}: "{key}" is {found}; expected text', key=key, found=described(value))
        return value

    def _list(self, key: str) -> list[Any]:
        value = self.values.get(key, [])
        if not isinstance(value, list):
            raise self._bad('{place}: "{key}" is {found}; expected an array', key=key, found=described(value))
        return value

    def _texts(self, key: str, least: int = 1) -> tuple[str, ...]:
        value = self._list(key)
        if len(value) < least or not all(isinstance(text, str) and text.strip() for text in value):
            raise self._bad('{place}: "{key}": expected an array of strings that are not empty', key=key)
        return tuple(value)

    def _number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise self._bad('{place}: "{key}" is {found}; expected a number', key=key, found=described(value))
        return float(value)

    def _one_of(self, key: str, known: Sequence[str], default: str | None) -> str:
        value = self.values.get(key, default)
        if value not in known:
            raise self._bad(
                '{place}: "{key}" is {found}; expected one of {known}',
                key=key,
                found=described(value),
                known=", ".join(known),
            )
        return str(value)
