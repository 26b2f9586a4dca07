"""Holes in memory are given back when they have grown, and only then: each time costs the next step its page faults."""

import os
import subprocess
import sys

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


PACK = 5 * SLACK  # what a pack needs while it is computed, and leaves free


def after_a_pack(process, holes, more=0):
    """Compute a pack that takes what is free, and more; tell whether memory was given back then."""
    process["holes"] = max(process["holes"], PACK) + more
    return holes.close()


def test_what_a_pack_needs_is_left_to_the_next_one(process):
    holes = Holes()
    assert after_a_pack(process, holes)  # nobody knows yet what a pack needs
    assert [after_a_pack(process, holes) for _pack in range(5)] == [False] * 5
    assert process["given"] == 1


def test_holes_are_given_back_when_they_have_grown_beyond_that(process):
    holes = Holes()
    largest = 0
    for _pack in range(50):
        after_a_pack(process, holes, SLACK // 3)
        largest = max(largest, process["holes"])
    assert largest < PACK + 2 * SLACK
    assert process["given"] < 50 / 3


def test_a_larger_pack_is_paid_for_once(process):
    holes = Holes()
    after_a_pack(process, holes)
    after_a_pack(process, holes)
    given = []
    for _pack in range(4):
        process["holes"] = PACK + 4 * SLACK
        given.append(holes.close())
    assert given == [True, False, False, False]


def test_memory_that_is_used_is_no_hole(process):
    """The optimiser's state comes after the first step, and stays."""
    holes = Holes()
    after_a_pack(process, holes)
    after_a_pack(process, holes)
    process["used"] += 3 * SLACK
    assert [after_a_pack(process, holes) for _pack in range(4)] == [True, False, False, False]


def test_another_c_library_is_left_alone(process, monkeypatch):
    monkeypatch.setattr(memory, "_glibc", lambda _name: None)
    holes = Holes()
    assert not any(after_a_pack(process, holes, SLACK) for _pack in range(5))


MANY_SHAPES = """
import ctypes, sys
from znatok.fast.memory import keep_few_shapes
if sys.argv[1] == "few":
    keep_few_shapes()
import torch
info = ctypes.CDLL(None).mallinfo2
info.restype = type("Info", (ctypes.Structure,), {"_fields_": [(str(i), ctypes.c_size_t) for i in range(10)]})
def used():
    numbers = info()
    return getattr(numbers, "7") + getattr(numbers, "4")  # in the heap, and mapped
for rows in range(100, 1000):
    if rows == 400:
        before = used()
    torch.ones(rows, 64, dtype=torch.bfloat16) @ torch.ones(64, 16, dtype=torch.bfloat16)
print(used() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")
def test_products_of_ever_new_shapes_take_no_ever_more_memory():
    """Where they are compiled for their shape at all; elsewhere neither grows."""
    limits = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    environment = {name: value for name, value in os.environ.items() if name not in limits}

    def grown(which):
        command = [sys.executable, "-c", MANY_SHAPES, which]
        return int(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, timeout=100).stdout)

    few, all_of_them = grown("few"), grown("all")
    assert few < 8 << 20
    assert few < all_of_them / 8 or all_of_them < 8 << 20
