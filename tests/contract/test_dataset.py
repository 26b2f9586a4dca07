"""The contract of the project's own data: every number stands in a cited fact, and no test fact is trained.

The rules are functions that return complaints, so that the last tests can prove that each of them is able to fail.
"""

import ast
import copy
import json
import operator
import re
from pathlib import Path

import pytest

from znatok.data.clean import duplicates, leaks, suspicious
from znatok.data.load import read_pairs
from znatok.data.questions import read_questions
from znatok.data.schema import Pair

ROOT = Path(__file__).parents[2]
FILES = {"train": ROOT / "data.jsonl", "heldout": ROOT / "data" / "eval" / "heldout.jsonl"}
KEYS = {"prompt", "response", "topic", "fact_ids", "source"}
TOPICS = {"basics", "technologies", "materials", "postprocessing", "cost", "troubleshooting"}
LONGEST_ANSWER = 700

SEED_PAIRS = [  # the two records that the document the project grew from shows
    (
        "Что такое 3D печать?",
        "3D-печать (аддитивное производство) — это процесс создания трёхмерных объектов послойным нанесением материала "
        "на основе цифровой модели.",
    ),
    (
        "Какие виды 3D печати существуют?",
        "Основные виды: FDM (моделирование методом наплавления), SLA (стереолитография), SLS (селективное лазерное "
        "спекание), PolyJet (струйная печать фотополимером).",
    ),
]
SEED_QUESTIONS = [
    "Что такое 3д печать?",
    "Какие виды 3d печати существуют?",
    "Какие методы постобработки можно применить к PLA детали?",
    "Назови три ключевых различия между PLA и ABS филаментами",
    "Как рассчитать стоимость одной напечатанной детали?",
]

NAMES = re.compile(
    r"\d[DДд]\b"  # 3D, 2D
    r"|\bPA\s?-?\d+(?:/\d+)?"  # polyamides
    r"|\b95A\b|\b3MF\b"  # a hardness in a trade name, a file format
    r"|\b[GM]\d+(?:\s[ECS]\d+)*|\bE0 C8 S210"  # G-code with its arguments
    r"|\bP-?\d+",  # a grit, counted below
    re.IGNORECASE,
)
NUMBER = re.compile(r"\d+(?: \d{3})*(?:[.,]\d+)?")
MARKDOWN = re.compile(r"\*\*|__|`|\]\(|\||^#|^\s*[-*•]\s", re.MULTILINE)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def facts():
    return {fact["id"]: fact for fact in read(ROOT / "data" / "facts.jsonl")}


@pytest.fixture(scope="module")
def records():
    return {role: read(path) for role, path in FILES.items()}


@pytest.fixture(scope="module")
def pairs():
    return {role: read_pairs(path) for role, path in FILES.items()}


# The rules


def numbers(text):
    """Return the numbers that a text states: not those in names, not those of a list's items."""
    text = re.sub(r"(?m)^\d+\. ", "", text)
    grits = {float(grit) for grit in re.findall(r"\bP-?(\d+)", text)}
    found = NUMBER.findall(NAMES.sub(";", text))
    return grits | {float(number.replace(" ", "").replace(",", ".")) for number in found}


def leaves(value):
    """Return the numbers in a fact's ``values``."""
    if isinstance(value, (dict, list)):
        return set().union(*(leaves(item) for item in (value.values() if isinstance(value, dict) else value)))
    return {float(value)} if isinstance(value, (int, float)) and not isinstance(value, bool) else set()


def evaluate(node):
    operators = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
    if isinstance(node, ast.Constant):
        return node.value
    return operators[type(node.op)](evaluate(node.left), evaluate(node.right))


def sum_problems(record):
    """Complain where a ``calc`` line's result is not what its left side gives, rounded as it is written."""
    found = []
    for line in record.get("calc", []):
        left, result = line.split("=")
        decimals = len(result.partition(".")[2])
        if abs(evaluate(ast.parse(left, mode="eval").body) - float(result)) > 0.5 * 10**-decimals + 1e-9:
            found.append(f"wrong sum {line}")
    return found


def number_problems(record, facts):
    """Complain where a number of the answer stands neither in a cited fact, nor in the prompt, nor in a sum."""
    known = numbers(record["prompt"])
    for name in record["fact_ids"]:
        known |= numbers(facts[name]["claim_ru"]) | leaves(facts[name]["values"])
    for line in record.get("calc", []):
        known |= numbers(line.replace("=", " = "))
    return [f"number {number:g} comes from nowhere" for number in sorted(numbers(record["response"]) - known)]


