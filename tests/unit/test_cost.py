"""What a print costs: the worked examples of the facts, and requests in words."""

import json
from pathlib import Path

import pytest

from znatok.cli import main
from znatok.cost import CostOptions, CostRequest, computed, cost
from znatok.errors import UsageError

FACTS = Path(__file__).parents[2] / "data" / "facts.jsonl"
VALUES = {f["id"]: f["values"] for f in map(json.loads, FACTS.read_text(encoding="utf-8").splitlines())}
ROUBLES = {
    "mass": 50,
    "price": 1500,
    "hours": 5,
    "power": 150,
    "tariff": 6,
    "printer": 40000,
    "labour": 0.5,
    "rate": 400,
}


def test_the_rouble_example_of_the_facts():
    made = cost(CostOptions(**ROUBLES, failed=10, markup=30))
    fact = VALUES["cst-011"]
    assert made.expenses == pytest.approx(fact["subtotal"])
    assert made.cost == pytest.approx(fact["cost"])
    assert made.price == pytest.approx(fact["price"])
    assert [line.value for line in made.lines[:4]] == pytest.approx([75, 4.5, 40, 200])


def test_the_dollar_examples_of_the_facts():
    made = cost(CostOptions(mass=85, price=22, hours=4, power=150, tariff=0.15, printer=2500, life=5000, currency="$"))
    assert [round(line.value, 2) for line in made.lines[:3]] == [1.87, 0.09, 2.00]
    assert round(made.price, 2) == 3.96


def test_every_formula_shown_gives_its_value():
    made = cost(CostOptions(**ROUBLES, failed=12, markup=33, overhead=15))
    for line in made.lines:
        shown = eval(line.formula.replace("×", "*"), {"__builtins__": {}})  # noqa: S307  # our own text, numbers only
        assert shown == pytest.approx(line.value, rel=1e-4)


def test_one_decimal_sign_in_all_of_a_calculation():
    """It said «8.1 × 200 = 1620,5»."""
    parts = {"mass": 8.1, "price": 1500.5, "hours": 2.5, "labour": 0.5, "rate": 400.2, "failed": 2.5, "markup": 10}
    roubles = "\n".join(cost(CostOptions(**parts)).text())
    assert "." not in roubles.replace("₽.", "")
    assert "8,1 / 1000 × 1500,5 = 12,15 ₽" in roubles
    dollars = "\n".join(cost(CostOptions(**parts, currency="$")).text())
    assert "," not in dollars
    assert "8.1 / 1000 × 1500.5 = 12.15 $" in dollars


def test_what_is_missing_is_named():
    with pytest.raises(UsageError, match="--price, --hours"):
        cost(CostOptions(mass=5))


@pytest.mark.parametrize(
    ("language", "lines", "known"),
    [
        (
            "ru",
            ["Сколько стоит напечатать деталь 50 г, если катушка 1500 ₽ за кг, печать 5 часов?"],
            {"mass": 50, "price": 1500, "hours": 5},
        ),
        (
            "ru",
            [
                "Посчитай себестоимость вазы",
                "120 г, 1400 р/кг",
                "печать 9 ч, тариф 6 ₽ за кВт·ч, брак 10 %, наценка 30 %",
            ],
            {"mass": 120, "price": 1400, "hours": 9, "tariff": 6, "failed": 10, "markup": 30},
        ),
        ("ru", ["Какая цена у детали на 0,2 кг?"], {"mass": 200}),
        (
            "en",
            ["How much does it cost to print 80 g at 22 $/kg in 90 minutes?"],
            {"mass": 80, "price": 22, "hours": 1.5},
        ),
    ],
)
def test_requests_in_words(language, lines, known):
    request = CostRequest(language)
    assert all(request.take(line) for line in lines)
    assert request.known == pytest.approx(known)


def read(text, language="ru"):
    """Return the amounts that a line names, each one that is clear as a number."""
    return {
        name: values[0] if len(values) == 1 else values for name, values in CostRequest(language).read(text).items()
    }


