"""What a print costs, computed and shown: a language model that does sums in its head gets them wrong.

material     = mass / 1000 × price of a kilogram
electricity  = power / 1000 × hours × tariff
depreciation = price of the printer / its life × hours
labour       = hours of work × rate
cost         = (material + electricity + depreciation + labour + overhead) / (1 − share of failed prints)
price        = cost × (1 + markup)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from znatok.config import Options, option
from znatok.errors import UsageError, _
from znatok.language import Phrase, find, phrase, sentences
from znatok.lexicon import Lexicon, Property, language_of, load_lexicon, of_language
from znatok.quantities import Mention, mentions

NEEDED = ("mass", "price", "hours")  # without these nothing can be computed; the rest has defaults


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

    A question about something else ends it.
    """

    def __init__(self, language: str = "ru") -> None:
        own = of_language(language)["cost"]
        self._ask, self._about = (tuple(phrase(text) for text in own[key]) for key in ("ask", "about"))
        self._currency = str(own["currency"])
        self._defaults: Mapping[str, str] = own["by_dimension"]
        plain = load_lexicon(None, language)
        fields = {
            name: Property(plain.units[row["unit"]].dimension, tuple(phrase(word) for word in row["words"]))
            for name, row in own["fields"].items()
        }
        self._lexicon: Lexicon = replace(plain, properties=fields)
        self.known: dict[str, float] = {}
        self.open = False

    def take(self, text: str) -> bool:
        """Read a line; tell whether it is about a cost, because it asks for one or gives what was asked back."""
        found = self.read(text)
        asks = self._holds(self._ask, text) or bool({"mass", "hours"} & set(found) and self._holds(self._about, text))
        if asks and not self.open:
            self.known, self.open = {}, True
        elif self.open and not asks and "?" in text:
            self.open = False
        if self.open:
            self.known |= found
        return asks or bool(self.open and found)

    @staticmethod
    def _holds(wanted: Sequence[Phrase], text: str) -> bool:
        return any(find(one, sentence.words) for one in wanted for sentence in sentences(text))

    def read(self, text: str) -> dict[str, float]:
        """Return the amounts a text names, by option, in the options' units."""
        found: dict[str, float] = {}
        for mention in mentions(self._lexicon.read(text), self._lexicon):
            name = self._field(mention)
            if name and name not in found:
                found[name] = mention.hi * mention.factor
        return found

    def _field(self, mention: Mention) -> str | None:
        if len(mention.properties) == 1:
            return next(iter(mention.properties))
        return self._defaults.get(mention.dimension or "")

    def missing(self) -> list[str]:
        """Return what must still be known, by option."""
        return [name for name in NEEDED if not self.known.get(name)]

    def answer(self) -> list[str]:
        """Return what to say: the calculation, or what is missing; a calculation ends the request."""
        if missing := self.missing():
            names: dict[str, Any] = {
                "mass": _("the mass of the part, g"),
                "price": _("the price of a kilogram"),
                "hours": _("the time of printing, h"),
            }
            return [_("To compute the cost I need: {what}.", what=", ".join(str(names[name]) for name in missing))]
        self.open = False
        return cost(CostOptions(**self.known, currency=self._currency)).text()
