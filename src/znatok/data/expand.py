"""From facts and hand-written wordings to a training set in which every fact is met in many forms.

A model that saw a statement once in one wording may recite it and still not know it: knowledge becomes extractable only
when it was met in different forms (Allen-Zhu and Li, arXiv 2309.14316), evenly by fact rather than by length
(Mecklenburg et al., arXiv 2404.00213). So the set is built by fact:

* wordings: questions about a fact, written by people: direct, reversed, to be completed, to be judged, scenarios;
* made from the facts themselves where no wording covers them: a gap to fill, a true and a false statement;
* with passages: a question under a few passages of which one answers it, or none (RAFT, arXiv 2403.10131);
* admissions: invented things, missing data, false premises (R-Tuning, NAACL 2024);
* strangers: a question about a known thing with an invented one in its place, so that it is the name that decides;
* general: everything else, so that it is not forgotten.

The result depends on the texts and the seed only, not on the order of files or lines. Nothing that a test asks stands
in it: what is equal or similar to a test question is left out and counted.
"""

import hashlib
import math
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from znatok.data.clean import leaks, normalised
from znatok.data.lines import JsonLines
from znatok.data.schema import Pair, parse_record, shown_path
from znatok.errors import DataError

Neighbours = Callable[[str], Sequence[str]]
"""Passages near a question, best first."""

QUANTITY = re.compile(
    r"""(?<![\w.,-])(?<!\d\s)                                 # no part of a word or of another number
        (?P<low>\d+(?:[.,]\d+)?)
        (?:(?P<dash>\s?[–-]\s?)(?P<high>\d+(?:[.,]\d+)?))?
        (?![\w-]|[.,]\d|\s?[–-]\s?\d|\s\d{3}(?!\d))""",
    re.VERBOSE,
)
"""A number or a range, but not in a name (PA12, 24-volt), a version, a date or a number of several groups."""
DEV_KIND = "direct"  # of each fact's wordings of this kind one is kept for choosing between recipes
DEV_OTHERS = ("unknown", "missing", "general")  # and one in ten of these, which have no fact
ASKED = (
    "direct",
    "scenario",
    "verdict",
)  # kinds of questions in which a known thing can be replaced by an invented one


@dataclass(frozen=True, slots=True)
class Fact:
    """A single statement that can be checked."""

    id: str
    topic: str
    claim: str


@dataclass(frozen=True, slots=True)
class Exposure:
    """A pair with where it comes from: its kind of wording, and the file it stood in or what made it."""

    pair: Pair
    kind: str
    origin: str

    def to_json(self) -> dict[str, Any]:
        """Return the record that is written."""
        return {
            "prompt": self.pair.prompt,
            "response": self.pair.response,
            "topic": self.pair.topic,
            "fact_ids": list(self.pair.fact_ids),
            "kind": self.kind,
            "origin": self.origin,
        }


@dataclass(frozen=True, slots=True)
class Mixture:
    """How much of what: at most so many pairs of a kind; one in ``empty`` of those with passages lacks the answer."""

    strangers: int = 100
    general: int = 220
    informed: int = 160
    empty: int = 5
    passages: int = 3
    most: int = 3000
    seed: int = 42


@dataclass(frozen=True)
class Expanded:
    """The training set, the wordings kept for choosing a recipe, and how many were left out and why."""

    train: tuple[Exposure, ...]
    dev: tuple[Exposure, ...]
    left_out: Mapping[str, int]

    def counts(self) -> dict[str, int]:
        """Return how many pairs there are of each kind, the most first."""
        return dict(Counter(one.kind for one in self.train).most_common())


@dataclass(frozen=True, slots=True)
class Phrases:
    """How a language puts what is made from facts: see ``[expand]`` in ``lexicons``."""

    fill: tuple[str, ...]
    judge: tuple[str, ...]
    right: str
    wrong: str
    knowledge: str
    absent: str


@dataclass(frozen=True, slots=True)
class Strangers:
    """Invented names, what they may stand for, in which topics, and how one admits not to know them.

    A question that holds a word beginning with one of ``unless`` is left alone: it speaks of more than the name.
    """

    names: tuple[str, ...] = ()
    instead_of: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()


