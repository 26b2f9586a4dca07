"""Is an answer right? Decided by rules alone: same answer, same verdict, on every machine, and each can be looked up.

An answer is held against the item's key (recall), and all its numbers against what is known of the things it names
(precision), so that neither a list of everything nor a confident invention passes. The verdicts are SimpleQA's with
partial answers kept apart: arXiv 2411.04368.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from znatok.eval import metrics
from znatok.exam.items import CHECKS, Check, NumberClaim, OpenItem, TermClaim
from znatok.language import Sentence, Word, can_be_denied, find, normalise, phrase, sentences
from znatok.lexicon import Lexicon
from znatok.quantities import Mention, border_between, figures, mentions

ENOUGH, TOO_LITTLE = 0.6, 0.3  # recall from which an answer is right, and below which it is wrong
WIDE = 2.0  # a range wider than so many keys says nothing
RIVALS = 6  # so many other numbers that may be meant: whoever lists everything has said nothing
DENIES = 3  # words before a statement in which a negation turns it round


class Verdict(StrEnum):
    """What an answer is."""

    CORRECT = "correct"
    PARTIAL = "partial"
    INCORRECT = "incorrect"
    NOT_ATTEMPTED = "not attempted"


class Hit(StrEnum):
    """What an answer makes of one claim."""

    RIGHT = "right"
    PARTIAL = "partial"
    WRONG = "wrong"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Scored:
    """What an answer is worth.

    Attributes:
        recall: weighted share of the key that the answer holds, 0 to 1; None where the key is an admission.
        hits: of each claim, in the key's order.
        right: numbers that are right, the key's or by what is known of what they are said of.
        wrong: numbers that are wrong.
        unverified: numbers nothing is known of.
        forbidden: ids of the false statements made.
        abstained: it says that it does not know, and names no number of its own.
        spoilt: the sentences, normalised, that hold a wrong number.
        verdict: all in one word.
    """

    recall: float | None
    hits: tuple[Hit, ...]
    right: int
    wrong: int
    unverified: int
    forbidden: tuple[str, ...]
    abstained: bool
    verdict: Verdict
    spoilt: frozenset[str] = frozenset()

    @property
    def contradictions(self) -> int:
        """Return how many numbers and statements are wrong."""
        return self.wrong + len(self.forbidden)

    @property
    def precision(self) -> float | None:
        """Return the share of right among the numbers that could be judged; None without any."""
        judged = self.right + self.wrong
        return self.right / judged if judged else None


def score(item: OpenItem, answer: str, lexicon: Lexicon) -> Scored:
    """Judge one answer."""
    if item.check is not None:
        kept = keeps_form(item.check, answer)
        hit = Hit.RIGHT if kept else Hit.MISSING
        return Scored(float(kept), (hit,), 0, 0, 0, (), False, Verdict.CORRECT if kept else Verdict.INCORRECT)
    read = lexicon.read(answer)
    numbers = mentions(read, lexicon)
    judged: dict[int, Hit] = {}
    hits = tuple(
        _number(claim, item, numbers, judged, lexicon)
        if isinstance(claim, NumberClaim)
        else _terms(claim, read, lexicon)
        for claim in item.claims
    )
    _known(item, numbers, judged, lexicon)
    told = [hit for hit in judged.values() if hit is not Hit.MISSING]
    wrong = sum(hit is Hit.WRONG for hit in told)
    said = tuple(entry.id for entry in item.forbidden if any(_says(text, read, lexicon) for text in entry.phrases))
    abstained = any(lexicon.has("abstention", sentence.words) for sentence in read) and not _named_of_its_own(
        item, numbers, judged, lexicon
    )
    recall = _recall(item, hits)
    return Scored(
        recall=recall,
        hits=hits,
        right=len(told) - wrong,
        wrong=wrong,
        unverified=len(numbers) - len(told),
        forbidden=said,
        abstained=abstained,
        verdict=Verdict.INCORRECT
        if _agrees(item, read, lexicon)
        else _verdict(item, recall, wrong + len(said), abstained),
        spoilt=frozenset(read[numbers[i].sentence].text for i, hit in judged.items() if hit is Hit.WRONG),
    )


def _recall(item: OpenItem, hits: Sequence[Hit]) -> float | None:
    worth = {Hit.RIGHT: 1.0, Hit.PARTIAL: 0.5}
    total = sum(claim.weight for claim in item.claims)
    got = sum(claim.weight * worth.get(hit, 0.0) for claim, hit in zip(item.claims, hits, strict=True))
    return got / total if total else None


def _verdict(item: OpenItem, recall: float | None, contradictions: int, abstained: bool) -> Verdict:
    if item.expects == "abstain":  # admitting is right; whatever else is said of what does not exist is made up
        return Verdict.CORRECT if abstained and not contradictions else Verdict.INCORRECT
    found = recall or 0.0
    if contradictions:
        return Verdict.INCORRECT
    if found >= ENOUGH:
        return Verdict.CORRECT
    if abstained:
        return Verdict.NOT_ATTEMPTED
    return Verdict.INCORRECT if found < TOO_LITTLE else Verdict.PARTIAL


def _named_of_its_own(item: OpenItem, numbers: Sequence[Mention], judged: Mapping[int, Hit], lexicon: Lexicon) -> bool:
    """Tell whether an answer names an amount that is neither the question's nor known to be right."""
    given = figures(item.question, lexicon)
    return any(
        mention.dimension is not None
        and not (mention.delta or mention.denied or {mention.lo, mention.hi} <= given)
        and judged.get(index) not in {Hit.RIGHT, Hit.PARTIAL}
        for index, mention in enumerate(numbers)
    )


