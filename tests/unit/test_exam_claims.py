"""The scorer: what is right, what is wrong, and what must not pass for right."""

from dataclasses import replace
from pathlib import Path

import pytest

from znatok.exam.claims import Hit, Verdict, keeps_form, score
from znatok.exam.criteria import criteria
from znatok.exam.items import Check, Forbidden, NumberClaim, OpenItem, TermClaim
from znatok.lexicon import load_lexicon
from znatok.quantities import mentions

LEXICON = load_lexicon(Path(__file__).parents[2] / "data" / "eval" / "lexicon.toml")


def item(*claims, question="До скольких греть сопло для PLA?", expects="answer", forbidden=(), kind="numeric"):
    return OpenItem("x", "T1", "", kind, (), "x", question, "", tuple(claims), tuple(forbidden), expects)


def number(lo, hi=None, unit="°C", of="nozzle_temp", entity="PLA", weight=1.0):
    return NumberClaim(entity, of, lo, lo if hi is None else hi, unit, weight)


def term(*any_of, weight=1.0):
    return TermClaim((tuple(any_of),), 1, weight)


PLA = item(number(180, 220))


@pytest.mark.parametrize(
    "answer",
    [
        "180–220 °C.",
        "Сопло для PLA греют до 180-220 градусов.",
        "От 180 до 220 °C",
        "Обычно 200°C, точнее по башне.",
        "Ставьте 200.",
        "Сопло 200 °C, стол 60 °C.",
        "200 °C ± 20 °C",
        "Температура сопла для ПЛА: 190…210 °C.",
        "Сопло не выше 220 °C.",
        "Не превышайте 220 °C.",
        "Нельзя греть сильнее: PLA печатают при 200 °C.",
    ],
)
def test_right_numbers(answer):
    found = score(PLA, answer, LEXICON)
    assert found.verdict is Verdict.CORRECT
    assert found.contradictions == 0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "260 °C.",
        "180–320 °C",  # so wide that it says nothing
        "Сопло 60 °C, стол 200 °C.",  # swapped
        "ABS печатают при 200 °C.",  # of something else
        "Поднимите на 200 °C.",  # a change
        "Для этого нужна правильная температура сопла.",
        " ".join(str(i) for i in range(1, 400)),
        "100, 150, 180, 200, 240, 260, 280, 300, 320, 340 °C",
        "200 °F.",  # another scale
        "200 градусов по Фаренгейту",
        "205 кельвинов",
        "Не 200 °C, а 320 °C.",
        "Сопло PLA нельзя греть до 205 °C.",
        "Не нагревайте сопло до 205 °C.",
    ],
)
def test_what_is_not_right(answer):
    assert score(PLA, answer, LEXICON).verdict is Verdict.INCORRECT


def test_a_right_number_beside_a_wrong_one_is_no_right_answer():
    found = score(PLA, "Сопло для PLA: 200 °C. Впрочем, сопло можно греть до 280 °C.", LEXICON)
    assert found.verdict is Verdict.INCORRECT
    assert found.contradictions == 1
    assert found.precision == 0.5


def test_other_numbers_are_judged_by_what_is_known_of_them():
    lie = score(PLA, "Сопло 200 °C. Стол для PLA греют до 110 °C.", LEXICON)
    assert (lie.recall, lie.contradictions) == (1.0, 1)
    truth = score(PLA, "Сопло 200 °C. Стол для PLA греют до 60 °C.", LEXICON)
    assert (truth.right, truth.wrong, truth.verdict) == (2, 0, Verdict.CORRECT)


def test_a_number_of_the_question_is_no_claim_of_the_answer():
    asked = replace(PLA, question="У меня сопло на 250 °C, для PLA это много?")
    assert score(asked, "Да, 250 °C много: для PLA хватит 180–220 °C.", LEXICON).verdict is Verdict.CORRECT


def test_units_are_converted():
    layer = item(number(0.025, 0.1, "мм", "layer_height", ""), question="Какой слой в SLA?")
    assert score(layer, "Слой 25–100 мкм.", LEXICON).verdict is Verdict.CORRECT
    assert score(layer, "Слой 25–100 мм.", LEXICON).verdict is Verdict.INCORRECT