def fact_problems(record, facts, role):
    """Complain where a cited fact is unknown, or belongs to the other set or to none, or its source is not named."""
    found = [f"unknown fact {name}" for name in record["fact_ids"] if name not in facts]
    if found or not record["fact_ids"]:
        return found or ["no fact cited"]
    found = [
        f"fact {name} is {facts[name]['role']}, not {role}"
        for name in record["fact_ids"]
        if facts[name]["role"] != role
    ]
    titles = "; ".join(dict.fromkeys(facts[name]["source_title"] for name in record["fact_ids"]))
    if set(record["source"].split("; ")) != set(titles.split("; ")):
        found.append(f"source {record['source']!r} is not that of the cited facts, {titles!r}")
    return found


def form_problems(record, role):
    """Complain about keys, types and the form of the texts."""
    found = []
    allowed = KEYS | ({"calc"} if role == "train" else set())
    if not KEYS <= record.keys() <= allowed:
        found.append(f"keys {sorted(record)}")
    texts = [*(record[key] for key in ("prompt", "response", "topic", "source")), *record["fact_ids"]]
    if not all(isinstance(text, str) for text in [*texts, *record.get("calc", [])]):
        found.append("a value that is no text")
    if record["topic"] not in TOPICS:
        found.append(f"topic {record['topic']}")
    if not re.search(r"[.!?\w]$", record["prompt"]) or record["prompt"] != record["prompt"].strip():
        found.append("the prompt's end")
    if not record["response"].endswith((".", "!", "?")) or record["response"] != record["response"].strip():
        found.append("the answer's end")
    if MARKDOWN.search(record["prompt"]) or MARKDOWN.search(record["response"]):
        found.append("Markdown")
    if len(record["response"]) > LONGEST_ANSWER:
        found.append("a long answer")
    return found


def problems(record, facts, role):
    """Return every complaint about one record."""
    found = form_problems(record, role) + fact_problems(record, facts, role)
    return found or sum_problems(record) + number_problems(record, facts)


# The data


@pytest.mark.parametrize("role", FILES)
def test_every_record_keeps_the_rules(records, facts, role):
    wrong = {line: found for line, record in enumerate(records[role], 1) if (found := problems(record, facts, role))}
    assert wrong == {}


@pytest.mark.parametrize("role", FILES)
def test_the_reader_takes_every_record_and_finds_nothing_odd(records, pairs, role):
    data = pairs[role]
    assert len(data.pairs) == len(records[role])
    assert (data.problems, suspicious(data.pairs), duplicates(data.pairs)) == ((), [], [])


def test_the_test_set_is_not_trained(pairs):
    assert leaks(pairs["train"].pairs, pairs["heldout"].pairs) == []
    trained = {fact for pair in pairs["train"].pairs for fact in pair.fact_ids}
    assert trained.isdisjoint(fact for pair in pairs["heldout"].pairs for fact in pair.fact_ids)


def test_the_set_begins_with_the_seed_documents_pairs(pairs):
    assert [(pair.prompt, pair.response) for pair in pairs["train"].pairs[:2]] == SEED_PAIRS


def test_the_five_questions_are_the_seed_documents():
    assert [question.text for question in read_questions(ROOT / "data" / "eval" / "questions.txt")] == SEED_QUESTIONS


def test_topics_are_covered(records):
    topics = [record["topic"] for record in records["train"]]
    assert len(topics) >= 130
    assert {topic for topic in TOPICS if topics.count(topic) >= 15} == TOPICS
    assert len(records["heldout"]) >= 40


def test_every_trained_and_every_held_out_fact_is_used(records, facts):
    for role, rows in records.items():
        cited = {name for record in rows for name in record["fact_ids"]}
        assert cited == {name for name, fact in facts.items() if fact["role"] == role}


def test_facts_are_whole(facts):
    keys = {"id", "topic", "claim_ru", "claim_en", "values", "source_title", "source_url", "rank", "role"}
    for fact in facts.values():
        assert fact.keys() - {"superseded_by"} == keys
        assert fact["role"] in {"train", "heldout", "superseded"}
        assert fact["rank"] in {"A", "B"}
        assert fact["source_url"].startswith(("https://", "http://"))


def test_a_superseded_fact_names_what_replaces_it(facts):
    for name, fact in facts.items():
        assert ("superseded_by" in fact) == (fact["role"] == "superseded"), name
        assert all(facts[other]["role"] != "superseded" for other in replacements(fact)), name


def replacements(fact):
    named = fact.get("superseded_by") or []
    return [named] if isinstance(named, str) else named


