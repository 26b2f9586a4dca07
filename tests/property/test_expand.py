"""A training set built from facts: deterministic, order-free, complete, and clear of the tests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from znatok.data.clean import leaks, normalised
from znatok.data.expand import (
    Exposure,
    Fact,
    Mixture,
    Strangers,
    expand,
    read_exposures,
    read_facts,
    read_strangers,
)
from znatok.data.schema import Pair
from znatok.errors import DataError
from znatok.lexicon import phrases_of

PHRASES = phrases_of("ru")
FACTS = {f"f{i}": Fact(f"f{i}", "тема", f"Величина номер {i} равна {i * 7 + 3} мм.") for i in range(6)}
KINDS = ("direct", "direct", "direct", "verdict", "scenario", "cloze")
WORDINGS = [
    Exposure(Pair(f"{kind} {n} про величину {i} {'абвгдежз'[i] * 9}", f"Ответ {i} {n}.", "т", (f"f{i}",)), kind, "w")
    for i in range(5)
    for n, kind in enumerate(KINDS)
]
UNKNOWN = [
    Exposure(Pair(f"Что такое {word}?", "Такого не знаю.", "т"), "unknown", "a")
    for word in ("брямс", "жульк", "квазон", "тырдым", "шмурдяк")
]


def neighbours(_question):
    return [fact.claim for fact in FACTS.values()]


def built(exposures, tests=(), **rule):
    return expand(FACTS, exposures, tests, neighbours, PHRASES, Mixture(informed=5, **rule))


@given(st.randoms(use_true_random=False))
def test_the_order_of_what_is_read_changes_nothing(draw):
    mixed = [*WORDINGS, *UNKNOWN]
    draw.shuffle(mixed)
    assert built(mixed) == built([*WORDINGS, *UNKNOWN])


def test_another_seed_draws_another_order():
    one, other = built(WORDINGS), built(WORDINGS, seed=7)
    assert [e.pair.prompt for e in one.train] != [e.pair.prompt for e in other.train]


def test_every_fact_is_met_and_a_fact_without_wordings_is_made_into_some():
    made = built(WORDINGS)
    assert {name for one in made.train for name in one.pair.fact_ids} == set(FACTS)
    own = [one for one in made.train if one.pair.fact_ids == ("f5",)]
    assert {one.kind for one in own} >= {"cloze", "verdict"}
    gap = next(one for one in own if one.kind == "cloze")
    assert "___" in gap.pair.prompt
    assert gap.pair.response == FACTS["f5"].claim
    lie = [one for one in own if one.kind == "verdict" and FACTS["f5"].claim.rstrip(".") not in one.pair.prompt]
    assert lie
    assert all(one.pair.response.endswith(FACTS["f5"].claim) for one in lie)


@pytest.mark.parametrize(
    ("claim", "false"),
    [
        ("Стол для ABS греют до 100 °C.", "Стол для ABS греют до 150 °C."),
        ("Усадка PA12 равна 1,5 %.", "Усадка PA12 равна 2,3 %."),
        ("Филамент бывает 1.75 мм.", "Филамент бывает 2.63 мм."),
        ("Плотность 0,05 г.", "Плотность 0,08 г."),
        ("Сопло греют до 230–250 °C.", "Сопло греют до 345–375 °C."),
        ("Хлеб пекут 20 - 40 минут.", "Хлеб пекут 30 - 60 минут."),
        ("Одна крупинка: 1.", "Одна крупинка: 2."),
    ],
)
def test_a_false_statement_has_another_number_of_the_same_form(claim, false):
    made = expand({"f": Fact("f", "т", claim)}, [], (), neighbours, PHRASES, Mixture(informed=0))
    asked = {one.pair.prompt for one in made.train if one.kind == "verdict"}
    assert len(asked) == 2
    for statement in (claim, false):
        assert any(f"«{statement.rstrip('.')}»?" in prompt for prompt in asked)


@pytest.mark.parametrize(
    "claim",
    ["Полиамид PA12 прочен.", "Marlin 2.0.9 новее.", "Лента 24-вольтовая.", "Стоит 12 500 рублей.", "Усадка 0 %."],
)
def test_a_number_that_is_part_of_something_else_is_left_alone(claim):
    assert not expand({"f": Fact("f", "т", claim)}, [], (), neighbours, PHRASES, Mixture(informed=0)).train


def test_one_direct_wording_of_each_fact_is_kept_for_choosing():
    made = built(WORDINGS)
    assert sorted(one.pair.fact_ids[0] for one in made.dev) == [f"f{i}" for i in range(5)]
    assert not {one.pair.prompt for one in made.dev} & {one.pair.prompt for one in made.train}


def test_nothing_that_a_test_asks_is_trained():
    asked = [Pair(WORDINGS[0].pair.prompt.upper(), ""), Pair(WORDINGS[9].pair.prompt + "!", "")]
    made = built(WORDINGS, tests=asked)
    assert made.left_out["asked by a test"] == 2
    prompts = [Pair(one.pair.prompt.splitlines()[0], "") for one in made.train]
    assert leaks(prompts, asked) == []


def test_equal_questions_are_trained_once():
    twice = [*WORDINGS, Exposure(Pair(WORDINGS[3].pair.prompt.upper(), "Другой ответ.", "т", ("f0",)), "verdict", "z")]
    made = built(twice)
    prompts = [normalised(one.pair.prompt) for one in (*made.train, *made.dev)]
    assert len(prompts) == len(set(prompts))
    assert made.left_out == {"asked twice": 1}


def test_passages_hold_the_answer_or_say_that_they_do_not():
    made = built([*WORDINGS, *UNKNOWN])
    informed = [one for one in made.train if one.kind == "informed"]
    assert len(informed) == 4
    for one in informed:
        claim = FACTS[one.pair.fact_ids[0]].claim
        (line,) = [line for line in one.pair.prompt.splitlines() if line.endswith(claim)]
        assert one.pair.response.endswith(line.split(" ", 1)[0])  # «… [2]» cites the passage that answers
    (without,) = [one for one in made.train if one.kind == "informed without answer"]
    assert without.pair.response.startswith(PHRASES.absent)


def test_the_limit_holds_and_says_what_it_cost():
    made = built(WORDINGS, most=10)
    assert len(made.train) == 10
    assert made.left_out["beyond the limit"] > 0


def test_a_wording_of_an_unknown_fact_is_refused(tmp_path):
    (tmp_path / "facts.jsonl").write_text(
        '{"id": "f1", "claim": "Один."}\n{"id": "f2", "claim": "Два.", "role": "heldout"}\n'
    )
    facts = read_facts(tmp_path / "facts.jsonl")
    assert list(facts) == ["f1"]
    (tmp_path / "w.jsonl").write_text('{"prompt": "a", "response": "b", "fact_ids": ["f2"], "kind": "direct"}\n')
    with pytest.raises(DataError, match=r"w.jsonl:1: fact f2"):
        read_exposures(tmp_path / "w.jsonl", facts)


STRANGERS = Strangers(("Торвелан", "Миракс"), ("PLA", "CPE"), ("нейлон",), ("мат",), ("Не знаю, что такое {name}.",))
NAMED = [
    Exposure(Pair("Сколько греть PLA?", "200 °C.", "мат/PLA", ("f0",)), "direct", "w"),
    Exposure(Pair("Чем PLA лучше CPE?", "Дешевле.", "мат/PLA", ("f0",)), "direct", "w"),
    Exposure(Pair("PLA и Нейлон на складе. Что сушить?", "Нейлон.", "мат/PLA", ("f1",)), "scenario", "w"),
    Exposure(Pair("Цена PLA, если катушка стоит 900?", "900.", "цена", ("f2",)), "direct", "w"),
    Exposure(Pair("Как сушить CPE+ правильно?", "Долго.", "мат/CPE", ("f3",)), "direct", "w"),
]


def test_an_invented_name_takes_the_place_of_one_known_thing_only():
    made = expand(FACTS, NAMED, (), neighbours, PHRASES, Mixture(informed=0), STRANGERS)
    strangers = [one for one in made.train if one.origin.endswith("invented name")]
    assert [one.pair.prompt for one in strangers] in (["Сколько греть Торвелан?"], ["Сколько греть Миракс?"])
    (one,) = strangers
    name = one.pair.prompt.split()[-1].rstrip("?")
    assert one.pair.response == f"Не знаю, что такое {name}."
    assert one.kind == "unknown"
    assert one.pair.fact_ids == ()
    assert NAMED[0].pair.prompt in {e.pair.prompt for e in made.train}  # the known one stays beside it


def test_of_what_has_no_fact_a_tenth_is_kept_for_choosing_and_no_more_than_asked_is_trained():
    general = [Exposure(Pair(f"Вопрос {i} про {chr(1072 + i) * 7}", "Да.", "о"), "general", "g") for i in range(30)]
    made = built([*WORDINGS, *general], general=20)
    assert sum(one.kind == "general" for one in made.dev) == 3
    assert made.counts()["general"] == 20
    assert made.left_out["more of a kind than asked for"] == 7


@pytest.mark.parametrize("text", ["names = 1", 'names = ["а"]\ninstead_of = []', "не TOML", None])
def test_a_file_of_strangers_is_checked(tmp_path, text):
    path = tmp_path / "s.toml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"s\.toml"):
        read_strangers(path)