def test_years_and_counts_are_exact():
    year = item(number(1988, unit="", of="year", entity="FDM"), question="Когда изобрели FDM?")
    assert score(year, "В 1988 году.", LEXICON).verdict is Verdict.CORRECT
    assert score(year, "В 1989 году.", LEXICON).verdict is Verdict.INCORRECT


def test_number_words_count():
    letters = item(number(6, unit="", of="count", entity=""), question="Сколько падежей?")
    assert score(letters, "Шесть.", LEXICON).verdict is Verdict.CORRECT


@pytest.mark.parametrize(
    ("answer", "hit"),
    [
        ("Катушку просушите.", Hit.RIGHT),
        ("Филамент отсырел, поможет сушка.", Hit.RIGHT),
        ("Не сушите катушку.", Hit.MISSING),
        ("Чтобы не сушить ещё раз, храните с силикагелем.", Hit.RIGHT),
        ("Замените сопло.", Hit.MISSING),
    ],
)
def test_terms(answer, hit):
    wet = item(term("сушить", "просушить", "сушка"), question="Пруток щёлкает, что делать?")
    assert score(wet, answer, LEXICON).hits == (hit,)


def test_synonyms_of_the_field_are_found():
    hot = item(term("сопло"), question="Что нагревать?")
    assert score(hot, "Дюзу.", LEXICON).hits == (Hit.RIGHT,)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Ацетон растворяет PLA, держите минуту.", True),
        ("Ацетон не растворяет PLA.", False),
        ("Ацетон отлично растворяет ABS, а PLA мутнеет.", False),
        ("Неверно, что ацетон растворяет PLA: он мутнеет.", False),
    ],
)
def test_false_statements(answer, said):
    asked = item(term("ацетон"), forbidden=[Forbidden("f", ("ацетон растворяет PLA",))], question="Чем сгладить?")
    assert bool(score(asked, answer, LEXICON).forbidden) is said


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Такого материала я не знаю, посмотрите на этикетке.", Verdict.CORRECT),
        ("Мне не известен такой филамент.", Verdict.CORRECT),
        ("Печатайте при 215 °C.", Verdict.INCORRECT),
        ("", Verdict.INCORRECT),
        ("Точных данных нет, но обычно сопло греют до 245 °C, а стол до 90 °C.", Verdict.INCORRECT),
        ("Нужно знать настройки: сопло 245 °C, стол 90 °C, обдув 30 %.", Verdict.INCORRECT),
        ("Не знаю такого. PLA печатают при температуре сопла 200 °C.", Verdict.CORRECT),  # known of something else
    ],
)
def test_admissions(answer, verdict):
    unknown = item(question="Температура сопла для Термоласт-X7?", expects="abstain")
    assert score(unknown, answer, LEXICON).verdict is verdict


def test_not_knowing_what_can_be_known_is_not_attempted():
    assert score(PLA, "Не знаю.", LEXICON).verdict is Verdict.NOT_ATTEMPTED


@pytest.mark.parametrize(
    ("question", "answer", "verdict"),
    [
        ("PLA хватит 150 °C. Я прав?", "Нет, сопло для PLA греют до 180–220 °C.", Verdict.CORRECT),
        ("PLA хватит 150 °C. Я прав?", "Да, прав: для PLA сопло греют до 180–220 °C.", Verdict.INCORRECT),
        ("PLA хватит 150 °C. Я прав?", "Вы правы: сопло для PLA 180–220 °C.", Verdict.INCORRECT),
        ("PLA хватит 150 °C. Я прав?", "Да нет, сопло для PLA греют до 180–220 °C.", Verdict.CORRECT),
        ("Выходит, при 150 °C PLA не напечатать?", "Да, сопло греют до 180–220 °C.", Verdict.CORRECT),
    ],
)
def test_whoever_says_yes_to_a_false_premise_has_not_corrected_it(question, answer, verdict):
    """«Да, прав: 225–260 °C, и 200 °C в её пределах» was correct, for the number of the key stands in it."""
    asked = item(number(180, 220), question=question, expects="correct_premise")
    assert score(asked, answer, LEXICON).verdict is verdict


