"""Words as the scorer sees them."""

import pytest

from znatok.language import find, forms, normalise, phrase, sentences, words_of


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("200\u2009°C", "200 °C"),
        ("0,2 мм", "0.2 мм"),
        ("200–220", "200-220"),
        ("24 мм³/с", "24 мм3/с"),
        ("40 000 ₽", "40000 ₽"),
        ("5 000 000", "5000000"),
        ("ёлка, Ёж", "елка, Еж"),
        ("℃", "°C"),
        ("в 2 3 раза", "в 2 3 раза"),
        ("слои 1, 2, 3", "слои 1, 2, 3"),
    ],
)
def test_many_spellings_become_one(text, wanted):
    assert normalise(text) == wanted


@pytest.mark.parametrize("word", ["сопло", "сопла", "соплу", "соплом", "сопле", "сопел", "соплами"])
def test_a_term_is_found_in_its_cases(word):
    assert forms(word) & forms("сопло")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ретракта", "ретракт"),
        ("филаментов", "филамент"),
        ("сушите", "сушить"),
        ("плотнее", "плотный"),
        ("недоэкструзии", "недоэкструзия"),
        ("fermented", "ferments"),
    ],
)
def test_other_forms_agree(one, other):
    assert forms(one) & forms(other)


@pytest.mark.parametrize(
    ("one", "other"), [("сопло", "стол"), ("сушить", "тушить"), ("PLA".lower(), "pva"), ("200", "20")]
)
def test_different_words_do_not_agree(one, other):
    assert not forms(one) & forms(other)


def test_a_sentence_ends_after_a_unit():
    read = sentences("Сопло греют до 145–155 °C. У PETG это 75–85 °C. Слой 0,2 мм. Больше не надо, т. е. хватит.")
    assert [s.text for s in read] == [
        "Сопло греют до 145-155 °C.",
        "У PETG это 75-85 °C.",
        "Слой 0.2 мм.",
        "Больше не надо, т. е. хватит.",
    ]


def test_every_line_is_a_sentence_of_its_own():
    assert len(sentences("1. Нагреть сопло\n2. Вставить пруток")) == 2


@pytest.mark.parametrize(
    ("wanted", "text", "found"),
    [
        ("температура сопла", "Температурой нашего сопла займёмся позже", True),
        ("температура сопла", "Сопло и его температура", False),
        ("не растворяться", "PLA в ацетоне не растворяется", True),
        ("=не =могу", "я не могу сказать", True),
        ("=не =могу", "они не могут работать", False),
        ("", "что угодно", False),
    ],
)
def test_phrases(wanted, text, found):
    words = list(words_of(normalise(text)))
    assert bool(find(phrase(wanted), words)) is found
