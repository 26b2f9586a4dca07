"""Passages near a question."""

import json

import pytest

from znatok.errors import DataError
from znatok.lexicon import lexicon_near, load_lexicon
from znatok.retrieve import Knowledge, Passage, inform, read_knowledge


def test_facts_are_found_in_other_grammatical_forms(tmp_path):
    path = tmp_path / "facts.jsonl"
    rows = [
        {"claim_ru": "Температура сопла для PLA — 180–220 °C."},
        {"claim_ru": "PETG сушат при 60–65 °C."},
        {"claim_ru": "Старое значение для сопла.", "role": "superseded"},
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    knowledge = read_knowledge(path)
    assert len(knowledge.passages) == 2
    (best, *_rest) = knowledge.search("Как правильно сушить PETG?", 1)
    assert best == Passage("PETG сушат при 60–65 °C.", "facts.jsonl:2")
    assert knowledge.search("сопла какой температуры", 1)[0].source == "facts.jsonl:1"
    assert knowledge.search("Сколько лет жирафу?") == []


def test_a_lexicon_finds_what_is_called_otherwise(tmp_path):
    (tmp_path / "lexicon.toml").write_text(
        'language = "ru"\n[entities]\nPLA = ["PLA", "пла", "полилактид"]\n[synonyms]\n"сопло" = ["дюза"]\n',
        encoding="utf-8",
    )
    facts = tmp_path / "facts.jsonl"
    rows = [{"claim": f"Сопло для {name} греют сильно."} for name in ("PETG", "ABS", "PLA", "TPU")]
    facts.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert read_knowledge(facts).search("дюза под полилактид?") == []
    found = read_knowledge(facts, load_lexicon(lexicon_near(facts))).search("дюза под полилактид?")
    assert found[0].source == "facts.jsonl:3"
    assert lexicon_near(tmp_path / "elsewhere" / "facts.jsonl") is None


def test_paragraphs_keep_their_lines(tmp_path):
    path = tmp_path / "notes.md"
    path.write_text("# Ремни\nНатянуть раз\nв месяц.\n\n\nСопло менять.\n", encoding="utf-8")
    assert [(p.text, p.source) for p in read_knowledge(path).passages] == [
        ("# Ремни Натянуть раз в месяц.", "notes.md:1"),
        ("Сопло менять.", "notes.md:6"),
    ]


def test_pairs_are_searched_by_their_answers(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "Что?", "response": "Гироид прочен во все стороны."}\n', encoding="utf-8")
    assert read_knowledge(path).search("гироид")[0].source == "pairs.jsonl:1"


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("x.jsonl", "{", "x.jsonl:1: cut short"),
        ("x.jsonl", '{"text": "a", "text": "b"}\n', 'x.jsonl:1: the key "text" stands twice'),
        ("x.jsonl", '{"a": 1}', "x.jsonl:1: no text"),
        ("x.md", "\n\n", "no text in it"),
    ],
)
def test_what_can_not_be_searched_is_refused(tmp_path, name, text, why):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=why):
        read_knowledge(tmp_path / name)


def test_passages_stand_before_the_question_with_their_sources():
    knowledge = Knowledge([Passage("Гироид прочен.", "a:1"), Passage("Кайма держит углы.", "a:2")])
    form = "{passages}|{question}"
    informed = inform("Зачем кайма?", knowledge, form)
    assert informed.text == "[1] Кайма держит углы.|Зачем кайма?"
    assert informed.sources == "[1] a:2"
    assert inform("Жираф?", knowledge, form).text == "Жираф?"


def test_the_farthest_passages_are_left_out_where_a_model_does_not_see_so_much():
    knowledge = Knowledge(
        [Passage("PLA печатают при 200 °C.", "a:1"), Passage("PLA сушат.", "a:2"), Passage("PLA.", "a:3")]
    )
    form = "{passages}\n{question}"
    whole = inform("Как печатать PLA?", knowledge, form)
    assert len(whole.passages) == 3
    shorter = inform("Как печатать PLA?", knowledge, form, fits=lambda text: len(text) < len(whole.text))
    assert shorter.passages == whole.passages[:2]
    bare = inform("Как печатать PLA?", knowledge, form, fits=lambda _text: False)
    assert (bare.text, bare.passages) == ("Как печатать PLA?", ())
