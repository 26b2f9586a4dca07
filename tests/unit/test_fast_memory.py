"""Holes in memory are given back when they have grown, and only then: each time costs the next step its page faults."""

import pytest

from znatok.fast import memory
from znatok.fast.memory import SLACK, Holes


@pytest.fixture
def process(monkeypatch):
    """Return a process's memory: what is in use, what are holes, and how often holes were given back."""
    state = {"used": 10 * SLACK, "holes": 0, "given": 0}

    def trim(_pad):
        state["holes"] = 0
        state["given"] += 1

    monkeypatch.setattr(memory, "resident_bytes", lambda: state["used"] + state["holes"])
    monkeypatch.setattr(memory, "_glibc", lambda _name: trim)
    return state


def test_small_holes_are_left_alone(process):
    holes = Holes()
    assert not holes.close()
    process["holes"] = SLACK // 2
    assert not holes.close()
    assert process["given"] == 0


def test_large_holes_are_given_back(process):
    holes = Holes()
    holes.close()
    process["holes"] = SLACK + 1
    assert holes.close()
    assert process["holes"] == 0


def test_memory_that_is_used_is_no_hole(process):
    """The optimiser's state comes after the first step, and stays."""
    holes = Holes()
    holes.close()
    process["used"] += 3 * SLACK
    assert [holes.close() for _step in range(4)] == [True, False, False, False]
    process["holes"] = 2 * SLACK
    assert holes.close()


def test_another_c_library_is_left_alone(process, monkeypatch):
    monkeypatch.setattr(memory, "_glibc", lambda _name: None)
    holes = Holes()
    holes.close()
    process["holes"] = 9 * SLACK
    assert not holes.close()
