"""The scorer held against the project's own items: their reference answers are right, spoilt ones are not."""

import re
from pathlib import Path

import pytest

from znatok.exam.claims import Hit, Verdict, score
from znatok.exam.items import NumberClaim, read_items
from znatok.lexicon import load_lexicon

EVAL = Path(__file__).parents[2] / "data" / "eval"
ITEMS = read_items(
    [EVAL / f"{name}.jsonl" for name in ("t0", "t1", "t2", "t3", "t4", "t5", "choices", "minimal_pairs")]
)
LEXICON = load_lexicon(EVAL / "lexicon.toml")
DOMAIN = [item for item in ITEMS.open if item.split != "T5"]


@pytest.mark.parametrize("item", ITEMS.open, ids=lambda item: item.id)
def test_the_reference_is_right(item):
    found = score(item, item.reference, LEXICON)
    assert found.verdict is Verdict.CORRECT
    assert found.recall in {None, 1.0}


def spoilt(text):
    """Return the text with every number half as large again."""

    def changed(match):
        value = float(match[0].replace(",", ".")) * 1.5 or 7.0
        return (f"{value:.2f}" if "," in match[0] else f"{value:.0f}").replace(".", ",")

    return re.sub(r"(?<!\w)\d+(?:,\d+)?(?!\w)", changed, re.sub(r"(?<=\d) (?=\d{3})", "", text))


def test_changed_numbers_are_found_out():
    numeric = [item for item in DOMAIN if any(isinstance(claim, NumberClaim) for claim in item.claims)]
    found = [score(item, spoilt(item.reference), LEXICON) for item in numeric]
    right = sum(one.verdict is Verdict.CORRECT for one in found)
    assert len(numeric) > 100
    assert right / len(numeric) < 0.1  # what is left are wide ranges and keys in which a term weighs most
    told = [
        hit
        for item, one in zip(numeric, found, strict=True)
        for claim, hit in zip(item.claims, one.hits, strict=True)
        if isinstance(claim, NumberClaim)
    ]
    assert sum(hit is Hit.RIGHT for hit in told) / len(told) < 0.1


@pytest.mark.parametrize(
    ("answer", "most"),
    [
        ("", 0.0),
        ("сопло стол PLA 200 60", 0.04),
        (" ".join(str(i) for i in range(1, 400)), 0.0),
        ("Это зависит от многих факторов: материала, настроек, принтера и так далее.", 0.02),
    ],
    ids=("empty", "soup", "every number", "talk"),
)
def test_empty_talk_does_not_pass(answer, most):
    asked = [item for item in DOMAIN if item.expects == "answer"]
    right = sum(score(item, answer, LEXICON).verdict is Verdict.CORRECT for item in asked)
    assert right / len(asked) <= most


def test_every_admission_in_the_lexicon_is_needed_by_nothing_else():
    """No reference answer to a question that can be answered counts as an admission instead of an answer."""
    wrong = [item.id for item in DOMAIN if item.expects == "answer" and score(item, item.reference, LEXICON).abstained]
    assert wrong == []
