import pytest

from znatok.eval.metrics import (
    cyrillic_share,
    has_cjk,
    longest_copied_run,
    mixed_script_words,
    repetition,
    word_count,
    words,
)


def test_a_number_and_a_hyphenated_word_are_one_word_each():
    assert words("Слой 0,2 мм — это 3D-печать, d’Arc!") == ["слой", "0,2", "мм", "это", "3d-печать", "d’arc"]
    assert word_count("180–220 °C") == 3
    assert word_count("  … \n") == 0


def test_decomposed_letters_make_the_same_words():
    assert words("мой") == words("мои\u0306") == ["мой"]


def test_repetition_by_hand():
    assert repetition("один два три") == 0
    assert repetition("а б в г д е") == 0
    assert repetition("а б в г а б в г") == pytest.approx(1 - 4 / 5)  # абвг бвга вгаб габв абвг
    assert repetition("да " * 103) == pytest.approx(1 - 1 / 100)
    assert repetition("Да, да; ДА да да") == pytest.approx(0.5)


def test_cyrillic_share_by_hand():
    assert cyrillic_share("печать") == 1
    assert cyrillic_share("plastic") == 0
    assert cyrillic_share("аб cd") == 0.5
    assert cyrillic_share("0,2 – 42 %") is None
    assert cyrillic_share("") is None


def test_cyrillic_share_leaves_allowed_words_out():
    assert cyrillic_share("печать из PLA и G-code", allowed=["pla", "G-Code"]) == 1
    assert cyrillic_share("PLA", allowed=["PLA"]) is None


@pytest.mark.parametrize("text", ["печать 材料", "カタカナ", "한국어", "точка。", "\U00020000", "да，нет"])
def test_cjk_is_found(text):
    assert has_cjk(text)


@pytest.mark.parametrize("text", ["", "печать PLA, 200 °C — «да»…", "µm ½ ⅓ → ☑ 😀", "Größe naïve"])
def test_other_text_is_not_cjk(text):
    assert not has_cjk(text)


def test_mixed_script_words_are_listed_in_order():
    assert mixed_script_words("сoпло и стол, PLAстик; 3D-печать и G-код, µm") == ["сoпло", "PLAстик"]


def test_longest_copied_run():
    source = "Сопло греют до 220 °C, стол — до 60 °C."
    assert longest_copied_run("Я думаю, сопло греют до 220 градусов", source) == 4
    assert longest_copied_run("", source) == 0
    assert longest_copied_run(source, source) == word_count(source)
