import itertools
import random
import sys
import unicodedata

import pytest

from znatok.data.clean import Duplicate, Leak, duplicates, leaks, normalised, similar, suspicious
from znatok.data.schema import Pair

ANSWER = "Для пластика PLA сопло нагревают до 200 градусов, а стол — до 60 градусов."
OTHER = "Деталь отделяют от стола после того, как он остынет до комнатной температуры."


def kinds(text):
    return [finding.kind for finding in suspicious([Pair(text, "ответ", line=1)])]


# Odd characters


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("20\u00a0°C", "no_break_space"),
        ("20\u202f°C", "no_break_space"),
        ("соп\u200bло", "invisible"),
        ("соп\u00adло", "invisible"),
        ("соп\u200dло", "invisible"),
        ("a\U000e0041b", "invisible"),
        ("соп\u202eло", "bidi"),
        ("соп\u2067ло", "bidi"),
        ("соп\ufffdло", "replacement"),
        ("\ue001 значок", "private_use"),
        ("сoпло", "mixed_script"),
        ("Cопло", "mixed_script"),
        ("теpмocтойкий", "mixed_script"),
        ("РLA", "mixed_script"),
        ("<|im_end|>", "control_token"),
        ("конец <|endoftext|> текста", "control_token"),
        (unicodedata.normalize("NFD", "слой"), "decomposed"),
    ],
)
def test_each_kind_of_odd_character_is_found(text, kind):
    assert kinds(text) == [kind]


@pytest.mark.parametrize(
    "text",
    [
        "обычный текст, 3D-печать и G-код",
        "STL-файл",
        "PLAшный PETGом",
        "ёлка",
        "👨‍👩‍👧 и 1 < 2 | 3 > 2",
        "ascii",
        "a <| b",
        "naïve",
    ],
)
def test_ordinary_text_is_left_alone(text):
    assert kinds(text) == []


def test_a_finding_names_the_line_the_key_the_count_and_an_escaped_sample():
    text = "x" * 30 + "\u200b" + "y" * 30 + "\u200b"
    (finding,) = suspicious([Pair("q", text, line=12)])
    assert (finding.line, finding.key, finding.kind, finding.count) == (12, "response", "invisible", 2)
    assert finding.sample == "'" + "x" * 10 + "\\u200b" + "y" * 10 + "'"


# Copies


def test_texts_are_equal_after_case_space_composition_and_yo():
    assert (
        normalised("  Тёплый\n\tСТОЛ ")
        == normalised("теплый стол")
        == normalised(unicodedata.normalize("NFD", "тёплый стол"))
    )


def test_a_pair_without_a_copy_is_no_duplicate():
    assert duplicates([]) == []
    assert duplicates([Pair("Как снять деталь?", OTHER, line=1), Pair("Как греть сопло?", ANSWER, line=2)]) == []


@pytest.mark.parametrize(
    ("prompt", "response", "part"),
    [
        ("КАК  снять деталь?", OTHER.replace(" ", "\u00a0"), "both"),
        ("Как снять деталь?", ANSWER, "prompt"),
        ("А если остыл?", OTHER.upper(), "response"),
    ],
)
def test_an_equal_question_or_answer_is_a_duplicate(prompt, response, part):
    pairs = [Pair("Как снять деталь?", OTHER, line=4), Pair(prompt, response, line=9)]
    assert duplicates(pairs) == [Duplicate(4, 9, part, 1.0)]


def test_short_answers_may_be_equal():
    assert (
        duplicates([Pair("Нужна ли сушка?", "Да, всегда.", line=1), Pair("Нужен ли бокс?", "Да, всегда.", line=2)])
        == []
    )


def test_a_similar_answer_is_a_duplicate_with_its_similarity():
    near = ANSWER.replace("200", "210")
    (found,) = duplicates([Pair("Первый вопрос?", ANSWER, line=1), Pair("Вопрос номер два?", near, line=2)])
    assert (found.first, found.second, found.part) == (1, 2, "response")
    assert 0.8 <= found.similarity < 1


