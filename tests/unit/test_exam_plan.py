"""What an examination asks of somebody's own questions: in whose language it judges, and what they count as."""

import json

import pytest

from znatok.exam import plan
from znatok.exam.claims import score
from znatok.exam.criteria import criteria
from znatok.exam.plan import plan_examination

ENGLISH = [
    {"id": "e1", "question": "How hot is the oven?", "claims": [{"kind": "term", "any": ["230"]}]},
    {"id": "e2", "question": "What is a banneton?", "claims": [{"kind": "term", "any": ["basket"]}], "type": "cause"},
    {"id": "e3", "question": "Что значит «sourdough»?", "claims": [{"kind": "term", "any": ["закваска"]}]},
    {"id": "e4", "question": "Who is Mr. Nobody?", "claims": [], "expects": "abstain"},
]
RUSSIAN = [{"id": "r1", "question": "Сколько греть?", "options": ["час", "два"], "answer": 0}]


@pytest.fixture
def said(monkeypatch):
    """Return the lines that are said."""
    lines = []
    for name in ("say", "warn"):
        monkeypatch.setattr(plan, name, lines.append)
    return lines


def planned(tmp_path, *questions, name="keyed.jsonl", lexicon=None):
    path = tmp_path / name
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in questions), encoding="utf-8")
    return plan_examination([path], lexicon, None, tmp_path / "data.jsonl")


@pytest.mark.parametrize(("questions", "language"), [(ENGLISH, "en"), (RUSSIAN, "ru")], ids=["en", "ru"])
def test_without_a_lexicon_the_questions_say_the_language(tmp_path, said, questions, language):
    """Every file without a lexicon was judged, and the base prompted, in Russian."""
    what = planned(tmp_path, *questions)
    assert what.lexicon.language == language
    (line,) = [line for line in said if "--lexicon" in line]
    assert f"words of language {language}, which most questions are in" in line


def test_english_answers_are_judged_as_english(tmp_path, said):
    """«I don't know» was no admission, and structure and terminology of right answers were 0."""
    what = planned(tmp_path, *ENGLISH)
    _oven, banneton, _word, nobody = what.items.open
    assert score(nobody, "I don't know who that is.", what.lexicon).abstained
    answer = "A banneton is a basket in which the dough rises, and it keeps its shape."
    found = criteria(banneton, answer, score(banneton, answer, what.lexicon), what.lexicon)
    assert found["structure"] > 0
    assert found["terminology"] == 1
    assert "You are" in what.lexicon.prompts["expert"]


def test_a_lexicon_that_names_its_language_decides(tmp_path, said):
    (tmp_path / "lexicon.toml").write_text('language = "ru"\n', encoding="utf-8")
    assert planned(tmp_path, *ENGLISH).lexicon.language == "ru"
    (tmp_path / "other.toml").write_text("", encoding="utf-8")
    assert planned(tmp_path, *ENGLISH, lexicon=tmp_path / "other.toml").lexicon.language == "en"
    assert not [line for line in said if "--lexicon" in line]


def test_questions_without_a_split_count_as_trained_facts(tmp_path, said):
    """Their split was the name of their file, at which no claim looks: the report was empty, and nothing said why."""
    what = planned(tmp_path, {**RUSSIAN[0], "id": "r2", "split": "T2"}, *RUSSIAN)
    assert [item.split for item in what.items.all] == ["T2", "T1"]
    (line,) = [line for line in said if "split" in line]
    assert line.startswith(f'{tmp_path / "keyed.jsonl"}: items without a "split": 1; they count as T1')


@pytest.mark.parametrize(("name", "split"), [("t4.jsonl", "T4"), ("T2.jsonl", "T2"), ("control.jsonl", "control")])
def test_a_file_may_be_named_after_its_split(tmp_path, said, name, split):
    what = planned(tmp_path, *RUSSIAN, name=name)
    assert [item.split for item in what.items.all] == [split]
    assert not [line for line in said if "split" in line]


def test_what_no_claim_looks_at_is_said(tmp_path, said):
    planned(tmp_path, {**RUSSIAN[0], "split": "лёгкие"}, {**RUSSIAN[0], "id": "r2", "split": "T1"})
    (line,) = [line for line in said if "split" in line]
    assert line.startswith('"split" "лёгкие": no claim is made of these items')
    assert "expected T0, T1, T2, T3, T4, T5, mixed, control" in line
