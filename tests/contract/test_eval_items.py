"""The contract of the test items: formed alike, keyed to facts, and on their own side of what is trained.

Nothing reads these files yet: they are written before the scorer and before the models they will judge.
"""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EVAL = ROOT / "data" / "eval"
OPEN = ("t1", "t2", "t3", "t4", "t5")
KEYS = [
    *("id", "split", "topic", "type", "fact_ids", "cluster", "question", "reference", "claims", "forbidden", "expects")
]
TYPES = {
    *("numeric", "term", "definition", "procedure", "cause", "comparison", "scenario", "reverse", "abstain", "premise"),
    *("general", "format"),
}
CHECKS = {
    *("bullets", "numbered", "sentences", "json_keys", "yes_no", "no_digits", "uppercase", "max_words", "starts_with"),
    "language",
}
CLAIMS = {
    "number": ["kind", "entity", "property", "lo", "hi", "unit", "weight"],
    "term": ["kind", "any", "weight"],
    "any_of": ["kind", "n", "terms", "weight"],
}
FAMILIES = {"number", "solvent", "polarity", "cause", "expansion", "term", "control"}
# cited by no pair, and about no material and quantity that a trained fact speaks of
UNCITED = {"mat-060", "bin-002"}


def read(name):
    return [json.loads(line) for line in (EVAL / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def cited(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    return {fact for line in lines for fact in json.loads(line)["fact_ids"]}


TRAINED, HELD_OUT = cited(ROOT / "data.jsonl"), cited(EVAL / "heldout.jsonl")
FACTS = {json.loads(line)["id"] for line in (ROOT / "data" / "facts.jsonl").read_text(encoding="utf-8").splitlines()}


@pytest.mark.parametrize("name", ["t0", *OPEN])
def test_open_questions_are_formed_alike(name):
    for item in read(name):
        where = item["id"]
        assert [key for key in item if key not in {"tol", "check"}] == KEYS, where
        assert item["split"] == name.upper(), where
        assert item["type"] in TYPES, where
        assert item["expects"] in {"answer", "abstain", "correct_premise"}, where
        assert item["question"].strip(), where
        assert item["reference"].strip(), where
        assert bool(item["claims"]) != (item["expects"] == "abstain" or item["type"] == "format"), where
        assert len(item["claims"]) <= 5, where
        assert ("check" in item) == (item["type"] == "format"), where
        if "check" in item:
            assert item["check"]["kind"] in CHECKS, where
        for claim in item["claims"]:
            assert [key for key in claim if key != "tol"] == CLAIMS[claim["kind"]], where
            assert claim["weight"] in {1, 2}, where
            if claim["kind"] == "number":
                assert claim["lo"] <= claim["hi"], where
                assert re.fullmatch(r"[a-z][a-z0-9_]*", claim["property"]), where
            else:
                terms = claim.get("any") or [t for term in claim["terms"] for t in term.split("|")]
                assert all(term.strip() == term and term for term in terms), where
            if claim["kind"] == "any_of":
                assert 1 <= claim["n"] <= len(claim["terms"]), where


def test_ids_are_unique_and_facts_exist():
    items = [item for name in ("t0", *OPEN, "choices", "minimal_pairs") for item in read(name)]
    twice = [name for name, count in Counter(item["id"] for item in items).items() if count > 1]
    assert twice == []
    assert {fact for item in items for fact in item["fact_ids"]} <= FACTS


def test_each_split_stands_on_its_own_side_of_what_is_trained():
    for item in [item for name in (*OPEN[:3], "choices", "minimal_pairs") for item in read(name)]:
        facts = set(item["fact_ids"])
        if item["split"] == "T1":
            assert facts, item["id"]
            assert facts <= TRAINED, item["id"]
        elif item["split"] in {"T2", "T3"}:
            assert facts & (HELD_OUT | UNCITED), item["id"]
    assert not (HELD_OUT | UNCITED) & TRAINED


def test_memorisation_is_asked_in_the_very_words_of_training():
    """With the keys T1 has for the same fact, so that the two can be compared."""
    pairs = {pair["prompt"]: pair for pair in lines(ROOT / "data.jsonl")}
    known = {item["cluster"]: item["claims"] for item in reversed(read("t1"))}
    items = read("t0")
    assert len(items) == 81
    for item in items:
        assert pairs[item["question"]]["response"] == item["reference"], item["id"]
        assert item["fact_ids"][0] in pairs[item["question"]]["fact_ids"], item["id"]
        assert item["cluster"] in known, item["id"]
        assert item["claims"] in [other["claims"] for other in read("t1") if other["cluster"] == item["cluster"]]


def test_there_are_enough():
    counts = {name: len(read(name)) for name in (*OPEN, "choices", "minimal_pairs")}
    wanted = {"t1": 140, "t2": 50, "t3": 30, "t4": 40, "t5": 50, "choices": 160, "minimal_pairs": 200}
    assert all(counts[name] >= count for name, count in wanted.items()), counts


def test_no_question_is_trained_or_asked_twice():
    def plain(text):
        return " ".join(re.findall(r"\w+", text.lower().replace("ё", "е")))

    asked = [plain(item["question"]) for name in (*OPEN, "choices") for item in read(name)]
    twice = [text for text, count in Counter(asked).items() if count > 1]
    assert twice == []
    trained = {plain(item["prompt"]) for path in (ROOT / "data.jsonl", EVAL / "heldout.jsonl") for item in lines(path)}
    assert not trained & set(asked)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_choices_have_one_right_answer_in_any_place():
    items = read("choices")
    for item in items:
        assert list(item) == ["id", "split", "topic", "fact_ids", "cluster", "question", "options", "answer"], item[
            "id"
        ]
        assert len(set(item["options"])) == 4, item["id"]
    places = Counter(item["answer"] for item in items)
    assert set(places) == {0, 1, 2, 3}
    assert max(places.values()) - min(places.values()) <= 5


def test_minimal_pairs_differ_in_one_place():
    for item in read("minimal_pairs"):
        assert item["family"] in FAMILIES, item["id"]
        assert (item["split"] == "control") == (item["family"] == "control") == (not item["fact_ids"]), item["id"]
        one, other = item["true"].split(), item["false"].split()
        while one and other and one[0] == other[0]:
            del one[0], other[0]
        while one and other and one[-1] == other[-1]:
            del one[-1], other[-1]
        assert one != other, item["id"]
        assert max(len(one), len(other)) <= 4, item["id"]