def _agrees(item: OpenItem, read: Sequence[Sentence], lexicon: Lexicon) -> bool:
    """Tell whether an answer to a false premise begins with yes; to «not … ?» a yes may mean either."""
    if item.expects != "correct_premise" or not read:
        return False
    asked = sentences(item.question)
    if asked and lexicon.has("negation", asked[-1].words):
        return False
    return lexicon.begins("agreement", read[0].words) and not lexicon.has("negation", read[0].words[1:2])


# Numbers


def _number(
    claim: NumberClaim, item: OpenItem, numbers: Sequence[Mention], judged: dict[int, Hit], lexicon: Lexicon
) -> Hit:
    unit = lexicon.unit(claim.unit)
    about = lexicon.entities_of(claim.entity)
    best = Hit.MISSING
    attempts: list[tuple[int, Hit, bool]] = []
    for index, mention in enumerate(numbers):
        bound = claim.property in mention.properties
        if not _may_be(mention, claim, unit.dimension, about, lexicon, bound=bound):
            continue
        attempts.append((index, _compared(mention, claim, unit.factor, lexicon), bound))
    for _index, hit, _bound in attempts:
        best = min(best, hit, key=_WORTH.index)
    given = figures(item.question, lexicon)
    if sum(hit is Hit.WRONG and not bound for _index, hit, bound in attempts) > RIVALS:
        best = Hit.WRONG
        attempts = [(index, Hit.WRONG, bound) for index, _hit, bound in attempts]
    for index, hit, bound in attempts:
        repeated = {numbers[index].lo, numbers[index].hi} <= given
        if hit in {Hit.RIGHT, Hit.PARTIAL}:
            judged[index] = hit
        elif (
            index not in judged
            and not repeated
            and (best is Hit.WRONG or (bound and numbers[index].dimension))
            and _is_known(claim, lexicon)
        ):
            judged[index] = Hit.WRONG
    return best


_WORTH = [Hit.RIGHT, Hit.PARTIAL, Hit.WRONG, Hit.MISSING]


def _is_known(claim: NumberClaim, lexicon: Lexicon) -> bool:
    """Tell whether a number that misses this claim is wrong: any that has its unit, where the unit says what it is."""
    return bool(claim.unit) or claim.property in lexicon.properties


def _may_be(
    mention: Mention, claim: NumberClaim, dimension: str, about: frozenset[str], lexicon: Lexicon, *, bound: bool
) -> bool:
    if mention.denied or (mention.delta and "increase" not in claim.property and "step" not in claim.property):
        return False
    if claim.unit and mention.dimension not in {dimension, None}:
        return False
    if not claim.unit and mention.dimension not in {None, "years"}:
        return False
    if mention.properties and not bound and claim.property in lexicon.properties:
        return False
    return not (about and mention.entities and not about & mention.entities)


def _compared(mention: Mention, claim: NumberClaim, factor: float, lexicon: Lexicon) -> Hit:
    scale = mention.factor / factor if mention.dimension is not None else 1.0
    lo, hi = mention.lo * scale, mention.hi * scale
    rule = lexicon.tolerances.get(claim.property)
    share = rule.around(max(abs(claim.lo), abs(claim.hi))) if rule else _default(claim)
    around = claim.tol if claim.tol is not None else share
    low, high = claim.lo - around - 1e-9, claim.hi + around + 1e-9
    if hi < low or lo > high:
        return Hit.WRONG
    width = hi - lo
    if width > WIDE * (claim.hi - claim.lo) + 2 * around + 1e-9:
        return Hit.WRONG
    inside = min(hi, high) - max(lo, low)
    if low <= (lo + hi) / 2 <= high and (width <= 0 or inside >= width / 2):
        return Hit.RIGHT
    return Hit.PARTIAL


def _default(claim: NumberClaim) -> float:
    """A count, a year or a code is exact; what has a unit may be rounded by two parts in a hundred."""
    return 0.02 * max(abs(claim.lo), abs(claim.hi)) if claim.unit else 0.0


