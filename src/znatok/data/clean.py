"""What is worth a second look in a data file: odd characters, copies, and test questions that were trained on.

Nothing here changes data. Two texts are copies when they are equal after case, white space, Unicode composition and
«ё» are evened out; they are similar when the Jaccard index of their character 5-grams is at least 4/5. The search
misses no similar pair: in any fixed order of grams, two sets that similar share one among the first n - ⌈4n/5⌉ + 1 of
each (Bayardo, Ma and Srikant, 2007), and with the rarest grams first few texts meet there. Ten thousand pairs take
seconds.
"""

import re
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from znatok.data.schema import Pair, shown

GRAM = 5
SKETCH_BITS = 1024  # a few times the grams of a usual answer
LONG_ANSWER = 40  # characters; shorter answers («Да, на 10 °C.») may well be equal by themselves

PATTERNS = {
    "no_break_space": re.compile("[\u00a0\u2007\u202f]"),
    # a zero-width joiner is at home between emoji; the last range is invisible tags, which can carry hidden text
    "invisible": re.compile(
        "[\u00ad\u180e\u200b\u200c\u2060-\u2064\ufeff\U000e0000-\U000e007f]|(?<=\\w)\u200d|\u200d(?=\\w)"
    ),
    "bidi": re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"),
    "replacement": re.compile("\ufffd"),
    "private_use": re.compile("[\ue000-\uf8ff]"),
    "control_token": re.compile(r"<\|[^|<>\s]{1,40}\|>"),
}
WORD = re.compile(r"[^\W\d_]+")
LATIN_TWINS = frozenset("aceijkopsxyABCEHIJKMOPSTXY")
CYRILLIC_TWINS = frozenset("асеіјкорѕхуАВСЕНІЈКМОРЅТХУ")


@dataclass(frozen=True, slots=True)
class Finding:
    """Characters of one kind in one text: where, how many, and the first of them in its surroundings, escaped."""

    line: int
    key: str
    kind: str
    sample: str
    count: int


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A record that repeats an earlier one in its ``part``: prompt, response or both; similarity 1 is equality."""

    first: int
    second: int
    part: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Leak:
    """A test record that the training set gives away, by a ``part`` as in :class:`Duplicate` or by its facts."""

    train: int
    test: int
    part: str
    similarity: float
    fact_ids: tuple[str, ...] = ()


def suspicious(pairs: Iterable[Pair]) -> list[Finding]:
    """Find decomposed letters, invisible and look-alike characters, and texts that look like control tokens."""
    return [
        Finding(pair.line, key, kind, sample, count)
        for pair in pairs
        for key, text in (("prompt", pair.prompt), ("response", pair.response))
        for kind, sample, count in _oddities(text)
    ]


def _oddities(text: str) -> Iterator[tuple[str, str, int]]:
    if text.isascii() and "<|" not in text:
        return
    spans = {kind: [match.span() for match in pattern.finditer(text)] for kind, pattern in PATTERNS.items()}
    spans["mixed_script"] = [match.span() for match in WORD.finditer(text) if _mixes_scripts(match[0])]
    if not unicodedata.is_normalized("NFC", text):
        spans["decomposed"] = [(i, i + 1) for i, c in enumerate(text) if unicodedata.combining(c)] or [(0, 1)]
    for kind, found in spans.items():
        if found:
            start, end = found[0]
            yield kind, shown(text[max(0, start - 10) : end + 10]), len(found)


def _mixes_scripts(word: str) -> bool:
    """Tell «сoпло» with a Latin o from «PLAшный»: all letters of one script have a twin in the other."""
    latin = {c for c in word if c.isascii()}
    cyrillic = {c for c in word if "\u0400" <= c <= "\u052f"}
    return bool(latin and cyrillic) and (latin <= LATIN_TWINS or cyrillic <= CYRILLIC_TWINS)


def other_script(pairs: Sequence[Pair]) -> list[int]:
    """Return the lines of answers that are mostly written in another script than most answers are."""
    scripts = [_script(pair.response) for pair in pairs]
    usual = _most(Counter(script for script in scripts if script))
    return [pair.line for pair, script in zip(pairs, scripts, strict=True) if script not in {"", usual}]


def _script(text: str) -> str:
    """Return the script of most letters, as their Unicode names begin with it; nothing for a text without letters."""
    scripts: Counter[str] = Counter()
    for letter, count in Counter(c for c in text if c.isalpha()).items():
        scripts[unicodedata.name(letter, "").partition(" ")[0]] += count
    return _most(scripts)


def _most(counts: Counter[str]) -> str:
    return max(counts, key=lambda name: counts[name], default="")


def normalised(text: str) -> str:
    """Return the form in which copies are equal: composed, case folded, ё as е, white space as single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().replace("ё", "е").split())


def comparable(pair: Pair) -> dict[str, str]:
    """Return the normalised texts by which a pair is compared: its prompt, and its answer unless it is short."""
    texts = {"prompt": normalised(pair.prompt), "response": normalised(pair.response)}
    return texts if len(texts["response"]) >= LONG_ANSWER else {"prompt": texts["prompt"]}


