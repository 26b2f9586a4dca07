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
