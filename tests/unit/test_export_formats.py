"""Number formats of a GGUF file: llama.cpp's own choice of them, and values that survive them."""

import re
from collections import Counter

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize

from znatok.errors import SystemFault
from znatok.export import formats
from znatok.export.formats import Kind, Place, as_stored, byte_count, stored_kind
from znatok.model import catalogue
from znatok.model.gguf_header import read_header


@pytest.mark.parametrize(
    ("quant", "wanted"),
    [
        ("f16", {"vector": "F32", "even": "F16", "blocks of 32": "F16", "none": "F16"}),
        ("bf16", {"vector": "F32", "even": "BF16", "blocks of 32": "BF16", "none": "BF16"}),
        ("q8_0", {"vector": "F32", "even": "Q8_0", "blocks of 32": "Q8_0", "none": "F16"}),
        ("q4_k_m", {"vector": "F32", "even": "Q4_K", "blocks of 32": "Q5_0", "none": "F16"}),
    ],
)
def test_a_tensor_becomes_what_its_rows_allow(quant, wanted):
    shapes = {"vector": (512,), "even": (8, 512), "blocks of 32": (8, 96), "none": (8, 50)}
    found = {name: stored_kind(Place("blk.3.attn_q.weight", s, 24, head=False), quant) for name, s in shapes.items()}
    assert {name: kind.name for name, kind in found.items()} == wanted


def test_what_serves_as_the_head_keeps_more_bits():
    assert stored_kind(Place("token_embd.weight", (9, 256), 24, head=True), "q4_k_m") is Kind.Q6_K
    assert stored_kind(Place("token_embd.weight", (9, 256), 24, head=False), "q4_k_m") is Kind.Q4_K
    assert stored_kind(Place("output.weight", (9, 96), 24, head=True), "q4_k_m") is Kind.Q8_0


def test_the_first_and_last_eighth_and_every_third_layer_keep_more_bits():
    assert [layer for layer in range(24) if formats.has_more_bits(layer, 24)] == [
        *(0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23),
    ]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.real(name))
        for name in ("qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct")
    ],
)
def test_the_mixture_is_that_of_the_publishers_own_file(name):
    """Layer numbers differ: the program of that day counted layers in the order of their names, 0, 1, 10, 11, …"""
    header = read_header(catalogue.get(name))
    layers = header.integer("qwen2.block_count", high=1000)
    theirs: Counter[tuple[str, str]] = Counter()
    ours: Counter[tuple[str, str]] = Counter()
    for tensor in header.tensors.values():
        leaf = re.sub(r"blk\.\d+\.", "", tensor.name)
        place = Place(tensor.name, tuple(tensor.shape), layers, head=tensor.name == "output.weight")
        theirs[leaf, tensor.kind.name] += 1
        ours[leaf, stored_kind(place, "q4_k_m").name] += 1
    assert ours == theirs
    assert len(theirs) == 17


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        (Kind.F32, 0.0),
        (Kind.F16, 4e-4),
        (Kind.BF16, 3e-3),
        (Kind.Q8_0, 6e-3),
        (Kind.Q6_K, 2e-2),
        (Kind.Q5_0, 5e-2),
        (Kind.Q4_K, 8e-2),
    ],
)
def test_values_survive_as_well_as_their_format_allows(kind, limit):
    if kind in formats.K_QUANTS:
        pytest.importorskip("libgguf")
    values = torch.randn(32, 512, generator=torch.Generator().manual_seed(1))
    stored = as_stored(values, kind, "blk.0.ffn_up.weight")
    assert stored.nbytes == byte_count(tuple(values.shape), kind)
    back = stored if kind is Kind.F32 else dequantize(stored, kind)
    assert np.sqrt(np.mean((back - values.numpy()) ** 2)) <= limit


def test_a_library_that_is_missing_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda _name: None)
    formats.refuse_missing("q8_0")
    with pytest.raises(SystemFault, match=r"needs libgguf.*znatok\[quant\]"):
        formats.refuse_missing("q4_k_m")


def test_a_file_says_which_format_it_is_in():
    assert {name: int(named) for name, (_kind, named) in formats.FORMATS.items()} == {
        **{"f16": 1, "bf16": 32, "q8_0": 7, "q4_k_m": 15},
    }
    assert gguf.LlamaFileType(15).name == "MOSTLY_Q4_K_M"
