"""From GGUF's blocks to ordinary numbers, in torch.

``gguf.quants`` does the same in numpy on one core and through float32 copies of whole tensors. Here a chunk of blocks
that fits the cache goes all the way to the target's dtype before the next one is touched. The arithmetic is float32 in
the reference's order of operations, so the float32 result equals the reference's bit for bit (test).

Shapes: n blocks, each of ``type_size`` bytes. The formats: https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h
"""

from collections.abc import Callable

import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor


def dequantise(raw_nb: Tensor, kind: GGMLQuantizationType) -> Tensor:
    """Return the float32 values of whole blocks.

    Args:
        raw_nb: the blocks' bytes, uint8 [n, type_size].
        kind: the type of all of them.

    Returns:
        float32 [n, block_size]; for F32 a view of the bytes.
    """
    return _READERS[kind](raw_nb)


def chunk_blocks(kind: GGMLQuantizationType) -> int:
    """Return how many blocks to take at once so that bytes, float32 values and intermediates stay in the cache."""
    return max(1, CHUNK_VALUES // int(GGML_QUANT_SIZES[kind][0]))


CHUNK_VALUES = 1 << 18


def _half(raw_nb: Tensor, at: int) -> Tensor:
    """The float16 at byte ``at`` of each block, as float32 [n, 1]."""
    return raw_nb[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(packed_nb: Tensor, width: int) -> Tensor:
    """Split bytes into low and high halves: of each ``width`` bytes first all low ones, then all high ones."""
    packed_ngw = packed_nb.reshape(packed_nb.shape[0], -1, width)
    return torch.stack((packed_ngw & 15, packed_ngw >> 4), dim=2)


def _fifth_bits(raw_nb: Tensor, at: int) -> Tensor:
    """The 32 bits in the 4 bytes at ``at``, each shifted to the place of the fifth bit: uint8 [n, 32]."""
    shifts = torch.arange(8, dtype=torch.uint8)
    bits_n48 = raw_nb[:, at : at + 4, None] >> shifts & 1
    return bits_n48.reshape(-1, 32) << 4


def _f32(raw_nb: Tensor) -> Tensor:
    return raw_nb.view(torch.float32)


def _f16(raw_nb: Tensor) -> Tensor:
    return raw_nb.view(torch.float16).float()


def _bf16(raw_nb: Tensor) -> Tensor:
    return raw_nb.view(torch.bfloat16).float()


def _q8_0(raw_nb: Tensor) -> Tensor:
    return raw_nb[:, 2:].view(torch.int8).float().mul_(_half(raw_nb, 0))


def _q4_0(raw_nb: Tensor) -> Tensor:
    values = _nibbles(raw_nb[:, 2:], 16).view(-1, 32).float()
    return values.sub_(8).mul_(_half(raw_nb, 0))


def _q4_1(raw_nb: Tensor) -> Tensor:
    values = _nibbles(raw_nb[:, 4:], 16).view(-1, 32).float()
    return values.mul_(_half(raw_nb, 0)).add_(_half(raw_nb, 2))


def _q5_0(raw_nb: Tensor) -> Tensor:
    values = _nibbles(raw_nb[:, 6:], 16).view(-1, 32).bitwise_or_(_fifth_bits(raw_nb, 2)).float()
    return values.sub_(16).mul_(_half(raw_nb, 0))


def _q5_1(raw_nb: Tensor) -> Tensor:
    values = _nibbles(raw_nb[:, 8:], 16).view(-1, 32).bitwise_or_(_fifth_bits(raw_nb, 4)).float()
    return values.mul_(_half(raw_nb, 0)).add_(_half(raw_nb, 2))


def _scales_and_minima(raw_nb: Tensor) -> tuple[Tensor, Tensor]:
    """The 8 scales and 8 minima of Q4_K and Q5_K: 6-bit numbers in bytes 4..15, times the halves in bytes 0..3."""
    low, middle, high = raw_nb[:, 4:8], raw_nb[:, 8:12], raw_nb[:, 12:16]
    scales_n8 = torch.cat((low & 63, high & 15 | low >> 2 & 48), dim=1)
    minima_n8 = torch.cat((middle & 63, high >> 4 | middle >> 2 & 48), dim=1)
    return _half(raw_nb, 0) * scales_n8, _half(raw_nb, 2) * minima_n8


def _q4_k(raw_nb: Tensor) -> Tensor:
    scales_n8, minima_n8 = _scales_and_minima(raw_nb)
    values = _nibbles(raw_nb[:, 16:], 32).view(-1, 8, 32).float()
    return values.mul_(scales_n8[:, :, None]).sub_(minima_n8[:, :, None]).view(-1, 256)


def _q5_k(raw_nb: Tensor) -> Tensor:
    scales_n8, minima_n8 = _scales_and_minima(raw_nb)
    shifts = torch.arange(8, dtype=torch.uint8)[:, None]
    fifth_n8w = (raw_nb[:, None, 16:48] >> shifts & 1) << 4
    values = _nibbles(raw_nb[:, 48:], 32).view(-1, 8, 32).bitwise_or_(fifth_n8w).float()
    return values.mul_(scales_n8[:, :, None]).sub_(minima_n8[:, :, None]).view(-1, 256)


def _q6_k(raw_nb: Tensor) -> Tensor:
    low_n22 = _nibbles(raw_nb[:, :128], 64).view(-1, 2, 4, 32)
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8)[:, None]
    high_n24w = (raw_nb[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3) << 4
    values = low_n22.bitwise_or_(high_n24w).view(-1, 16, 16).float()
    scales_ng = _half(raw_nb, 208) * raw_nb[:, 192:208].contiguous().view(torch.int8)
    return values.sub_(32).mul_(scales_ng[:, :, None]).view(-1, 256)


_READERS: dict[GGMLQuantizationType, Callable[[Tensor], Tensor]] = {
    GGMLQuantizationType.F32: _f32,
    GGMLQuantizationType.F16: _f16,
    GGMLQuantizationType.BF16: _bf16,
    GGMLQuantizationType.Q8_0: _q8_0,
    GGMLQuantizationType.Q4_0: _q4_0,
    GGMLQuantizationType.Q4_1: _q4_1,
    GGMLQuantizationType.Q5_0: _q5_0,
    GGMLQuantizationType.Q5_1: _q5_1,
    GGMLQuantizationType.Q4_K: _q4_k,
    GGMLQuantizationType.Q5_K: _q5_k,
    GGMLQuantizationType.Q6_K: _q6_k,
}
