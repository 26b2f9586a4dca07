"""The contract of the large training set: built from its sources to the byte, true to its facts, clear of the tests."""

import json
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from znatok.cli import main
from znatok.data.clean import leaks, suspicious
from znatok.data.load import read_pairs
from znatok.data.schema import Pair
from znatok.eval.dev import admits
from znatok.lexicon import load_lexicon
from znatok.verbs.data import questions_of

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "data" / "sources"
EVAL = ROOT / "data" / "eval"
TESTS = [EVAL / f"{name}.jsonl" for name in ("t1", "t2", "t3", "t4", "t5", "choices", "minimal_pairs")]
KINDS = {"direct", "reverse", "cloze", "verdict", "scenario", "compare", "steps", "explain"}


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


FACTS = {fact["id"]: fact for fact in read(ROOT / "data" / "facts.jsonl")}
TRAINED = {name for name, fact in FACTS.items() if fact["role"] == "train"}
WORDINGS = read(SOURCES / "wordings.jsonl")
ADMISSIONS = read(SOURCES / "admissions.jsonl")


def numbers(text):
    bare = re.sub(r"(?<=\d)[ \u00a0](?=\d{3}(?!\d))", "", text)
    return set(re.findall(r"\d+(?:,\d+)?", bare))


def test_every_trained_fact_is_met_in_every_form():
    met = {(row["fact_ids"][0], row["kind"]) for row in WORDINGS}
    assert {row["kind"] for row in WORDINGS} == KINDS
    for fact in TRAINED:
        assert {(fact, kind) for kind in ("direct", "reverse", "cloze", "verdict", "scenario")} <= met, fact
    counts = Counter(row["fact_ids"][0] for row in WORDINGS)
    assert min(counts.values()) >= 10
    assert set(counts) == TRAINED


def test_numbers_of_an_answer_stand_in_its_facts_or_its_question():
    """Small counts aside; the sums of worked examples are those of the facts or follow from numbers asked about."""
    loose = []
    for row in [*WORDINGS, *(row for row in ADMISSIONS if row["kind"] == "premise")]:
        known = {n for name in row["fact_ids"] for n in numbers(FACTS[name]["claim_ru"])} | numbers(row["prompt"])
        said = numbers(re.sub(r"(?m)^\s*\d+[.)]", "", row["response"]))
        extra = {n for n in said - known if n not in {"0", "1", "2", "3", "4", "5"}}
        if extra:
            loose.append((row["prompt"], sorted(extra)))
    assert len(loose) <= 0.02 * len(WORDINGS), loose[:20]


def test_no_answer_invents_where_nothing_can_be_known():
    for row in ADMISSIONS:
        if row["kind"] == "unknown":
            assert numbers(row["response"]) <= numbers(row["prompt"]) | {"3", "12"}, row["prompt"]


@pytest.mark.parametrize("name", ["wordings", "admissions", "general"])
def test_texts_are_clean(name):
    pairs = read_pairs(SOURCES / f"{name}.jsonl").pairs
    odd = [found for found in suspicious(pairs) if found.kind != "control_token"]
    assert odd == []
    prompts = Counter(pair.prompt.casefold() for pair in pairs)
    assert [text for text, count in prompts.items() if count > 1] == []


def test_facts_that_are_held_out_stand_in_no_source():
    for name in ("wordings", "admissions", "general"):
        assert {fact for row in read(SOURCES / f"{name}.jsonl") for fact in row["fact_ids"]} <= TRAINED


def test_the_large_set_is_what_its_sources_make(tmp_path):
    words = ["data", "expand", "--facts", str(ROOT / "data" / "facts.jsonl"), "--wordings", str(ROOT / "data.jsonl")]
    words += [str(SOURCES / f"{name}.jsonl") for name in ("wordings", "admissions", "general")]
    words += ["--strangers", str(SOURCES / "strangers.toml")]
    words += ["--against", *map(str, TESTS), "--out", str(tmp_path / "out.jsonl"), "--dev", str(tmp_path / "dev.jsonl")]
    assert main(words) == 0
    assert (tmp_path / "out.jsonl").read_bytes() == (ROOT / "data" / "expanded.jsonl").read_bytes()
    assert (tmp_path / "dev.jsonl").read_bytes() == (EVAL / "dev.jsonl").read_bytes()


def test_no_test_question_is_trained():
    trained = [Pair(row["prompt"], "") for row in read(ROOT / "data" / "expanded.jsonl")]
    trained += [
        Pair(row["prompt"].split("Вопрос: ")[-1].split("\n")[0], "") for row in read(ROOT / "data" / "expanded.jsonl")
    ]
    tests = [Pair(test.prompt, "") for path in TESTS for test in questions_of(path)]
    assert leaks(trained, tests) == []


def test_the_size_is_that_of_the_card():
    rows = read(ROOT / "data" / "expanded.jsonl")
    assert 1500 <= len(rows) <= 3000
    shares = Counter(row["kind"] for row in rows)
    admitting = shares["unknown"] + shares["missing"] + shares["premise"]
    assert 0.14 <= admitting / len(rows) <= 0.23
    assert shares["general"] == 220
    assert 155 <= shares["informed"] + shares["informed without answer"] <= 160


def test_invented_names_are_no_known_things():
    strangers = tomllib.loads((SOURCES / "strangers.toml").read_text(encoding="utf-8"))
    lexicon = load_lexicon(EVAL / "lexicon.toml")
    asked = " ".join(test.prompt for path in TESTS for test in questions_of(path)).casefold()
    assert len(set(strangers["names"])) == len(strangers["names"]) >= 50
    for name in strangers["names"]:
        assert not lexicon.entities_of(name), name
        assert name.casefold() not in asked, name
    rows = [row for row in read(ROOT / "data" / "expanded.jsonl") if row["origin"].endswith("invented name")]
    assert len(rows) >= 100
    for row in rows:
        (name,) = [name for name in strangers["names"] if name in row["prompt"]]
        assert name in row["response"]
        assert not row["fact_ids"]


def test_admissions_are_heard_by_the_scorer_and_plain_answers_are_not():
    """The words of admission come from these texts, written before any answer they judge."""
    lexicon = load_lexicon(None, "ru")
    heard = [admits(row["response"], lexicon) for row in ADMISSIONS if row["kind"] in {"unknown", "missing"}]
    assert sum(heard) / len(heard) > 0.85
    misheard = [admits(row["response"], lexicon) for row in WORDINGS]
    assert sum(misheard) / len(misheard) < 0.005