@pytest.mark.parametrize(
    ("language", "line", "known"),
    [
        ("ru", "печать 3 ч 30 мин", {"hours": 3.5}),
        ("ru", "печать 3 часа 30 минут", {"hours": 3.5}),
        ("ru", "печать 1 день 2 часа", {"hours": 26}),
        ("ru", "печать 1ч30м", {"hours": 1.5}),
        ("en", "3 hours and 30 minutes of printing", {"hours": 3.5}),
        ("ru", "печать 3 ч и 30 мин постобработки", {"hours": 3, "labour": 0.5}),
        ("ru", "печать 3 часа, постобработка 30 минут", {"hours": 3, "labour": 0.5}),
        ("ru", "катушка 1,2 кг за 1800 руб", {"price": 1500}),
        ("ru", "деталь 50 г, катушка PLA 750 г стоит 1500 рублей", {"mass": 50, "price": 2000}),
        ("ru", "1 кг стоит 1800 руб, деталь 50 г", {"mass": 50, "price": 1800}),
        ("ru", "50 г с катушки по 1500 ₽/кг", {"mass": 50, "price": 1500}),
        ("en", "a 1.2 kg spool for $30, the part is 50 g", {"mass": 50, "price": 25}),
        ("ru", "4 детали по 50 г", {"mass": 200}),
        ("ru", "четыре одинаковые детали, 50 г каждая, по 2 ч", {"mass": 200, "hours": 8}),
        ("ru", "4 детали по 50 г, катушки по 1 кг за 1500 руб", {"mass": 200, "price": 1500}),
        ("en", "4 parts of 50 g each", {"mass": 200}),
        ("ru", "деталь 50 г, 4 шт", {"mass": (50, 200)}),
        ("ru", "2 детали и 3 копии по 50 г", {"mass": (50, 100, 150)}),
        ("ru", "деталь 50 г, поддержки 10 г", {"mass": (50, 10)}),
        ("ru", "50 г 3D-печати за 5 часов на принтере Ender 3 за 20000 ₽", {"mass": 50, "hours": 5, "printer": 20000}),
        ("en", "3 h at $22/kg, labour 0.5 h at $20 an hour", {"hours": 3, "price": 22, "labour": 0.5, "rate": 20}),
    ],
)
def test_amounts_are_read_as_they_are_meant(language, line, known):
    """The first number won: 3 h of «3 ч 30 мин», the spool's mass as the part's, one part's mass for all four."""
    found = read(line, language)
    assert set(found) == set(known)
    for name, value in known.items():
        assert found[name] == pytest.approx(value), name


def test_the_worked_example_in_words():
    line = (
        "Посчитай стоимость печати: деталь 50 г, пластик 1500 ₽ за кг, печать 5 ч, принтер 150 Вт, тариф 6 ₽ за кВт·ч, "
        "принтер стоит 40000 ₽, ресурс 5000 ч, труд 0,5 ч, ставка 400 ₽ в час, брак 10 %, наценка 30 %"
    )
    assert "461,5 ₽" in computed([line])[-1]


def test_an_amount_of_two_meanings_is_asked_back_with_both():
    asked = ["Посчитай стоимость печати: деталь 50 г, 4 шт, 1500 ₽/кг, 3 ч"]
    (back,) = computed(asked)
    assert "(50? 200?)" in back
    assert "300 ₽" in computed([*asked, "200 г"])[-1]


@pytest.mark.parametrize(
    ("said", "missing", "then"),
    [("ставка 400 ₽/ч", "time of work", "труд 0,5 ч"), ("труд 0,5 ч", "price of an hour", "400 ₽/ч")],
)
def test_work_without_a_rate_and_a_rate_without_work_are_asked_back(said, missing, then):
    """What was named of the two was dropped without a word."""
    asked = [f"Посчитай стоимость печати: деталь 100 г, 2000 ₽/кг, печать 3 ч, {said}"]
    (back,) = computed(asked)
    assert missing in back
    assert "400 ₽" in computed([*asked, then])[-1]


@pytest.mark.parametrize("line", ["Сколько стоит катушка PLA 1 кг?", "Сколько стоит 1 кг PLA для 3D-печати?"])
def test_the_price_of_plastic_is_for_the_model(line):
    """It was answered with what the calculation of a print lacks."""
    assert computed([line]) == []
    assert computed(["How much is a 1 kg spool of PLA?"]) == []


@pytest.mark.parametrize(
    "line",
    [
        "Какой пластик выбрать?",
        "Из чего складывается себестоимость?",
        "При какой температуре печатать PLA?",
        "Стоит ли сушить 1 кг?",
    ],
)
def test_other_questions_are_for_the_model(line):
    assert not CostRequest("ru").take(line)


def test_it_asks_for_what_is_missing_and_ends_with_the_sum():
    request = CostRequest("ru")
    assert request.take("Посчитай стоимость печати детали 100 г")
    assert len(request.answer()) == 1
    assert request.open
    assert request.take("2000 ₽/кг, 4 часа")
    assert "200 ₽" in request.answer()[-1]
    assert not request.open


def test_another_question_ends_a_request():
    """«Can a spool of 1 kg be kept in a bag?» was answered with what a calculation lacks."""
    asked = ["Сколько стоит напечатать деталь 100 г?"]
    assert computed(asked)
    assert computed([*asked, "Сколько сушить PETG, 6 часов хватит?"]) == []
    assert computed([*asked, "Сколько сушить PETG, 6 часов хватит?", "2000 ₽/кг, 4 часа"]) == []
    assert "200 ₽" in computed([*asked, "печать 4 часа", "катушка 2000 ₽ за кг"])[-1]


def test_a_line_that_is_asked_again_is_computed_again():
    """The second line of a request went to the model, once it had been taken back."""
    lines = ["Посчитай стоимость печати детали 100 г", "2000 ₽/кг, 4 часа"]
    assert computed(lines) == computed([*lines[:1], lines[1]])
    assert computed(lines[1:]) == []


def test_the_verb(capsys, tmp_path):
    path = tmp_path / "print.json"
    path.write_text(json.dumps(ROUBLES), encoding="utf-8")
    assert main(["cost", "--input", str(path), "--failed", "10", "--markup", "30", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["price"] == pytest.approx(461.5)
    path.write_text('{"mass": "much"}', encoding="utf-8")
    assert main(["cost", "--input", str(path)]) == 2