def read_strangers(path: Path) -> Strangers:
    """Read invented names from TOML: ``names``, ``instead_of``, ``unless``, ``topics``, ``answers`` with ``{name}``.

    Raises:
        DataError: the file can't be read, or one of the lists is missing or empty.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        lists = {key: tuple(str(word) for word in table[key]) for key in Strangers.__dataclass_fields__}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError("{path}: can't be read: {why}", path=shown_path(path), why=error) from error
    if not all(lists.values()) or not all("{name}" in answer for answer in lists["answers"]):
        raise DataError(
            "{path}: expected names, instead_of, unless, topics and answers, each answer with {name}",
            path=shown_path(path), name="{name}",
        )  # fmt: skip
    return Strangers(**lists)


def read_facts(path: Path) -> dict[str, Fact]:
    """Read the facts that are to be trained, by id; a record with another ``role`` than ``train`` is left alone.

    Raises:
        DataError: the file can't be read, or a record has no id or no statement.
    """
    facts = {}
    for number, record in JsonLines(path).objects():
        claim = record.get("claim_ru", record.get("claim"))
        if not isinstance(record.get("id"), str) or not isinstance(claim, str) or not claim.strip():
            raise DataError('{path}:{line}: expected a fact with "id" and "claim"', path=shown_path(path), line=number)
        if record.get("role", "train") == "train":
            facts[record["id"]] = Fact(record["id"], str(record.get("topic", "")), claim.strip())
    return facts


def read_exposures(path: Path, facts: Mapping[str, Fact]) -> list[Exposure]:
    """Read hand-written pairs; ``kind`` says what wording it is, and every fact named must be one that is trained.

    Raises:
        DataError: a record is bad or names a fact that is not trained.
    """
    found = []
    for number, record in JsonLines(path).objects():
        pair = parse_record(record, path, number)
        unknown = [name for name in pair.fact_ids if name not in facts]
        if unknown:
            raise DataError(
                "{path}:{line}: fact {fact} is not among the facts that are trained",
                path=shown_path(path), line=number, fact=unknown[0],
            )  # fmt: skip
        topic = pair.topic or (facts[pair.fact_ids[0]].topic if pair.fact_ids else "general")
        pair = Pair(pair.prompt, pair.response, topic, pair.fact_ids, number)
        found.append(Exposure(pair, str(record.get("kind", "pair")), path.name))
    return found


def expand(
    facts: Mapping[str, Fact],
    exposures: Iterable[Exposure],
    tests: Sequence[Pair],
    neighbours: Neighbours,
    phrases: Phrases,
    rule: Mixture,
    strangers: Strangers = Strangers(),
) -> Expanded:
    """Build the training set.

    Args:
        facts: what is to be known.
        exposures: hand-written pairs of all kinds.
        tests: questions that must not be trained.
        neighbours: finds distracting passages.
        phrases: of the language.
        rule: how much of what.
        strangers: invented names.
    """
    left_out: Counter[str] = Counter()
    known = _unique(exposures, left_out)
    known = _untested(known, tests, left_out)
    dev, rest = _kept_for_choosing(known, rule.seed)
    covered = {name for one in rest for name in one.pair.fact_ids}
    rest = _at_most(rest, "general", rule.general, rule.seed, left_out)
    rest += [made for fact in facts.values() if fact.id not in covered for made in _made(fact, phrases, rule.seed)]
    rest += _unique(_untested(_estranged(rest, strangers, rule), tests, left_out), left_out)
    informed = _informed(facts, rest, neighbours, phrases, rule)
    train = sorted([*rest, *informed], key=lambda one: _draw(rule.seed, one.pair.prompt))
    left_out["beyond the limit"] = max(0, len(train) - rule.most)
    return Expanded(tuple(train[: rule.most]), tuple(dev), dict(+left_out))


def _unique(exposures: Iterable[Exposure], left_out: Counter[str]) -> list[Exposure]:
    """Keep one of equal questions, the one whose text comes first: not the one whose file was read first."""
    found: dict[str, Exposure] = {}
    for one in sorted(exposures, key=lambda one: (normalised(one.pair.prompt), one.pair.prompt, one.pair.response)):
        if normalised(one.pair.prompt) in found:
            left_out["asked twice"] += 1
        else:
            found[normalised(one.pair.prompt)] = one
    return list(found.values())


def _untested(exposures: list[Exposure], tests: Sequence[Pair], left_out: Counter[str]) -> list[Exposure]:
    """Leave out what is equal or similar to a test question; facts may be shared, that is what tests are for."""
    bare = [Pair(one.pair.prompt, "", line=place) for place, one in enumerate(exposures, 1)]
    given: set[int] = set()
    while True:  # a leak names one training record of several that may give a test away
        found = leaks([pair for pair in bare if pair.line not in given], [Pair(t.prompt, "") for t in tests])
        if not found:
            break
        given |= {leak.train for leak in found}
    left_out["asked by a test"] += len(given)
    return [one for place, one in enumerate(exposures, 1) if place not in given]


def _kept_for_choosing(exposures: list[Exposure], seed: int) -> tuple[list[Exposure], list[Exposure]]:
    """Take what a recipe is chosen by: a direct wording of each fact that has three, a tenth of what has no fact."""
    by_fact: defaultdict[str, list[Exposure]] = defaultdict(list)
    for one in exposures:
        if one.kind == DEV_KIND and one.pair.fact_ids:
            by_fact[one.pair.fact_ids[0]].append(one)
    kept = [
        min(wordings, key=lambda one: _draw(seed, "dev", one.pair.prompt))
        for _fact, wordings in sorted(by_fact.items())
        if len(wordings) >= 3
    ]
    for kind in DEV_OTHERS:
        others = sorted((one for one in exposures if one.kind == kind), key=lambda one: _draw(seed, one.pair.prompt))
        kept += others[: len(others) // 10]
    chosen = {one.pair.prompt for one in kept}
    return kept, [one for one in exposures if one.pair.prompt not in chosen]


def _at_most(exposures: list[Exposure], kind: str, count: int, seed: int, left_out: Counter[str]) -> list[Exposure]:
    """Keep ``count`` of a kind, by lot."""
    of_kind = sorted((one for one in exposures if one.kind == kind), key=lambda one: _draw(seed, one.pair.prompt))
    spare = {one.pair.prompt for one in of_kind[count:]}
    left_out["more of a kind than asked for"] += len(spare)
    return [one for one in exposures if one.pair.prompt not in spare]


def _made(fact: Fact, phrases: Phrases, seed: int) -> list[Exposure]:
    """Make a gap to fill, a true and a false statement from a fact with a number that nobody put in other words."""
    numbers = [match for match in QUANTITY.finditer(fact.claim) if _raised(match["low"]) != match["low"]]
    if not numbers:
        return []
    match = numbers[_number(seed, fact.id) % len(numbers)]
    before, after = fact.claim[: match.start()], fact.claim[match.end() :]
    wrong = _raised(match["low"]) + (match["dash"] + _raised(match["high"]) if match["high"] else "")
    gap, false = f"{before}___{after}", f"{before}{wrong}{after}"
    fill, judge = (options[_number(seed, fact.id) % len(options)] for options in (phrases.fill, phrases.judge))
    made = [
        ("cloze", fill.format(text=gap), fact.claim),
        ("verdict", judge.format(text=fact.claim.rstrip(".")), phrases.right.format(text=fact.claim)),
        ("verdict", judge.format(text=false.rstrip(".")), phrases.wrong.format(text=fact.claim)),
    ]
    return [
        Exposure(Pair(prompt, response, fact.topic, (fact.id,)), kind, "made from the fact")
        for kind, prompt, response in made
    ]


def _raised(number: str) -> str:
    """Return a number half as large again, with as many decimals and the same mark before them."""
    mark = "," if "," in number else "."
    whole, _mark, decimals = number.partition(mark)
    raised = math.ceil(int(whole + decimals) * 1.5)
    if not decimals:
        return str(raised)
    digits = str(raised).zfill(len(decimals) + 1)
    return digits[: -len(decimals)] + mark + digits[-len(decimals) :]


def _estranged(exposures: Sequence[Exposure], strangers: Strangers, rule: Mixture) -> list[Exposure]:
    """Put an invented name where a question names one known thing; the answer is that it isn't known."""
    if not strangers.names:
        return []
    known = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, strangers.instead_of))})(?![\w+-])")
    more = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, strangers.unless))})", re.IGNORECASE)
    named = [
        one
        for one in exposures
        if one.kind in ASKED
        and one.pair.topic.startswith(strangers.topics)
        and len(set(known.findall(one.pair.prompt))) == 1
        and not more.search(one.pair.prompt)
    ]
    made = []
    for place, one in enumerate(_drawn(named, rule.strangers, rule.seed)):
        name = strangers.names[place % len(strangers.names)]
        answer = strangers.answers[_number(rule.seed, one.pair.prompt) % len(strangers.answers)]
        pair = Pair(known.sub(name, one.pair.prompt), answer.format(name=name), one.pair.topic)
        made.append(Exposure(pair, "unknown", f"{one.origin}, invented name"))
    return made


