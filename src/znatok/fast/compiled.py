"""The compiled twins of ``eager.py``: same names, same arguments, same results up to float32 rounding.

Every function checks what the C++ side cannot: that tensors are contiguous, on the CPU and of the dtype it is told.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from znatok.fast.compiler import build
from znatok.fast.eager import LARGE, NO_DROPOUT, Dropout, Gated, History, Normalised, Part, Raw, Rounding, Rows, Slope

KIND = {torch.float32: 0, torch.bfloat16: 1, torch.int32: 2}


class _Part(ctypes.Structure):
    _fields_ = (
        ("width", ctypes.c_int64),
        ("block", ctypes.c_int64),
        ("rank", ctypes.c_int64),
        ("up", ctypes.c_void_p),
    )


def _call(name: str, *arguments: Any) -> None:
    library = build().library
    assert library is not None
    getattr(library, name)(*[_argument(value) for value in arguments])


def _argument(value: Any) -> Any:
    if value is None:
        return ctypes.c_void_p()
    if isinstance(value, Tensor):
        assert value.is_contiguous() and value.device.type == "cpu"  # noqa: PT018  # one fact: a plain array
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, float):
        return ctypes.c_float(value)
    return ctypes.c_int64(value) if isinstance(value, int) else value


def _parts(parts: Sequence[Part]) -> Any:
    for part in parts:
        assert part.up is None or (part.up.dtype is torch.float32 and part.up.is_contiguous())
    rows = [_Part(p.width, p.block, p.rank, None if p.up is None else p.up.data_ptr()) for p in parts]
    return (_Part * len(rows))(*rows)


def _dropout(dropout: Dropout) -> tuple[Any, ...]:
    threshold = dropout.threshold if dropout.p else 0
    return ctypes.c_uint32(threshold), float(dropout.keep), ctypes.c_uint64(dropout.seed)


def _rounding(rounded: Rounding | None) -> tuple[int, float]:
    return (1, 1.0) if rounded is None else (rounded.block, float(rounded.levels))


def _kind(dtype: torch.dtype) -> ctypes.c_int:
    return ctypes.c_int(KIND[dtype])


def _floats(*tensors: Tensor | None) -> None:
    for tensor in tensors:
        assert tensor is None or tensor.dtype is torch.float32


def _new_rows(tokens: int, width: int) -> Rows:
    return Rows(torch.empty(tokens, width, dtype=torch.int8), torch.empty(tokens))


def quantise(x_TK: Tensor, parts: Sequence[Part], column_K: Tensor | None = None, levels: int = 127) -> Rows:
    """Rotate rows part by part, scale their columns, and round them to int8."""
    _floats(column_K)
    x_TK = x_TK.contiguous()
    tokens, width = x_TK.shape
    assert sum(part.width for part in parts) == width
    rows = _new_rows(tokens, width)
    _call(
        *("quantise", x_TK, _kind(x_TK.dtype), tokens, width, _parts(parts), len(parts), column_K, float(levels)),
        *(rows.q, rows.step),
    )
    return rows


def rotate_long_(x: Tensor, block: int) -> Tensor:
    """Rotate the first axis of a contiguous float32 matrix (N, K) in place."""
    _floats(x)
    _call("rotate_long", x, x.numel(), block)
    return x


def drop(x_TK: Tensor, dropout: Dropout) -> Tensor:
    """Return rows with dropout, in their dtype; the rows themselves where nothing is dropped."""
    if not dropout.p:
        return x_TK
    x_TK = x_TK.contiguous()
    out = torch.empty_like(x_TK)
    _call("drop", x_TK, _kind(x_TK.dtype), *x_TK.shape, *_dropout(dropout), out)
    return out


def normalise(
    x_TD: Tensor,
    gain_D: Tensor,
    eps: float,
    *,
    rounded: Rounding | None,
    dropout: Dropout | None,
    plain: bool,
    dtype: torch.dtype,
) -> Normalised:
    """Apply RMSNorm."""
    _floats(x_TD, gain_D)
    tokens, width = x_TD.shape
    rows = None if rounded is None else _new_rows(tokens, width)
    out = Normalised(
        torch.empty(tokens),
        rows,
        torch.empty(tokens, width, dtype=dtype) if plain else None,
        None if dropout is None else torch.empty(tokens, width, dtype=dtype),
    )
    _call(
        *("normalise", x_TD, tokens, width, gain_D, float(eps), *_rounding(rounded), *_dropout(dropout or NO_DROPOUT)),
        *(_kind(dtype), out.rstd, *(rows or (None, None)), out.plain, out.dropped),
    )
    return out


def normalise_backward(grad_TD: Tensor, x_TD: Tensor, rstd_T: Tensor, gain_D: Tensor, add: Tensor | None) -> Tensor:
    """Return the gradient of RMSNorm's input (T, D), plus ``add``."""
    _floats(grad_TD, x_TD, rstd_T, gain_D, add)
    out = torch.empty_like(x_TD)
    _call("normalise_backward", grad_TD, x_TD, rstd_T, gain_D, *x_TD.shape, add, out)
    return out