def _known(item: OpenItem, numbers: Sequence[Mention], judged: dict[int, Hit], lexicon: Lexicon) -> None:
    """Judge the numbers that belong to no claim by the windows of what they are said of."""
    asked = lexicon.entities_of(item.question)
    given = figures(item.question, lexicon)
    for index, mention in enumerate(numbers):
        plain = not (mention.delta or mention.denied)
        if index in judged or not plain or len(mention.properties) != 1 or {mention.lo, mention.hi} <= given:
            continue
        about = mention.entities or asked
        (name,) = mention.properties
        if len(about) != 1 or mention.dimension is None:
            continue
        window = lexicon.windows.get(next(iter(about)), {}).get(name)
        if window is not None:
            outside = mention.hi * mention.factor < window[0] or mention.lo * mention.factor > window[1]
            judged[index] = Hit.WRONG if outside else Hit.RIGHT


# Terms and statements


def _terms(claim: TermClaim, read: Sequence[Sentence], lexicon: Lexicon) -> Hit:
    found = sum(any(_named(text, read, lexicon) for text in group) for group in claim.groups)
    if found >= claim.n:
        return Hit.RIGHT
    return Hit.PARTIAL if found else Hit.MISSING


def _named(text: str, read: Sequence[Sentence], lexicon: Lexicon) -> bool:
    """Tell whether a term is named and not denied; a term that is itself a denial is found as it stands."""
    wanted = _phrase(text, lexicon)
    for sentence in read:
        for start, _end in find(wanted, sentence.words):
            if not _denied(sentence.words, start, lexicon):
                return True
    return False


def _denied(words: Sequence[Word], start: int, lexicon: Lexicon) -> bool:
    """Tell whether «не» stands right before a verb or an adjective, and not for a purpose or a condition."""
    before = words[max(0, start - 1) : start]
    if not before or not lexicon.has("denial", before) or not can_be_denied(words[start].text.lower()):
        return False
    return not lexicon.has("spared", words[max(0, start - 6) : start])


def _says(text: str, read: Sequence[Sentence], lexicon: Lexicon) -> bool:
    """Tell whether a false statement is made: its words in one clause, in order, and no negation by them."""
    wanted = _phrase(text, lexicon)
    own = lexicon.count("negation", [*_words(text)])
    for sentence in read:
        for start, end in find(wanted, sentence.words, gap=1):
            if "," not in normalise(text) and border_between(sentence, start, end - 1):
                continue
            span = sentence.words[max(0, start - DENIES) : end + 1]
            if lexicon.count("negation", span) <= own:
                return True
    return False


def _words(text: str) -> list[Word]:
    return [word for sentence in sentences(text) for word in sentence.words]


def _phrase(text: str, lexicon: Lexicon) -> tuple[frozenset[str], ...]:
    """Return a phrase whose words are found by their synonyms too."""
    if "=" in text:
        return phrase(text)
    return tuple(word.forms for sentence in lexicon.read(text) for word in sentence.words)


# Forms


def keeps_form(check: Check, answer: str) -> bool:
    """Tell whether an answer has the form it was asked for."""
    return FORMS[check.kind](answer.strip(), check.value)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _bullets(text: str, count: int) -> bool:
    lines = _lines(text)
    return len(lines) == count and all(re.match(r"[-*•–—]\s*\S", line) for line in lines)


def _numbered(text: str, count: int) -> bool:
    lines = _lines(text)
    return len(lines) == count and all(re.match(rf"{i}[.)]\s*\S", line) for i, line in enumerate(lines, 1))


def _language(text: str, wanted: str) -> bool:
    share = metrics.cyrillic_share(text)
    return share is not None and (share < 0.1 if wanted == "en" else share > 0.9)


FORMS: dict[str, Callable[[str, Any], bool]] = {
    "bullets": _bullets,
    "numbered": _numbered,
    "sentences": lambda text, count: sum(len(sentences(line)) for line in _lines(text)) == count,
    "json_keys": lambda text, keys: _json_keys(text) == sorted(keys),
    "yes_no": lambda text, word: text.casefold().strip(" .!»«\"'") == word.casefold(),
    "no_digits": lambda text, _: bool(text) and not re.search(r"\d", text),
    "uppercase": lambda text, _: any(c.isalpha() for c in text) and text == text.upper(),
    "max_words": lambda text, most: 0 < metrics.word_count(text) <= most,
    "starts_with": lambda text, start: text.lstrip("«\"'*- ").casefold().startswith(start.casefold()),
    "language": _language,
}
assert tuple(FORMS) == CHECKS


def _json_keys(text: str) -> list[str] | None:
    bare = re.sub(r"^```(?:json)?\s*|\s*```$", "", text)
    try:
        found = json.loads(bare)
    except (ValueError, RecursionError):
        return None
    return sorted(found) if isinstance(found, dict) else None
