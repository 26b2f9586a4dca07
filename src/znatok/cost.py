"""What a print costs, computed and shown: a language model that does sums in its head gets them wrong.

material     = mass / 1000 × price of a kilogram
electricity  = power / 1000 × hours × tariff
depreciation = price of the printer / its life × hours
labour       = hours of work × rate
cost         = (material + electricity + depreciation + labour + overhead) / (1 − share of failed prints)
price        = cost × (1 + markup)
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from itertools import pairwise

from znatok.config import Options, option
from znatok.errors import UsageError, _
from znatok.language import Phrase, Sentence, find, phrase, sentences, words_of
from znatok.lexicon import Lexicon, Property, language_of, load_lexicon, of_language
from znatok.quantities import Mention, border_between, mentions

NEEDED = ("mass", "price", "hours")  # without these nothing can be computed; the rest has defaults
PER_KILOGRAM = "price a kilogram"
MINUTES = ("м", "m")  # after hours: «1 ч 30 м», as slicers say it

_DOLLARS = re.compile(r"\$\s?(\d+(?:,\d{3})*(?:\.\d+)?)")
_3D = re.compile(r"\b3\s?-?\s?[dд]\b-?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class CostOptions(Options):
    """What a print is made of; money in one currency."""

    mass: float = option(0.0, "mass of the part with its waste, g", low=0, high=1e6)
    price: float = option(0.0, "price of a kilogram of the material", low=0, high=1e9)
    hours: float = option(0.0, "time of printing, h", low=0, high=1e5)
    power: float = option(150.0, "mean power of the printer, W", low=0, high=1e5)
    tariff: float = option(0.0, "price of a kilowatt-hour", low=0, high=1e6)
    printer: float = option(0.0, "price of the printer with its upkeep", low=0, high=1e9)
    life: float = option(5000.0, "life of the printer, h of printing", low=1, high=1e6)
    labour: float = option(0.0, "time of work, h", low=0, high=1e5)
    rate: float = option(0.0, "price of an hour of work", low=0, high=1e6)
    overhead: float = option(0.0, "other expenses of this part", low=0, high=1e9)
    failed: float = option(0.0, "share of failed prints, %", low=0, high=99)
    markup: float = option(0.0, "markup on the cost, %", low=0, high=10_000)
    currency: str = option("₽", "sign of the currency")


@dataclass(frozen=True, slots=True)
class Line:
    """One term: its name, the sum as it is done, and what it comes to."""

    name: str
    formula: str
    value: float


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Everything a price is made of.

    Attributes:
        lines: the terms, in the order they are added.
        expenses: their sum.
        cost: with failed prints.
        price: with the markup.
        currency: the sign.
    """

    lines: tuple[Line, ...]
    expenses: float
    cost: float
    price: float
    currency: str

    def text(self) -> list[str]:
        """Return the calculation for people, a line a term."""
        shown = [
            f"{line.name}: {_written(line.formula, self.currency)} = {money(line.value, self.currency)}"
            for line in self.lines
        ]
        return [*shown, _("price: {price}", price=money(self.price, self.currency))]


def money(value: float, currency: str) -> str:
    """Return an amount as it is written: two digits where it isn't whole."""
    text = f"{value:.2f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"
    return f"{_written(text, currency)} {currency}"


def _written(text: str, currency: str) -> str:
    """Return numbers with the decimal sign that is usual where the money is: a comma beside the rouble."""
    return text.replace(".", ",") if currency == "₽" else text


def cost(options: CostOptions) -> Breakdown:
    """Compute a print's cost and price.

    Raises:
        UsageError: mass, price of the material or time is missing.
    """
    missing = [name for name in NEEDED if not getattr(options, name)]
    if missing:
        raise UsageError("cost: {flags} missing; expected numbers above 0", flags=", ".join(f"--{m}" for m in missing))
    o = options
    material = o.mass / 1000 * o.price
    electricity = o.power / 1000 * o.hours * o.tariff
    depreciation = o.printer / o.life * o.hours
    labour = o.labour * o.rate
    terms = [
        Line(_("material"), f"{_n(o.mass)} / 1000 × {_n(o.price)}", material),
        Line(_("electricity"), f"{_n(o.power)} / 1000 × {_n(o.hours)} × {_n(o.tariff)}", electricity),
        Line(_("depreciation"), f"{_n(o.printer)} / {_n(o.life)} × {_n(o.hours)}", depreciation),
        Line(_("labour"), f"{_n(o.labour)} × {_n(o.rate)}", labour),
        Line(_("overhead"), _n(o.overhead), o.overhead),
    ]
    expenses = sum(line.value for line in terms)
    prime = expenses / (1 - o.failed / 100)
    price = prime * (1 + o.markup / 100)
    lines = [line for line in terms if line.value]
    if len(lines) > 1:
        lines.append(Line(_("expenses"), " + ".join(_n(line.value) for line in lines), expenses))
    if o.failed:
        lines.append(Line(_("with failed prints"), f"{_n(expenses)} / (1 - {_n(o.failed)} / 100)", prime))
    if o.markup:
        lines.append(Line(_("with the markup"), f"{_n(prime)} × (1 + {_n(o.markup)} / 100)", price))
    return Breakdown(tuple(lines), expenses, prime, price, o.currency)