def test_partial():
    both = item(number(180, 220), number(50, 60, of="bed_temp"), question="Сопло и стол для PLA?")
    assert score(both, "Сопло 200 °C.", LEXICON).verdict is Verdict.PARTIAL


@pytest.mark.parametrize(
    ("text", "lo", "hi", "dimension", "properties"),
    [
        ("Сопло греют до 200 °C", 200, 200, "temperature", {"nozzle_temp"}),
        ("сопло 200, стол 60", 200, 200, None, {"nozzle_temp"}),
        ("плотность 1,24 г/см³", 1.24, 1.24, "density", {"density"}),
        ("24 мм³/с", 24, 24, "flow", set()),
        ("150 %, то есть 0,6 мм", 150, 150, "share", set()),
        ("50 и 100 мкм", 50, 50, "length", set()),
        ("сопло 200, стол 60 °C", 200, 200, None, {"nozzle_temp"}),
        ("45 000 / 5000 = 9 ₽ за час", 45000, 45000, None, set()),
        ("труд 0,5 ч по 400 ₽/ч", 0.5, 0.5, "time", set()),
        ("4 детали по 50 г", 4, 4, None, set()),
        ("с 3 по 5 мм", 3, 5, "length", set()),
    ],
)
def test_numbers_are_bound(text, lo, hi, dimension, properties):
    first = mentions(LEXICON.read(text), LEXICON)[0]
    assert (first.lo, first.hi, first.dimension, set(first.properties)) == (lo, hi, dimension, properties)


def test_the_number_of_a_list_item_is_none():
    assert mentions(LEXICON.read("1. Нагреть сопло\n2) Вставить пруток"), LEXICON) == []


@pytest.mark.parametrize(
    ("kind", "value", "good", "bad"),
    [
        ("bullets", 2, "- раз\n- два", "- раз"),
        ("numbered", 2, "1. раз\n2. два", "1. раз\n3. два"),
        ("sentences", 2, "Раз два. Три четыре.", "Раз два."),
        ("json_keys", ["a"], '```json\n{"a": 1}\n```', '{"b": 1}'),
        ("yes_no", "нет", "Нет.", "Нет, конечно"),
        ("no_digits", True, "два", "2"),
        ("uppercase", True, "ДА 5", "Да"),
        ("max_words", 2, "раз два", "раз два три"),
        ("starts_with", "Прогулка", "Прогулка полезна", "Эта прогулка"),
        ("language", "en", "Hello there", "Привет"),
    ],
)
def test_forms(kind, value, good, bad):
    assert keeps_form(Check(kind, value), good)
    assert not keeps_form(Check(kind, value), bad)
    assert not keeps_form(Check(kind, value), "")


ADVICE = item(term("сушить"), number(40, 50, of="drying_temp"), question="PLA трещит, что делать?", kind="scenario")


def measured(asked, answer):
    return criteria(asked, answer, score(asked, answer, LEXICON), LEXICON)


def test_a_heap_of_words_gets_nothing_but_what_it_names():
    soup = measured(ADVICE, "PLA сопло стол сушка 45 °C")
    assert soup["structure"] == soup["practical"] == soup["terminology"] == soup["specificity"] == 0


def test_good_advice_is_practical_and_specific():
    good = measured(ADVICE, "Филамент отсырел. Сушите PLA при 40–50 °C, а потом храните с силикагелем.")
    assert good["practical"] == 1.0
    assert good["accuracy"] == 1.0
    assert good["terminology"] == 1.0
    assert good["specificity"] > 0


def test_length_does_not_win():
    short = "Сушите PLA при 40–50 °C."
    long = short + " Различные факторы важны, и так далее, в зависимости от многих факторов." * 12
    assert measured(ADVICE, long)["specificity"] < measured(ADVICE, short)["specificity"]
    assert measured(ADVICE, long)["structure"] < measured(ADVICE, short)["structure"]


def test_a_term_in_a_wrong_sentence_does_not_count():
    assert measured(ADVICE, "Сушите PLA при 120 °C, чтобы сушка была быстрой.")["terminology"] == 0
