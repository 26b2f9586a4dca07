"""Ways to multiply int8 matrices: exact, or found out."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from znatok.fast import product
from znatok.fast.product import INT_MM, ONEDNN, ONEDNN_7, fastest, few_rows_laid_out

WAYS = [INT_MM, ONEDNN, ONEDNN_7]
able = pytest.mark.skipif(not all(way.exact() for way in WAYS), reason="this processor multiplies otherwise")


@able
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(2, 70), st.integers(2, 70), st.integers(0, 2**31))
def test_products_are_those_of_whole_numbers(way, tokens, inputs, outputs, seed):
    """From two inputs and outputs on: torch 2.13 multiplies a transposed matrix of one column by zero."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-way.levels, way.levels + 1, (tokens, inputs), generator=generator, dtype=torch.int8)
    w = torch.randint(-127, 128, (outputs, inputs), generator=generator, dtype=torch.int8)
    for matrix in (w, w.t().contiguous().t()):  # laid out either way in memory
        assert torch.equal(way.prepare(matrix)(x).long(), x.long() @ w.long().t())


@able
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_the_largest_sums_do_not_overflow(way):
    """SwiGLU's width of Qwen2.5-7B, everything at its limit: 306 million at most."""
    x = torch.full((17, 18944), way.levels, dtype=torch.int8)
    w = torch.full((8, 18944), 127, dtype=torch.int8)
    w[1] = -127
    found = way.prepare(w)(x).double()
    expected = x.double() @ w.double().t()
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0)


def paired(x, w):
    """Multiply as AVX2 without VNNI does: unsigned by signed, neighbours summed in 16 bits, silently cut off."""
    shifted, w = x.long() + 128, w.long()
    pairs = (shifted[:, :, None] * w[None]).unflatten(1, (-1, 2)).sum(2).clamp(-(2**15), 2**15 - 1)
    return (pairs.sum(1) - 128 * w.sum(0)).int()


def test_a_processor_that_cuts_sums_off_is_found_out(monkeypatch):
    monkeypatch.setattr(torch, "_int_mm", paired)
    assert not INT_MM.exact()


@pytest.mark.parametrize("contiguous", [True, False], ids=["backward", "forward"])
def test_a_product_wrong_in_one_layout_only_is_found_out(monkeypatch, contiguous):
    real = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda x, w: (paired if w.is_contiguous() is contiguous else real)(x, w))
    assert not INT_MM.exact()


@pytest.mark.parametrize(
    ("capabilities", "inexact", "way"),
    [
        ({"avx512_vnni": True, "avx2": True}, set(), INT_MM),
        ({"amx_int8": True}, set(), INT_MM),
        ({"avx2": True}, set(), ONEDNN),
        ({"avx2": True}, {ONEDNN.name}, ONEDNN_7),
        ({"avx2": True}, {ONEDNN.name, ONEDNN_7.name}, None),
        ({"avx512_vnni": True, "avx2": True}, {INT_MM.name, ONEDNN.name}, ONEDNN_7),
        ({"avx512_vnni": True}, {INT_MM.name}, None),
        ({"avx2": False, "avx512_vnni": False}, set(), None),
        ({}, set(), None),
    ],
)
def test_the_fastest_exact_way_is_chosen(monkeypatch, capabilities, inexact, way):
    monkeypatch.setattr(product.Way, "exact", lambda self: self.name not in inexact)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert fastest(capabilities) is way


def test_without_onednn_there_is_no_other_way(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert fastest({"avx2": True}) is None
    few_rows_laid_out.cache_clear()
    try:
        assert not few_rows_laid_out()
    finally:
        few_rows_laid_out.cache_clear()


def test_ways_differ_by_name():
    assert len({way.name for way in WAYS}) == len(WAYS)
    assert replace(ONEDNN, levels=1) != ONEDNN


AVX2 = """
import json, torch
from znatok.fast.product import INT_MM, ONEDNN, ONEDNN_7, fastest
exact = [way.exact() for way in (INT_MM, ONEDNN, ONEDNN_7)]
print(json.dumps([exact, getattr(fastest({**torch.cpu.get_capabilities()}), "name", None)]))
"""


@pytest.mark.skipif(not torch.cpu.get_capabilities().get("avx2"), reason="no AVX2 here")
def test_avx2_alone_cuts_8_bits_off_and_multiplies_7_exactly():
    """oneDNN itself, told to use AVX2 only: what a processor without VNNI does."""
    done = subprocess.run(
        [sys.executable, "-c", AVX2],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    exact, way = json.loads(done.stdout)
    assert exact[1:] == [False, True]
    assert way == ONEDNN_7.name
