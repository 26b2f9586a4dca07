"""Test items: open questions with checkable keys, choices of one in several, and minimal pairs.

A file holds one JSON object a line; what it is shows by its keys: ``options`` makes a choice, ``true`` a pair, anything
else an open question. ``docs/evaluation.md`` describes every field. A bad item is an error with its file and line:
an evaluation that quietly leaves items out would be about other questions than its report says.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from znatok.data.lines import JsonLines
from znatok.data.schema import described, shown
from znatok.errors import DataError
from znatok.exam.fields import Fields
from znatok.lexicon import LANGUAGES

TYPES = (
    *("numeric", "term", "definition", "procedure", "cause", "comparison", "scenario", "reverse", "abstain", "premise"),
    *("general", "format"),
)
CHECKS = (
    *("bullets", "numbered", "sentences", "json_keys", "yes_no", "no_digits", "uppercase", "max_words", "starts_with"),
    "language",
)
SPLITS = ("T0", "T1", "T2", "T3", "T4", "T5", "mixed", "control")
"""What claims are made of; items of any other split are in the tables only."""
UNNAMED = "T1"
"""What items count as that name no split: whoever keys questions for a model asks for what it was trained on."""
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
        split: one of :data:`SPLITS`, or the user's own name.
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
    """Everything that is asked in one evaluation.

    Attributes:
        open, choices, pairs: the items, by kind.
        sha256: of each file they came from, by its name; by its path where the name was taken.
        unnamed: how many items of a file name no split.
    """

    open: tuple[OpenItem, ...]
    choices: tuple[ChoiceItem, ...]
    pairs: tuple[PairItem, ...]
    sha256: Mapping[str, str]
    unnamed: Mapping[str, int]

    @property
    def all(self) -> tuple[Item, ...]:
        """Return the items of every kind."""
        return (*self.open, *self.choices, *self.pairs)

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

        return replace(self, open=first(self.open), choices=first(self.choices), pairs=first(self.pairs))


def read_items(paths: Iterable[Path]) -> Items:
    """Read files of test items.

    Raises:
        DataError: a file can't be read, an item is bad, an id stands twice, or there is no item at all.
    """
    found: list[Item] = []
    places: dict[str, str] = {}
    digests: dict[str, str] = {}
    unnamed: Counter[str] = Counter()
    for path in paths:
        lines = JsonLines(path)
        for number, values in lines.objects():
            if "split" not in values:
                own = next((split for split in SPLITS if split.casefold() == path.stem.casefold()), "")
                unnamed[lines.name] += not own
                values["split"] = own or UNNAMED
            place = f"{lines.name}:{number}"
            item = _Record(place, values).item()
            if item.id in places:
                raise DataError(
                    '{place}: id "{id}" stands in {other} too: give each item its own',
                    place=place, id=item.id, other=places[item.id],
                )  # fmt: skip
            places[item.id] = place
            found.append(item)
        digests[path.name if path.name not in digests else lines.name] = lines.digest.hexdigest()
    if not found:
        raise DataError("no test items: name a file of questions with --questions")
    return Items(
        tuple(item for item in found if isinstance(item, OpenItem)),
        tuple(item for item in found if isinstance(item, ChoiceItem)),
        tuple(item for item in found if isinstance(item, PairItem)),
        digests,
        +unnamed,
    )


class _Record(Fields):
    """One line of an item file, or an object in it."""

    def item(self) -> Item:
        if "options" in self.values:
            return self._choice()
        return self._pair() if "true" in self.values else self._open()

    def _open(self) -> OpenItem:
        self.only({*OpenItem.__slots__})
        kind = self.one_of("type", TYPES, "term")
        expects = self.one_of("expects", ("answer", "abstain", "correct_premise"), "answer")
        claims = tuple(self._claim(value) for value in self.array("claims"))
        check = self._check() if "check" in self.values else None
        if (kind == "format") != (check is not None):
            raise self._bad('{place}: type "format" and "check" go together')
        if not claims and check is None and expects != "abstain":
            raise self._bad('{place}: "claims" is empty; expected what a right answer holds, or "expects": "abstain"')
        return OpenItem(
            **self._common(),
            type=kind,
            reference=self.text("reference", ""),
            claims=claims,
            forbidden=tuple(self._forbidden(value) for value in self.array("forbidden")),
            expects=expects,  # type: ignore[arg-type]  # one of the three
            check=check,
        )

    def _choice(self) -> ChoiceItem:
        self.only({*ChoiceItem.__slots__})
        options = self.texts("options")
        answer = self.values.get("answer")
        if len(options) < 2 or len(set(options)) < len(options):
            raise self._bad('{place}: "options": expected two or more, all different')
        if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(options):
            raise self._bad(
                '{place}: "answer" is {found}; expected the index of the right option, from 0', found=described(answer)
            )
        return ChoiceItem(**self._common(), options=options, answer=answer)

    def _pair(self) -> PairItem:
        self.only({*PairItem.__slots__})
        true, false = self.text("true"), self.text("false")
        if true == false:
            raise self._bad('{place}: "true" and "false" are the same')
        return PairItem(**self._common(), family=self.text("family", ""), true=true, false=false)

    def _common(self) -> dict[str, Any]:
        name = self.text("id")
        return {
            "id": name,
            "split": self.text("split"),
            "topic": self.text("topic", ""),
            "fact_ids": self.texts("fact_ids", least=0),
            "cluster": self.text("cluster", name),
            "question": self.text("question"),
        }

    def _claim(self, value: object) -> Claim:
        claim = self.within("claims", value)
        weight = claim.number("weight", 1.0)
        if weight <= 0:
            raise self._bad('{place}: "weight": expected a positive number')
        readers: dict[str, Callable[[], Claim]] = {
            "number": lambda: claim._number_claim(weight),
            "term": lambda: claim._term(weight),
            "any_of": lambda: claim._any_of(weight),
        }
        kind = claim.one_of("kind", tuple(readers), None)
        return readers[kind]()

    def _number_claim(self, weight: float) -> NumberClaim:
        self.only({"kind", *NumberClaim.__slots__})
        lo, hi = self.number("lo"), self.number("hi")
        if lo > hi:
            raise self._bad('{place}: "lo" is greater than "hi"')
        tol = self.number("tol") if "tol" in self.values else None
        if tol is not None and tol < 0:
            raise self._bad('{place}: "tol" is {found}; expected 0 or more', found=described(self.values["tol"]))
        return NumberClaim(self.text("entity", ""), self.text("property"), lo, hi, self.text("unit", ""), weight, tol)

    def _term(self, weight: float) -> TermClaim:
        self.only({"kind", "any", "weight"})
        return TermClaim((self.texts("any"),), 1, weight)

    def _any_of(self, weight: float) -> TermClaim:
        self.only({"kind", "n", "terms", "weight"})
        groups = tuple(tuple(part.strip() for part in group.split("|")) for group in self.texts("terms"))
        for group in groups:
            if "" in group:
                raise self._bad(
                    '{place}: "terms": {terms} has an empty alternative; expected text on both sides of each "|"',
                    terms=shown("|".join(group)),
                )
        n = self.count("n", 1)
        if n > len(groups):
            raise self._bad('{place}: "n" is {n}; expected 1 to {most}, as many as "terms"', n=n, most=len(groups))
        return TermClaim(groups, n, weight)

    def _forbidden(self, value: object) -> Forbidden:
        statement = self.within("forbidden", value)
        statement.only({"id", "any"})
        return Forbidden(statement.text("id"), statement.texts("any"))

    def _check(self) -> Check:
        value = self.values["check"]
        if not isinstance(value, dict) or value.get("kind") not in CHECKS or "value" not in value:
            raise self._bad(
                '{place}: "check": expected an object with "value" and a "kind" of {known}', known=", ".join(CHECKS)
            )
        check = self.within("check", value)
        check.only({"kind", "value"})
        return Check(value["kind"], check._demand(value["kind"]))

    def _demand(self, kind: str) -> Any:
        """Return the value of a check, of the type that its form is held against."""
        if kind in {"yes_no", "starts_with"}:
            return self.text("value")
        if kind == "json_keys":
            return self.texts("value")
        if kind == "language":
            return self.one_of("value", LANGUAGES, None)
        if kind in {"no_digits", "uppercase"}:
            if self.values["value"] is not True:
                raise self._bad('{place}: "value" is {found}; expected true', found=described(self.values["value"]))
            return True
        return self.count("value")
