"""Votes on two answers: what is kept, and how it is counted."""

import datetime
import json

import pytest

from znatok.errors import SystemFault
from znatok.votes import Comparison, add_vote, tally

SHOWN = Comparison("mine", "Что?\nи где?", 7, 0.5, True, ("tuned", "base"), ("Тут.", "Там."))


def test_votes_are_lines_and_are_counted(tmp_path):
    path = tmp_path / "votes.jsonl"
    for vote in ("left", "right", "left", "equal"):
        add_vote(path, SHOWN, vote)
    assert len(path.read_text(encoding="utf-8").splitlines()) == 4
    assert tally(path) == "votes: tuned 2, base 1, no difference 1"


def test_a_vote_says_all_of_what_was_voted_on(tmp_path):
    path = tmp_path / "votes.jsonl"
    add_vote(path, SHOWN, "right")
    row = json.loads(path.read_text(encoding="utf-8"))
    assert datetime.datetime.fromisoformat(row.pop("at")).tzinfo is not None
    assert row == {
        "run": "mine", "question": "Что?\nи где?", "seed": 7, "temperature": 0.5, "blind": True,
        "order": ["tuned", "base"], "answers": ["Тут.", "Там."], "vote": "base",
    }  # fmt: skip


def test_a_vote_that_can_not_be_written_is_a_system_fault(tmp_path):
    with pytest.raises(SystemFault, match="can't be written"):
        add_vote(tmp_path, SHOWN, "left")


def test_a_vote_goes_into_no_file_that_a_run_links_to(tmp_path):
    """A run from somebody else with votes.jsonl -> ~/.bashrc had the answers written there."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine", encoding="utf-8")
    (tmp_path / "votes.jsonl").symlink_to(elsewhere)
    with pytest.raises(SystemFault, match="can't be written"):
        add_vote(tmp_path / "votes.jsonl", SHOWN, "left")
    assert elsewhere.read_text(encoding="utf-8") == "mine"