def _n(value: float) -> str:
    return f"{value:.10g}" if value == round(value, 4) else f"{value:.4f}".rstrip("0")


# A request in words


def computed(questions: Sequence[str]) -> list[str]:
    """Return the calculation, or what is missing for one, where a dialogue's last question is about a print's cost.

    What was said before counts as far as it belongs to the same request, so that whoever takes a question back, or
    begins a new dialogue, takes its amounts back with it.
    """
    said: list[str] = []
    request: CostRequest | None = None
    for question in questions:
        if request is None or not request.open:
            request = CostRequest(language_of(question))
        said = request.answer() if request.take(question) else []
    return said


class CostRequest:
    """A question about cost in a dialogue: recognised, and filled in over as many lines as it takes.

    A question about something else ends it. An amount that may be read in two ways is asked back, not chosen.
    """

    def __init__(self, language: str = "ru") -> None:
        own = of_language(language)["cost"]
        self._ask, self._about, self._made, self._pieces = (
            tuple(phrase(text) for text in own[key]) for key in ("ask", "about", "made", "pieces")
        )
        self._currency = str(own["currency"])
        self._defaults: Mapping[str, str] = own["by_dimension"]
        plain = load_lexicon(None, language)
        fields = {
            name: Property(plain.units[row["unit"]].dimension, tuple(phrase(word) for word in row["words"]))
            for name, row in own["fields"].items()
        }
        self._lexicon: Lexicon = replace(plain, properties=fields)
        self._spelling = Spelling(self._lexicon, own["before_each"], own["after_each"])
        self.known: dict[str, float] = {}
        self.unclear: dict[str, tuple[float, ...]] = {}
        self.open = False

    def take(self, text: str) -> bool:
        """Read a line; tell whether it is about a cost, because it asks for one or gives what was asked back."""
        found = self.read(text)
        of_print = {"mass", "hours"} & set(found) and self._holds(self._made, text)
        asks = self._holds(self._ask, text) or bool(of_print and self._holds(self._about, text))
        if asks and not self.open:
            self.known, self.unclear, self.open = {}, {}, True
        elif self.open and not asks and "?" in text:
            self.open = False
        if self.open:
            for name, values in found.items():
                self.known.pop(name, None)
                self.unclear.pop(name, None)
                if len(values) == 1:
                    self.known[name] = values[0]
                else:
                    self.unclear[name] = values
        return asks or bool(self.open and found)

    @staticmethod
    def _holds(wanted: Sequence[Phrase], text: str) -> bool:
        return any(find(one, sentence.words) for one in wanted for sentence in sentences(text))

    def read(self, text: str) -> dict[str, tuple[float, ...]]:
        """Return the amounts a text names, by option, in the options' units; several where it is not clear which."""
        counts = self._counts(text)
        alone = self._amounts(self._spelling.plain(text, 1.0))
        found = self._amounts(self._spelling.plain(text, *counts)) if len(counts) == 1 else alone
        if "mass" in alone and found.get("mass") == alone["mass"]:  # of one, or of all of them?
            found = found | {"mass": tuple(dict.fromkeys(m * n for n in (1.0, *sorted(counts)) for m in alone["mass"]))}
        return found

    def _amounts(self, text: str) -> dict[str, tuple[float, ...]]:
        said: dict[str, list[Mention]] = {}
        for mention in mentions(self._lexicon.read(text), self._lexicon):
            if name := self._field(mention):
                said.setdefault(name, []).append(mention)
        found = {name: _values(named) for name, named in said.items()}
        spools = found.pop("spool", ())
        if spools and all(one.dimension != PER_KILOGRAM for one in said.get("price", ())):
            prices = [price / mass * 1000 for price in found.get("price", ()) for mass in spools if mass]
            found |= {"price": tuple(prices)} if prices else {}
        return found

    def _counts(self, text: str) -> set[float]:
        """Return how many pieces a text speaks of: «4 детали», "four small parts"."""
        found = set()
        for sentence in self._lexicon.read(text):
            for place, word in enumerate(sentence.words):
                values = [self._lexicon.numerals[form] for form in word.forms if form in self._lexicon.numerals]
                if (word.text.isdecimal() or values) and self._of_pieces(sentence, place):
                    found.add(values[0] if values else float(word.text))
        return found - {1.0}

    def _of_pieces(self, sentence: Sentence, place: int) -> bool:
        """Tell whether a number counts pieces, which one word at most stands before: «4 одинаковые детали»."""
        near = sentence.words[place + 1 : place + 3]
        if near and near[0].text.lower() in self._lexicon.unit_names:
            near = ()
        return any(
            not border_between(sentence, place, place + 1 + start)
            for piece in self._pieces for start, _end in find(piece, near)
        )  # fmt: skip

    def _field(self, mention: Mention) -> str | None:
        if mention.delta:
            return None
        if len(mention.properties) == 1:
            (name,) = mention.properties
            counted = mention.dimension is None and name in {"mass", "spool", "hours"}  # «3 детали», «печать 2 ваз»
            return None if counted else name
        return self._defaults.get(mention.dimension or "")

    def missing(self) -> list[str]:
        """Return what must still be known, by option."""
        needed = [name for name in NEEDED if not self.known.get(name)]
        together = {"labour", "rate"} - set(self.known)
        if len(together) == 1:
            needed += together
        return list(dict.fromkeys([*needed, *self.unclear]))

    def answer(self) -> list[str]:
        """Return what to say: the calculation, or what is missing; a calculation ends the request."""
        if missing := self.missing():
            what = ", ".join(self._wanted(name) for name in missing)
            return [_("To compute the cost I need: {what}.", what=what)]
        self.open = False
        return cost(CostOptions(**self.known, currency=self._currency)).text()

    def _wanted(self, name: str) -> str:
        """Return what an option is called in a question back, and between which amounts there is to choose."""
        own = {
            "mass": _("the mass of the part, g"),
            "price": _("the price of a kilogram"),
            "hours": _("the time of printing, h"),
        }
        names = {spec.name: _(spec.metadata["help"]) for spec in dataclass_fields(CostOptions)} | own
        choice = " ".join(f"{_written(_n(value), self._currency)}?" for value in self.unclear.get(name, ()))
        return names[name] + (f" ({choice})" if choice else "")


