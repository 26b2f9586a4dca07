import pytest

from znatok.eval.typeset import ELLIPSIS, MONO, UNKNOWN, Face, Page

FACE = Face(26)


def test_wrapped_lines_fit_and_keep_every_word():
    text = "Сопло греют до 220 градусов, стол до 60, и слои хорошо спекаются между собой."
    lines = FACE.wrap(text, 300)
    assert len(lines) > 2
    assert all(FACE.width(line) <= 300 for line in lines)
    assert " ".join(lines) == text


def test_measured_width_is_the_drawn_width():
    page = Page(900, 100)
    text = "Усадка PLA — 0,3 % (мало)"
    page.text(10, 50, text, FACE, "black")
    drawn = page.axes.texts[0].get_window_extent(page.canvas.get_renderer())
    assert FACE.width(text) == pytest.approx(drawn.width, abs=4)


def test_a_word_wider_than_the_column_is_cut():
    lines = FACE.wrap("а" * 200, 200)
    assert "".join(lines) == "а" * 200
    assert all(FACE.width(line) <= 200 for line in lines)


def test_too_many_lines_end_in_an_ellipsis_that_fits():
    lines = FACE.wrap("раз два три, " * 50, 200, 3)
    assert len(lines) == 3
    assert lines[-1].endswith(ELLIPSIS)
    assert not lines[-1].endswith("," + ELLIPSIS)
    assert FACE.width(lines[-1]) <= 200
    assert FACE.shorten("ж" * 50, 100).endswith("ж" + ELLIPSIS)
    assert FACE.width(FACE.shorten("ж" * 50, 100)) <= 100
    assert FACE.shorten("раз два, три", FACE.width("раз два, т")) == "раз два" + ELLIPSIS


def test_paragraphs_stay_apart_and_empty_lines_go():
    assert FACE.wrap("1. раз\n\n2. два\n", 500) == ["1. раз", "2. два"]
    assert FACE.wrap(" \n ", 500) == []


def test_a_line_does_not_begin_with_a_dash_or_a_unit():
    for width in range(200, 400, 7):
        for line in FACE.wrap("печать — это 220 °C и 15 % заполнения × два слоя", width):
            assert line[0] not in "—°%×"


def test_characters_the_font_lacks_become_boxes():
    assert FACE.drawable("打a\x1b\u202eя\u2009б\nв") == UNKNOWN + "aя\u00a0б\nв"
    assert FACE.drawable("и\u0306") == "й"


def test_monospaced_letters_are_equally_wide():
    assert {Face(25, MONO).width(c) for c in "iЖ—°1 "} == {Face(25, MONO).width("m")}
