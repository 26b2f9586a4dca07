"""Claims: made by inequalities alone, in both directions, with several seeds as one score an item."""

import random
import re

import pytest

from znatok.eval.stats import wilson
from znatok.eval.summary import Verdict
from znatok.exam.criteria import CRITERIA
from znatok.exam.proof import WRITTEN_BEFORE_TRAINING, gain_at_equal_length, prove
from znatok.exam.scores import Scores
from znatok.exam.table import table
from znatok.exam.text import arms_rows, markdown, rule_text


def row(arm, i, split="T1", run="", **changes):
    made = {
        "kind": "open", "id": f"{split}-{i}", "split": split, "cluster": f"{split}-{i // 2}", "type": "numeric",
        "arm": arm, "run": run,
        "recall": 0.5, "precision": None, "verdict": "partial", "contradictions": 0, "stop": "end", "cjk": False,
        "mixed_script": 0, "repetition": 0.0, "recited": False, "names_field": True, "tokens": 30, "words": 20,
        **dict.fromkeys(CRITERIA, 0.5),
    }  # fmt: skip
    return made | changes


def arms(count=40, split="T1", base=None, tuned=None, runs=("s1",)):
    draw = random.Random(0)
    rows = [row("base", i, split, **(base(i, draw) if base else {})) for i in range(count)]
    for run in runs:
        rows += [row("tuned", i, split, run, **(tuned(i, draw) if tuned else {})) for i in range(count)]
    return rows


RUNS = (("base", ""), ("tuned", "s1"))


def claim(rows, key, texts=()):
    return next(one for one in prove(rows, texts, 1).claims if one.key == key)


def recall(centre):
    return lambda _i, draw: {"recall": min(1.0, max(0.0, draw.gauss(centre, 0.2)))}


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (0.3, 0.6, Verdict.SHOWN),
        (0.6, 0.3, Verdict.WORSE),
        (0.5, 0.5, Verdict.NOT_SHOWN),
        (0.5, 0.6, Verdict.NOT_SHOWN),
    ],
)
def test_knowing_more_needs_the_bound_and_the_gain(before, after, verdict):
    found = claim(arms(80, base=recall(before), tuned=recall(after)), "P1")
    assert found.verdict is verdict
    assert found.n == 80


def test_the_base_is_taken_at_its_best():
    rows = arms(40, base=recall(0.2), tuned=recall(0.6))
    rows += [row("prompted", i, recall=0.9) for i in range(40)]
    found = claim(rows, "P1")
    assert found.a == "prompted"
    assert found.verdict is Verdict.WORSE


def test_several_seeds_are_one_score_an_item():
    rows = arms(20, tuned=lambda i, _d: {"recall": 1.0}, runs=("s1",)) + [
        row("tuned", i, run="s2", recall=0.0) for i in range(20)
    ]
    scores = Scores(rows, 1)
    assert {v for v, _c in scores.values("open", "tuned", ("T1",), lambda r: r["recall"]).values()} == {0.5}
    assert prove(rows, [], 1).runs == ("s1", "s2")


@pytest.mark.parametrize(
    ("rate", "verdict"), [(0, Verdict.SHOWN), (1, Verdict.WORSE)], ids=("no more contradictions", "more")
)
def test_contradictions(rate, verdict):
    rows = arms(40, tuned=lambda i, d: {"contradictions": rate * d.choice((0, 1, 2))})
    assert claim(rows, "P2").verdict is verdict


def test_inventing_less_is_shown_only_below_zero():
    def wrong(share):
        return lambda _i, draw: {"verdict": "incorrect" if draw.random() < share else "correct"}

    assert claim(arms(60, "T2", wrong(0.8), wrong(0.3)), "P3").verdict is Verdict.SHOWN
    assert claim(arms(60, "T2", wrong(0.5), wrong(0.5)), "P3").verdict is Verdict.NOT_SHOWN
    assert claim(arms(60, "T2", wrong(0.3), wrong(0.8)), "P3").verdict is Verdict.WORSE


def test_behaviour_is_a_rate_not_a_difference():
    cut = arms(100, tuned=lambda i, _d: {"stop": "length" if i < 3 else "end"})
    assert claim(cut, "P6 stop").verdict is Verdict.NOT_SHOWN
    assert claim(arms(100), "P6 stop").verdict is Verdict.SHOWN
    assert claim(arms(100, tuned=lambda i, _d: {"cjk": i == 5}), "P6 cjk").verdict is Verdict.NOT_SHOWN