def _values(named: Sequence[Mention]) -> tuple[float, ...]:
    """Return what may be meant, each amount once; a number with a unit is meant rather than one without."""
    sure = [one for one in named if one.dimension is not None] or named
    return tuple(dict.fromkeys(one.hi * one.factor for one in sure))


class Spelling:
    """Rewrites amounts that take more than one number: «3 ч 30 мин» is 3.5 h, four times «по 50 г» is 200 g."""

    def __init__(self, lexicon: Lexicon, before_each: Sequence[str], after_each: Sequence[str]) -> None:
        self._lexicon = lexicon
        units = {name: lexicon.units[unit] for name, unit in lexicon.unit_names.items()}
        days = {name: 24 * unit.factor for name, unit in units.items() if unit.dimension == "days"}
        self._hours = {name: unit.factor for name, unit in units.items() if unit.dimension == "time"} | days
        self._hour = next(name for name, factor in self._hours.items() if factor == 1)
        self._part = _amount([*self._hours, *MINUTES])
        self._chain = re.compile(rf"{_amount(self._hours)}(?:\s?(?:(?:и|and)\s)?{self._part})+", re.IGNORECASE)
        masses = [name for name, unit in units.items() if unit.dimension == "mass"]
        before, after = (_one_of(texts) for texts in (before_each, after_each))
        amount = _amount([*masses, *self._hours])
        self._each = re.compile(rf"(\b{before}\s+)?{amount}(\s+{after}\b)?", re.IGNORECASE)

    def plain(self, text: str, count: float) -> str:
        """Return a text with a number for each amount; ``count`` is of how many «each» is said."""
        text = _3D.sub(" ", _DOLLARS.sub(r"\1 $", text))
        text = self._chain.sub(self._sum, text)
        return self._each.sub(lambda match: self._times(match, count), text)

    def _sum(self, match: re.Match[str]) -> str:
        parts = re.findall(self._part, match.group(), re.IGNORECASE)
        hours = [self._hours.get(unit.lower(), 1 / 60) for _number, unit in parts]
        ascending = any(first <= second for first, second in pairwise(hours))
        if ascending or self._names_field(match.string[match.end() :].split()[:1]):  # «3 ч и 30 мин постобработки»
            return match.group()
        total = sum(_float(number) * factor for (number, _unit), factor in zip(parts, hours, strict=True))
        return f"{total:.10g} {self._hour}"

    def _times(self, match: re.Match[str], count: float) -> str:
        before, number, unit, after = match.groups()
        if (
            count == 1
            or not (before or after)
            or self._names_field(match.string[: match.start()].split()[-1:], "spool")
        ):
            return match.group()
        return f"{before or ''}{_float(number) * count:.10g} {unit}"

    def _names_field(self, words: Sequence[str], *only: str) -> bool:
        """Tell whether the word beside an amount says what it is of."""
        near = [word for text in words for word in words_of(text)]
        fields = self._lexicon.properties
        return any(find(one, near) for name in only or fields for one in fields[name].phrases)


def _amount(units: Iterable[str]) -> str:
    return rf"(\d+(?:[.,]\d+)?)\s?({_one_of(units)})(?![^\W\d_]|/)\.?"


def _one_of(texts: Iterable[str]) -> str:
    return "(?:" + "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) + ")"


def _float(number: str) -> float:
    return float(number.replace(",", "."))