def finish(
    raw: Raw,
    parts: Sequence[Part],
    *,
    bias_N: Tensor | None = None,
    low_TR: Tensor | None = None,
    dropout: Dropout = NO_DROPOUT,
    add_TN: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Turn a raw product into a layer's output: scale, rotate back, add low-rank part, bias and residual."""
    _floats(raw.row, raw.column, bias_N, low_TR, add_TN)
    tokens, width = raw.acc.shape
    assert sum(part.width for part in parts) == width
    if low_TR is None:
        parts = [part._replace(up=None) for part in parts]
    out = torch.empty(tokens, width, dtype=dtype)
    _call(
        *("finish", raw.acc, _kind(raw.acc.dtype), raw.row, raw.column, tokens, width, _parts(parts), len(parts)),
        *(bias_N, low_TR, sum(part.rank for part in parts), *_dropout(dropout), add_TN, out, _kind(dtype)),
    )
    return out


def swiglu(
    raw: Raw,
    parts: Sequence[Part],
    low_TR: Tensor | None,
    *,
    rounded: Rounding | None,
    dropout: Dropout | None,
    plain: bool,
    keep: bool,
    dtype: torch.dtype,
) -> Gated:
    """Finish the products of gate and up and return silu(gate) · up."""
    _floats(raw.row, raw.column, low_TR)
    tokens, width = raw.acc.shape[0], raw.acc.shape[1] // 2
    if low_TR is None:
        parts = [part._replace(up=None) for part in parts]
    rows = None if rounded is None else _new_rows(tokens, width)
    out = Gated(
        torch.empty(tokens, 2 * width, dtype=dtype) if keep else None,
        rows,
        torch.empty(tokens, width, dtype=dtype) if plain else None,
        None if dropout is None else torch.empty(tokens, width, dtype=dtype),
    )
    _call(
        *("swiglu", raw.acc, _kind(raw.acc.dtype), raw.row, raw.column, tokens, width, _parts(parts), low_TR),
        *(*_rounding(rounded), *_dropout(dropout or NO_DROPOUT), _kind(dtype), out.gate_up, *(rows or (None, None))),
        *(out.plain, out.dropped),
    )
    return out


def swiglu_backward_(
    raw: Raw,
    block: int,
    gate_up: Tensor,
    *,
    low_TR: Tensor | None,
    down_RF: Tensor | None,
    dropout: Dropout,
    rounded: tuple[Sequence[Part], Tensor, int] | None,
    again: bool,
) -> tuple[Rows | None, Tensor | None]:
    """Take the gradient through SwiGLU; it is written in the place of ``gate_up``."""
    _floats(raw.row, low_TR, down_RF)
    assert raw.column is None
    tokens, width = raw.acc.shape
    rows = None if rounded is None else _new_rows(tokens, 2 * width)
    out = torch.empty(tokens, width, dtype=gate_up.dtype) if again else None
    parts, column, levels = rounded or ((), None, 1)
    blocks = torch.tensor([part.block for part in parts])
    _call(
        *("swiglu_backward", raw.acc, _kind(raw.acc.dtype), raw.row, tokens, width, block, low_TR),
        *(0 if low_TR is None else low_TR.shape[1], down_RF if low_TR is not None else None, *_dropout(dropout)),
        *(_kind(gate_up.dtype), gate_up, column, blocks, float(levels), *(rows or (None, None)), out),
    )
    return rows, out


def rope_(x_TN: Tensor, head: int, cosine: Tensor, sine: Tensor, sign: float = 1.0) -> Tensor:
    """Turn heads by their rotary positions in place; ``sign`` -1 turns them back."""
    _floats(cosine, sine)
    tokens, width = x_TN.shape
    assert x_TN.stride(1) == 1
    start = ctypes.c_void_p(x_TN.data_ptr())
    _call(
        *("rope", start, _kind(x_TN.dtype), tokens, x_TN.stride(0), width // head, head, cosine, sine, float(sign)),
    )
    return x_TN


def attend_rows(q_RHE: Tensor, k_RGE: Tensor, v_RGE: Tensor, history: History) -> Tensor:
    """Put the keys and values of one token of each row into its buffers and attend to all that is there."""
    rows, heads, width = q_RHE.shape
    groups, dtype = k_RGE.shape[1], q_RHE.dtype
    for new in (q_RHE, k_RGE, v_RGE):
        assert new.dtype is dtype and new.stride()[1:] == (width, 1)  # noqa: PT018
        assert rows == 1 or new.stride(0) == q_RHE.stride(0)
    lengths = [n if keys is not None else 0 for n, keys in zip(history.lengths, history.keys, strict=True)]
    for buffer, length in zip((*history.keys, *history.values), lengths * 2, strict=True):
        if buffer is not None:
            assert buffer.is_contiguous() and buffer.dtype is dtype  # noqa: PT018
            assert buffer.shape[::2] == (groups, width) and length <= buffer.shape[1]  # noqa: PT018
    out = torch.empty(rows, heads * width, dtype=dtype)
    places = [_addresses(buffers) for buffers in (history.keys, history.values)]
    capacity = torch.tensor([0 if keys is None else keys.shape[1] for keys in history.keys])
    starts = [ctypes.c_void_p(new.data_ptr()) for new in (q_RHE, k_RGE, v_RGE)]
    _call(
        "attend_rows",
        *(*starts, _kind(dtype), q_RHE.stride(0), rows, heads, groups, width),
        *(*places, capacity, torch.tensor(lengths), out),
    )
    return out


def _addresses(buffers: Sequence[Tensor | None]) -> Any:
    return (ctypes.c_void_p * len(buffers))(*[None if buffer is None else buffer.data_ptr() for buffer in buffers])


def slope_(logits_TV: Tensor, target_T: Tensor) -> Tensor:
    """Return the cross-entropy of each row (T,); the logits become softmax minus one-hot."""
    _check_targets(target_T, logits_TV.shape[1])
    loss = torch.empty(len(logits_TV))
    _call("slope", logits_TV, _kind(logits_TV.dtype), *logits_TV.shape, target_T, loss)
    return loss


def slope_rounded(logits_TV: Tensor, target_T: Tensor, column_V: Tensor, seed: int, levels: int = 127) -> Slope:
    """Return the cross-entropy of each row, and its slope as int8 rows and exact large parts."""
    _floats(column_V)
    tokens, width = logits_TV.shape
    _check_targets(target_T, width)
    at, large = torch.empty(tokens, LARGE, dtype=torch.int64), torch.empty(tokens, LARGE)
    out = Slope(torch.empty(tokens), _new_rows(tokens, width), at, large)
    _call(
        *("slope_rounded", logits_TV, _kind(logits_TV.dtype), column_V, tokens, width, target_T),
        *(float(levels), ctypes.c_uint64(seed), out.rows.q, out.rows.step, at, large, out.loss),
    )
    return out


def _check_targets(target_T: Tensor, width: int) -> None:
    assert target_T.dtype is torch.int64
    assert len(target_T) == 0 or 0 <= int(target_T.min()) <= int(target_T.max()) < width