def test_the_five_criteria_are_one_family():
    better = arms(60, tuned=lambda _i, draw: {"accuracy": draw.gauss(0.9, 0.1)})
    found = {one.key: one for one in prove(better, [], 1).claims if one.key.startswith("P8")}
    assert found["P8 accuracy"].verdict is Verdict.SHOWN
    assert {one.verdict for key, one in found.items() if key != "P8 accuracy"} == {Verdict.NOT_SHOWN}
    assert found["P8 structure"].p == 1.0


def test_a_gain_that_is_only_length_is_none():
    def longer(_i, draw):
        words = draw.randint(20, 200)
        return {"words": words, "specificity": words / 100}

    rows = arms(60, base=lambda _i, _d: {"words": 20, "specificity": 0.2}, tuned=longer)
    assert gain_at_equal_length(Scores(rows, 1), "specificity") < 0.2  # of a mean difference of about 0.9
    same = arms(60, tuned=lambda _i, _d: {"accuracy": 0.8})
    assert gain_at_equal_length(Scores(same, 1), "accuracy") == pytest.approx(0.3)


def test_prose_is_relative():
    base = {"text": "ru", "arm": "base", "run": "", "windows": [[100.0, 100], [110.0, 100], [90.0, 100]]}
    kept = {**base, "arm": "tuned", "windows": [[101.0, 100], [111.0, 100], [91.0, 100]]}
    lost = {**base, "arm": "tuned", "windows": [[110.0, 100], [121.0, 100], [99.0, 100]]}
    good, bad = (claim(arms(4), "P7 prose ru", [base, other]) for other in (kept, lost))
    assert (good.verdict, bad.verdict) == (Verdict.SHOWN, Verdict.WORSE)
    assert bad.difference.value == pytest.approx(0.1)


def test_the_same_rows_give_the_same_proof_in_any_order():
    rows = arms(30, base=recall(0.3), tuned=recall(0.6))
    one = prove(rows, [], 5)
    assert one == prove(rows, [], 5)
    assert [c.difference.value for c in one.claims] == pytest.approx(
        [c.difference.value for c in prove(rows[::-1], [], 5).claims]
    )


def test_nothing_is_dropped_from_the_tables():
    rows = arms(8) + arms(8, "T2")
    cells = {(cell.arm, cell.split) for cell in table(Scores(rows, 1))}
    assert cells == {(arm, split) for arm in ("base", "tuned") for split in ("T1", "T2")}
    text = markdown(prove(rows, [], 1), "ru")
    assert "P1 знает больше" in text
    assert "**T2**" in text


def test_a_table_says_of_how_many_questions_a_number_is():
    rows = [row(arm, i, "T4", run, recall=None if i % 2 else 0.5) for arm, run in RUNS for i in range(40)]
    of_recall = arms_rows(prove(rows, [], 1), "T4", "en", ["recall", "tokens"])
    assert [line[1] for line in of_recall] == ["n", "40", "40"]
    assert [line[2].rpartition(", ")[2] for line in of_recall[1:]] == ["n 20", "n 20"]
    assert [line[3] for line in of_recall[1:]] == ["30 [30, 30]"] * 2


def test_memorisation_is_what_the_training_words_add_for_the_same_fact():
    known = [row("tuned", i, "T1", "s1", recall=0.25 * (i % 2), cluster=f"c{i // 2}") for i in range(20)]
    learnt = [
        row("tuned", i, "T0", "s1", recall=0.625, cluster=f"c{i}") for i in range(12)
    ]  # c10 and c11 are not in T1
    cells = {(cell.split, cell.measure): cell.value for cell in table(Scores([*known, *learnt], 1))}
    assert cells["T0", "memorised"].value == pytest.approx(0.5)
    assert cells["T0", "memorised"].n == 10
    assert ("T1", "memorised") not in cells


def test_rules_are_said_in_the_readers_language():
    rules = [criterion.rule.text for criterion in WRITTEN_BEFORE_TRAINING] + [
        "Holm p < 0.05, > 0 at equal length (-0.209)"
    ]
    for rule in rules:
        assert rule_text(rule, "en") == rule
        assert not re.search("[a-z]{2}", rule_text(rule, "ru")), rule
    assert rule_text(rules[-1], "ru") == "по Холму p < 0,05, > 0 при равной длине (−0,209)"


def test_answers_that_are_all_alike_still_have_an_interval():
    """«No Chinese character in 393 answers» was 0.000 [0.000, 0.000], as if there could be none."""
    never = {str(i): (0.0, str(i // 2)) for i in range(40)}
    found = Scores([], 1).mean("x", never)
    assert (found.value, found.low, found.n) == (0.0, 0.0, 40)
    assert found.high == pytest.approx(wilson(0, 20).high)
    always = Scores([], 1).mean("x", {name: (1.0, fact) for name, (_value, fact) in never.items()})
    assert (always.value, always.high) == (1.0, 1.0)
    assert always.low == pytest.approx(1 - found.high)