def _informed(
    facts: Mapping[str, Fact], exposures: Sequence[Exposure], neighbours: Neighbours, phrases: Phrases, rule: Mixture
) -> list[Exposure]:
    """Put passages before questions: the answer's own among others, and for one in ``empty`` only others."""
    asked = [one for one in exposures if one.kind in {"direct", "scenario", "reverse"} and one.pair.fact_ids]
    unknown = [one for one in exposures if one.kind == "unknown"]
    without = min(len(unknown), rule.informed // rule.empty)
    found = []
    for one in _drawn(asked, rule.informed - without, rule.seed):
        gold = facts[one.pair.fact_ids[0]].claim
        others = _others(neighbours(one.pair.prompt), {facts[name].claim for name in one.pair.fact_ids}, rule.passages)
        place = _number(rule.seed, one.pair.prompt) % (len(others) + 1)
        passages = [*others[:place], gold, *others[place:]]
        found.append(_with_passages(one, passages, f"{one.pair.response} [{place + 1}]", phrases, "informed"))
    for one in _drawn(unknown, without, rule.seed):
        passages = _others(neighbours(one.pair.prompt), set(), rule.passages + 1)
        if passages:
            answer = f"{phrases.absent} {one.pair.response}"
            found.append(_with_passages(one, passages, answer, phrases, "informed without answer"))
    return found


def _others(passages: Iterable[str], gold: set[str], count: int) -> list[str]:
    return [passage for passage in passages if passage not in gold][:count]


def _with_passages(one: Exposure, passages: Sequence[str], answer: str, phrases: Phrases, kind: str) -> Exposure:
    listed = "\n".join(f"[{i}] {passage}" for i, passage in enumerate(passages, 1))
    prompt = phrases.knowledge.format(passages=listed, question=one.pair.prompt)
    return Exposure(Pair(prompt, answer, one.pair.topic, one.pair.fact_ids), kind, one.origin)


def _drawn(exposures: Sequence[Exposure], count: int, seed: int) -> list[Exposure]:
    """Take ``count`` of them by lot, one of a fact before the second of any."""
    lots = sorted(exposures, key=lambda one: _draw(seed, "lot", one.pair.prompt))
    turn: Counter[tuple[str, ...]] = Counter()
    ranked = []
    for place, one in enumerate(lots):
        ranked.append((turn[one.pair.fact_ids[:1]] if one.pair.fact_ids else 0, place, one))
        turn[one.pair.fact_ids[:1]] += 1
    return [one for _rank, _place, one in sorted(ranked, key=lambda row: row[:2])[:count]]


def _draw(seed: int, *texts: str) -> str:
    """Return a key that orders texts by lot: the same for the same seed, whatever their order was."""
    return hashlib.sha256("\x00".join((str(seed), *texts)).encode()).hexdigest()


def _number(seed: int, text: str) -> int:
    return int(_draw(seed, text)[:12], 16)