def duplicates(pairs: Sequence[Pair]) -> list[Duplicate]:
    """Find records that repeat an earlier one; without those named ``second`` there are none.

    A pair made in memory has no line and is named by its place, counted from 1.
    """
    lines = [pair.line or place for place, pair in enumerate(pairs, 1)]
    texts = [comparable(pair) for pair in pairs]
    matches = {part: _earlier_matches([text.get(part, "") for text in texts]) for part in ("prompt", "response")}
    found = []
    for place, line in enumerate(lines):
        by = {part: matches[part][place] for part in matches if place in matches[part]}
        if by:
            first, part, similarity = _named(by)
            found.append(Duplicate(lines[first], line, part, similarity))
    return found


def leaks(train: Sequence[Pair], test: Sequence[Pair]) -> list[Leak]:
    """Find test records whose prompt or answer (equal or similar) or whose facts stand in the training set too."""
    train_lines = [pair.line or place for place, pair in enumerate(train, 1)]
    train_texts, test_texts = [comparable(p) for p in train], [comparable(p) for p in test]
    matches = {
        part: _known_matches([t.get(part, "") for t in train_texts], [t.get(part, "") for t in test_texts])
        for part in ("prompt", "response")
    }
    holders: dict[str, int] = {}
    for place, pair in enumerate(train):
        for fact in pair.fact_ids:
            holders.setdefault(fact, place)
    found = []
    for place, pair in enumerate(test):
        line = pair.line or place + 1
        by = {part: matches[part][place] for part in matches if place in matches[part]}
        if by:
            first, part, similarity = _named(by)
            found.append(Leak(train_lines[first], line, part, similarity))
        if shared := tuple(fact for fact in pair.fact_ids if fact in holders):
            found.append(Leak(train_lines[holders[shared[0]]], line, "facts", 1.0, shared))
    return found


def _named(by: dict[str, tuple[int, float]]) -> tuple[int, str, float]:
    """Merge the matches of prompt and answer into one; a match of the prompt goes first."""
    if len({place for place, _similarity in by.values()}) == 1 and len(by) == 2:
        place = by["prompt"][0]
        return place, "both", min(similarity for _place, similarity in by.values())
    part = "prompt" if "prompt" in by else "response"
    return by[part][0], part, by[part][1]


def _earlier_matches(texts: Sequence[str]) -> dict[int, tuple[int, float]]:
    """Match places with the first place before them that holds an equal or similar text."""
    first: dict[str, int] = {}
    for place, text in enumerate(texts):
        first.setdefault(text, place)
    first.pop("", None)
    distinct, near = list(first), dict[int, tuple[int, float]]()
    for i, j, similarity in similar(distinct, skip=lambda i, j: j in near):
        near[j] = (first[distinct[i]], similarity)
    found = {first[distinct[j]]: match for j, match in near.items()}
    found |= {place: (first[text], 1.0) for place, text in enumerate(texts) if text and first[text] != place}
    return found


def _known_matches(known: Sequence[str], texts: Sequence[str]) -> dict[int, tuple[int, float]]:
    """Match places of ``texts`` with the first place of ``known`` that holds an equal or similar text."""
    first: dict[str, int] = {}
    for place, text in enumerate(known):
        first.setdefault(text, place)
    first.pop("", None)
    distinct = list(first)
    distinct += sorted({text for text in texts if text and text not in first})
    near: dict[str, tuple[int, float]] = {}
    size = len(first)
    for i, j, similarity in similar(distinct, skip=lambda i, j: not i < size <= j or distinct[j] in near):
        near[distinct[j]] = (first[distinct[i]], similarity)
    near |= {text: (place, 1.0) for text, place in first.items()}
    return {place: near[text] for place, text in enumerate(texts) if text in near}


def similar(texts: Sequence[str], skip: Callable[[int, int], bool]) -> Iterator[tuple[int, int, float]]:
    """Yield places i < j of similar texts with their Jaccard index, i rising for each j.

    Args:
        texts: Distinct normalised texts.
        skip: Asked before two texts are compared; it may know that their similarity no longer matters.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_grams(text))
    rank = {gram: place for place, gram in enumerate(sorted(counts, key=lambda gram: (counts[gram], gram)))}
    documents = [array("L", sorted(rank[gram] for gram in _grams(text))) for text in texts]
    sketches = [_sketch(document) for document in documents]
    holders: defaultdict[int, list[int]] = defaultdict(list)
    for j, document in enumerate(documents):
        prefix = document[: len(document) // 5 + 1]  # n - ⌈4n/5⌉ + 1 of them
        size, sketch, grams = len(document), sketches[j], set(document)
        candidates = set[int]().union(*(holders[gram] for gram in prefix))
        # A Jaccard index of 4/5 and more means that at most 1/9 of both sizes together is not common
        close = [i for i in candidates if 9 * (sketch ^ sketches[i]).bit_count() <= size + len(documents[i])]
        for i in sorted(close):
            if skip(i, j):
                continue
            union = len(grams.union(documents[i]))
            common = size + len(documents[i]) - union
            if 5 * common >= 4 * union:
                yield i, j, common / union
        for gram in prefix:
            holders[gram].append(j)


def _sketch(document: Iterable[int]) -> int:
    """Return a bit set in which two sets of grams never differ by more bits than they differ by grams."""
    bits = 0
    for gram in document:
        bits |= 1 << gram % SKETCH_BITS
    return bits


def _grams(text: str) -> set[str]:
    return {text[start : start + GRAM] for start in range(max(1, len(text) - GRAM + 1))}