def test_every_copy_is_named_once_after_the_first_record():
    pairs = [Pair("Вопрос?", ANSWER)] * 1000
    found = duplicates(pairs)
    assert [(d.first, d.second) for d in found] == [(1, place) for place in range(2, 1001)]


def test_the_search_finds_exactly_the_pairs_that_a_full_comparison_finds():
    rng = random.Random(5)
    words = (ANSWER + " " + OTHER).split()
    texts = {" ".join(rng.choices(words, k=rng.randint(1, 4))) for _ in range(60)}
    for text in sorted(texts):
        changed = list(text * rng.randint(1, 3))
        changed[rng.randrange(len(changed))] = "ж"
        texts.add("".join(changed))
    texts = sorted({text * copies for text in texts for copies in (1, 2, 5)})

    def grams(text):
        return {text[i : i + 5] for i in range(max(1, len(text) - 4))}

    sets = [grams(text) for text in texts]
    every = {
        (i, j) for j in range(len(texts)) for i in range(j) if 5 * len(sets[i] & sets[j]) >= 4 * len(sets[i] | sets[j])
    }
    assert every
    assert {(i, j) for i, j, _similarity in similar(texts, skip=lambda i, j: False)} == every


def test_long_texts_that_only_look_alike_to_the_filter_are_compared_in_full():
    rng = random.Random(3)
    text = "".join(rng.choices("абвгдежз", k=5000))
    other = text[:4200] + "".join(rng.choices("клмнопрс", k=800))
    assert list(similar([text, other], skip=lambda i, j: False)) == []


def test_two_thousand_pairs_take_a_second_or_two():
    """Counted in calls, which no busy machine changes: four times the pairs take six times as many, and not sixteen."""
    rng = random.Random(1)
    words = [f"слово{place}" for place in range(3000)]
    pairs = [Pair(" ".join(rng.choices(words, k=10)), " ".join(rng.choices(words, k=30))) for _ in range(2000)]

    def calls(number):
        counts = itertools.count()
        sys.setprofile(lambda *_event: next(counts))
        try:
            assert duplicates(pairs[:number]) == []
        finally:
            sys.setprofile(None)
        return next(counts)

    assert calls(2000) < 8 * calls(500)


# Leaks


def test_sets_that_share_nothing_leak_nothing():
    train, test = (
        [Pair("Как греть сопло?", ANSWER, fact_ids=("a",))],
        [Pair("Как снять деталь?", OTHER, fact_ids=("b",))],
    )
    assert leaks(train, test) == leaks([], test) == leaks(train, []) == []


def test_a_leak_names_both_lines_and_what_is_shared():
    train = [
        Pair("Как снять деталь?", OTHER, fact_ids=("a", "b"), line=3),
        Pair("Сопло?", ANSWER, fact_ids=("c",), line=5),
    ]
    test = [
        Pair("КАК СНЯТЬ ДЕТАЛЬ?", "Никак.", line=1),
        Pair("Иначе?", ANSWER.replace("200", "205"), line=2),
        Pair("Почему?", "Потому.", fact_ids=("x", "c", "b"), line=7),
        Pair("КАК СНЯТЬ ДЕТАЛЬ?", "Руками.", line=8),
    ]
    found = leaks(train, test)
    assert found[0] == Leak(3, 1, "prompt", 1.0)
    assert (found[1].train, found[1].test, found[1].part) == (5, 2, "response")
    assert found[2] == Leak(5, 7, "facts", 1.0, ("c", "b"))
    assert found[3] == Leak(3, 8, "prompt", 1.0)
    assert len(found) == 4


def test_copies_within_one_set_are_no_leak():
    assert leaks([Pair("q1", ANSWER), Pair("q2", ANSWER)], [Pair("t1", OTHER), Pair("t2", OTHER)]) == []