def test_the_cost_example_adds_up(records):
    (record,) = [r for r in records["train"] if "cst-011" in r["fact_ids"] and len(r.get("calc", [])) == 7]
    steps = [50 / 1000 * 1500, 0.15 * 5 * 6, 40_000 / 5000 * 5, 0.5 * 400]
    whole = sum(steps)
    with_rejects = whole / (1 - 0.1)
    expected = [*steps, whole, with_rejects, with_rejects * 1.3]
    assert [float(line.split("=")[1]) for line in record["calc"]] == pytest.approx(expected)
    for line, value in zip(record["response"].splitlines(), expected, strict=True):
        shown = f"{value:g}".replace(".", ",")
        assert line.endswith(f" = {shown} ₽.")


@pytest.mark.parametrize("card", ["data_card.md", "data_card.ru.md"])
def test_the_data_card_counts_right(records, facts, card):
    text = (ROOT / "docs" / card).read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)`[^|]*\| ([\d |]+) \|$", text, re.MULTILINE))
    for topic in TOPICS:
        ours = {role: [record for record in rows_ if record["topic"] == topic] for role, rows_ in records.items()}
        cited = {name for record in ours["train"] for name in record["fact_ids"]}
        mean = sum(len(record["response"]) for record in ours["train"]) / len(ours["train"])
        assert rows[topic] == f"{len(ours['train'])} | {len(ours['heldout'])} | {len(cited)} | {mean:.0f}"
    for role in ("train", "heldout", "superseded"):
        assert str(sum(fact["role"] == role for fact in facts.values())) in text


# The rules can fail


def changed(record, **values):
    return {**copy.deepcopy(record), **values}


@pytest.fixture(scope="module")
def example(records, facts):
    """Return the cost example, which has everything: numbers, sums, several facts."""
    (record,) = [r for r in records["train"] if len(r.get("calc", [])) == 7]
    assert problems(record, facts, "train") == []
    return record


@pytest.mark.parametrize("role", FILES)
def test_any_changed_number_is_caught(records, facts, role):
    tried = 0
    for record in records[role]:
        for match in NUMBER.finditer(NAMES.sub(lambda name: " " * len(name[0]), record["response"])):
            if re.fullmatch(r"\d+\. ", record["response"][match.start() : match.end() + 2]):
                continue  # the number of a list's item
            text = record["response"]
            wrong = changed(record, response=f"{text[: match.start()]}98765,4{text[match.end() :]}")
            assert problems(wrong, facts, role) == ["number 98765.4 comes from nowhere"]
            tried += 1
    assert tried > 20


def test_any_wrong_sum_is_caught(records, facts):
    for record in records["train"]:
        for place, line in enumerate(record.get("calc", [])):
            left, result = line.split("=")
            calc = [*record["calc"]]
            calc[place] = f"{left}={float(result) + 1:g}"
            assert f"wrong sum {calc[place]}" in problems(changed(record, calc=calc), facts, "train")


def test_a_missing_sum_is_caught(records, facts):
    (record,) = [r for r in records["train"] if "67/335=0.2" in r.get("calc", [])]
    assert "number 300 comes from nowhere" in problems(changed(record, calc=[]), facts, "train")


@pytest.mark.parametrize("role", ["heldout", "superseded"])
def test_a_fact_of_another_role_is_caught(example, facts, role):
    other = next(name for name, fact in facts.items() if fact["role"] == role)
    wrong = changed(example, fact_ids=[*example["fact_ids"], other])
    assert f"fact {other} is {role}, not train" in problems(wrong, facts, "train")
    assert "fact cst-011 is train, not heldout" in problems(example, facts, "heldout")


@pytest.mark.parametrize(
    "values",
    [
        {"fact_ids": ["mat-999"]},
        {"fact_ids": []},
        {"fact_ids": ["cst-002"]},  # the source names more than that
        {"topic": "cooking"},
        {"note": "a key that nobody knows"},
        {"prompt": "Сколько стоит? "},
        {"prompt": "Сколько стоит:"},
        {"response": "Оборвано на полу"},
        {"response": "**Жирно.**"},
        {"response": "- пункт."},
        {"response": "а" * LONGEST_ANSWER + "."},
    ],
)
def test_each_rule_of_form_can_fail(example, facts, values):
    assert problems(changed(example, **values), facts, "train")


def test_a_copy_and_a_leak_are_caught(pairs):
    train, test = pairs["train"].pairs, pairs["heldout"].pairs
    again = Pair(prompt=train[9].prompt.upper() + "?", response=train[9].response, fact_ids=train[9].fact_ids)
    assert [found.second for found in duplicates((*train, again))] == [len(train) + 1]
    assert {found.part for found in leaks((*train, test[0]), test)} == {"both", "facts"}
