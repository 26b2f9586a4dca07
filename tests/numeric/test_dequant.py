"""Our dequantisers against the gguf package's: the same float32 bits from any block."""

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES

from znatok.model import dequant
from znatok.model.gguf_header import KINDS


def reference(raw, kind):
    with np.errstate(all="ignore"):  # random bytes make infinite scales
        values = gguf.quants.dequantize(raw.reshape(1, -1), kind)
    return values.reshape(raw.shape[0], -1)


def same_bits(one, two):
    numbers = ~np.isnan(two)  # the payload of a NaN is nobody's business
    return np.array_equal(np.isnan(one), ~numbers) and np.array_equal(
        one[numbers].view(np.uint32), two[numbers].view(np.uint32)
    )


@pytest.mark.parametrize("blocks", [1, 2, 7, 300])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_random_blocks_give_the_bits_of_the_reference(kind, blocks):
    size = GGML_QUANT_SIZES[kind][1]
    raw = np.random.default_rng(blocks).integers(0, 256, (blocks, size), dtype=np.uint8)
    got = dequant.dequantise(torch.from_numpy(raw), kind)
    assert got.dtype == torch.float32
    assert got.shape == (blocks, GGML_QUANT_SIZES[kind][0])
    assert same_bits(got.numpy(), reference(raw, kind))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_extreme_bytes_give_the_bits_of_the_reference(kind):
    size = GGML_QUANT_SIZES[kind][1]
    raw = np.stack([np.full(size, byte, np.uint8) for byte in (0, 1, 15, 16, 127, 128, 240, 254)])
    assert same_bits(dequant.dequantise(torch.from_numpy(raw), kind).numpy(), reference(raw, kind))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16", "BF16"])
def test_quantising_and_back_stays_within_the_formats_step(kind):
    kind = gguf.GGMLQuantizationType[kind]
    values = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    packed = gguf.quants.quantize(values, kind)
    block, size = GGML_QUANT_SIZES[kind]
    got = dequant.dequantise(torch.from_numpy(packed.view(np.uint8).reshape(-1, size)), kind).numpy()
    step = {"Q8_0": 1 / 127, "Q4_0": 1 / 8, "Q4_1": 2 / 15, "Q5_0": 1 / 16, "Q5_1": 2 / 31}.get(kind.name, 1 / 128)
    errors = np.abs(got.reshape(-1, block) - values.reshape(-1, block)).max(axis=1)
    assert (errors <= np.abs(values.reshape(-1, block)).max(axis=1) * step + 1e-6).all()


def test_the_bytes_are_left_as_they_were():
    for kind in KINDS:
        raw = torch.zeros(3, GGML_QUANT_SIZES[kind][1], dtype=torch.uint8)
        dequant.dequantise(raw, kind)
        assert not raw.any(), kind
