"""The five things the project set out to improve, each as a number with its guard against gaming.

Accuracy, specificity, structure, practical value, terminology: none is a count that a longer answer wins by itself, a
sentence that says nothing of its subject (a heap of key words) counts for none of them, and only right numbers and
sentences without a wrong one do. ``docs/evaluation.md`` gives the formulas.
"""

import re
from collections.abc import Sequence

from znatok.eval import metrics
from znatok.exam.claims import Hit, Scored, score
from znatok.exam.items import OpenItem, TermClaim
from znatok.language import Sentence, is_directive, is_predicate
from znatok.lexicon import Lexicon

CRITERIA = ("accuracy", "specificity", "structure", "practical", "terminology")
BRIEF = 40  # words: an answer shorter than this is counted as so long, or a bare number would be the most specific
LONG_PARAGRAPH = 120  # words
DEMANDING = {"scenario", "cause", "procedure", "premise"}  # questions that ask what to do
LISTING = {"procedure", "cause", "comparison"}  # questions whose answer has parts
_HEADING = re.compile(r"^\s*(?:#{1,6}\s|\*\*[^*]+\*\*:?\s*$)", re.MULTILINE)
_POINT = re.compile(r"^\s*(?:[-*•–—]|\d{1,2}[.)])\s+\S", re.MULTILINE)
_END = re.compile(r"[.!?…:;)»\"'`\]}°%]\s*$")


def criteria(item: OpenItem, answer: str, scored: Scored, lexicon: Lexicon) -> dict[str, float | None]:
    """Return the five numbers of an answer; None where the question does not ask for one.

    Args:
        item: the question and its key; one that expects an admission has no criteria.
        answer: the text.
        scored: what :func:`znatok.exam.claims.score` made of it.
        lexicon: the language and the field.
    """
    if item.expects == "abstain" or item.check is not None:
        return dict.fromkeys(CRITERIA)
    saying = [sentence for sentence in lexicon.read(answer) if says_something(sentence, lexicon)]
    return {
        "accuracy": _accuracy(scored),
        "specificity": _specificity(answer, saying, scored, lexicon),
        "structure": _structure(item, answer, saying),
        "practical": _practical(item, saying, lexicon) if item.type in DEMANDING else None,
        "terminology": _terminology(item, saying, scored, lexicon, answer),
    }


def says_something(sentence: Sentence, lexicon: Lexicon) -> bool:
    """Tell a statement from a heap of words: by its predicate, a dash or a colon, or by the small words in it."""
    words = sentence.words
    if lexicon.language == "ru":
        said = any(is_predicate(word.text.lower()) for word in words) or re.search(r"\s-\s|:", sentence.text)
        return bool(said) and len(words) > 2
    return len(words) > 2 and lexicon.count("conjunctions", words) / len(words) > 0.05


def _accuracy(scored: Scored) -> float:
    if scored.forbidden:
        return 0.0
    return (scored.recall or 0.0) * (1.0 if scored.precision is None else scored.precision)


def _specificity(answer: str, saying: Sequence[Sentence], scored: Scored, lexicon: Lexicon) -> float:
    """Right numbers and different things named, per 100 words, less what is vague."""
    names = {name for sentence in saying for _place, name in lexicon.mentions(sentence.words)}
    vague = sum(lexicon.count("vague", sentence.words) for sentence in saying)
    right = scored.right if saying else 0
    return 100 * max(0, right + len(names) - vague - scored.wrong) / max(BRIEF, metrics.word_count(answer))


def _structure(item: OpenItem, answer: str, saying: Sequence[Sentence]) -> float:
    """Share of what holds: it ends, has no heap of headings, no endless paragraph, and parts where parts are asked."""
    if not saying:
        return 0.0
    points = len(_POINT.findall(answer))
    kept = [
        _END.search(answer) is not None,
        len(_HEADING.findall(answer)) <= 1 + metrics.word_count(answer) // 150,
        all(metrics.word_count(part) <= LONG_PARAGRAPH for part in re.split(r"\n\s*\n", answer)),
        metrics.repetition(answer) < 0.2,
    ]
    if item.type in LISTING:
        kept.append(points >= 2 or len(saying) >= 2)
    else:
        kept.append(points != 1 and points <= 8)
    return sum(kept) / len(kept)


def _practical(item: OpenItem, saying: Sequence[Sentence], lexicon: Lexicon) -> float:
    """Recall of the key within the sentences that tell what to do."""
    advising = [
        sentence.text
        for sentence in saying
        if lexicon.has("advice", sentence.words) or any(is_directive(word.text.lower()) for word in sentence.words)
    ]
    found = score(item, "\n".join(advising), lexicon)
    return 0.0 if found.forbidden else (found.recall or 0.0)


def _terminology(
    item: OpenItem, saying: Sequence[Sentence], scored: Scored, lexicon: Lexicon, answer: str
) -> float | None:
    """Share of the key's terms in sentences without a wrong number, times the share of letters in their own script."""
    terms = [i for i, claim in enumerate(item.claims) if isinstance(claim, TermClaim)]
    if not terms:
        return None
    text = "\n".join(sentence.text for sentence in saying if sentence.text not in scored.spoilt)
    found = score(item, text, lexicon)
    named = sum(found.hits[i] is Hit.RIGHT for i in terms) / len(terms)
    own = metrics.cyrillic_share(answer, lexicon.allowed) if lexicon.language == "ru" else 1.0
    return named * (own if own is not None else 0.0)
