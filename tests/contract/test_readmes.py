"""What the READMEs say in sentences is what their tables say."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITH_INTERVAL = re.compile(r"[+−]\d[.,]\d+ \[[^\]]+\]")


START, END = "<!-- proof:start -->", "<!-- proof:end -->"


def tables_and_sentences(name):
    """Return the tables of the published proofs, and the differences told in the sentences below them."""
    _before, tables, rest = re.split(f"{START}|{END}", (ROOT / name).read_text(encoding="utf-8"))
    return tables, WITH_INTERVAL.findall(rest[: rest.index("\n## ")])


@pytest.mark.parametrize("name", ["README.md", "README.ru.md"])
def test_a_difference_told_in_a_sentence_stands_in_the_table_of_the_published_proofs(name):
    """Judged again by stricter rules, the tables changed and the sentence below them did not."""
    tables, told = tables_and_sentences(name)
    assert told
    assert [one for one in told if one not in tables] == []


def test_both_languages_tell_the_same_differences():
    english, russian = (
        [re.findall(r"[+−]|\d+", one) for one in tables_and_sentences(name)[1]]
        for name in ("README.md", "README.ru.md")
    )
    assert english == russian
