"""Attention over a pack against torch's own, example by example."""

import pytest
import torch
import torch.nn.functional as F

from znatok.fast.attention import Segments, pack_attention

WIDTH = 8
SHAPES = [
    pytest.param(4, 4, 0, (7,), id="one example"),
    pytest.param(4, 2, 0, (5, 1, 9), id="no prefix"),
    pytest.param(4, 2, 6, (5, 1, 9), id="prefix"),
    pytest.param(6, 1, 3, (4, 4), id="one key head"),
    pytest.param(3, 3, 1, (1, 2), id="a prefix of one token"),
    pytest.param(14, 2, 4, (3, 8, 2, 2), id="seven to one"),
]


def tensors(heads, groups, tokens, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(tokens, count, WIDTH, generator=generator).to(dtype).requires_grad_()
        for count in (heads, groups, groups)
    ]


def alone(q, k, v, prefix, lengths):
    """Attend in each example on its own and put the rows together as the pack has them."""

    def attend(rows):
        one, two, three = (x[rows].transpose(0, 1)[None] for x in (q, k, v))
        out = F.scaled_dot_product_attention(one, two, three, is_causal=True, enable_gqa=True)
        return out[0].transpose(0, 1).flatten(1)

    pieces, start = [attend(torch.arange(prefix))] if prefix else [], prefix
    for length in lengths:
        rows = torch.cat([torch.arange(prefix), torch.arange(start, start + length)])
        pieces.append(attend(rows)[prefix:])
        start += length
    return torch.cat(pieces)


def with_gradients(attend, parts, seed=1):
    out = attend(*parts)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).to(out.dtype)
    return out.detach(), torch.autograd.grad(out, parts, grad)


@pytest.mark.parametrize(("heads", "groups", "prefix", "lengths"), SHAPES)
def test_a_pack_gives_what_each_example_gives_alone(heads, groups, prefix, lengths):
    parts = tensors(heads, groups, prefix + sum(lengths))
    found, slopes = with_gradients(lambda *qkv: pack_attention(*qkv, Segments(prefix, lengths)), parts)
    expected, wanted = with_gradients(lambda *qkv: alone(*qkv, prefix, lengths), parts)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for slope, want in zip(slopes, wanted, strict=True):
        torch.testing.assert_close(slope, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("heads", "groups", "prefix", "lengths"), SHAPES)
def test_bfloat16_is_close_to_float32(heads, groups, prefix, lengths):
    """Scores are float32; only inputs, shares and outputs are rounded to 8 bits."""
    parts = tensors(heads, groups, prefix + sum(lengths), torch.bfloat16)
    exact = [part.detach().float().requires_grad_() for part in parts]
    found, slopes = with_gradients(lambda *qkv: pack_attention(*qkv, Segments(prefix, lengths)), parts)
    expected, wanted = with_gradients(lambda *qkv: alone(*qkv, prefix, lengths), exact)
    assert found.dtype is torch.bfloat16
    for one, other in zip((found, *slopes), (expected, *wanted), strict=True):
        assert one.dtype is torch.bfloat16
        assert float((one.float() - other).norm()) < 0.02 * float(other.norm()) + 1e-3


def test_large_scores_keep_their_differences_in_bfloat16():
    """Qwen's key biases shift all scores of a row alike; in bfloat16 scores of 1000 would be 4 apart at least."""
    q, k, v = tensors(2, 2, 12, torch.bfloat16)
    plain = pack_attention(q, k, v, Segments(0, (12,)))
    with torch.no_grad():
        q[..., 0], k[..., 0] = 1.0, 1024.0  # the same 362 for every score
        shifted = pack_attention(q, k, v, Segments(0, (12,)))
        q[..., 0], k[..., 0] = 1.0, 0.0
        expected = pack_attention(q, k, v, Segments(0, (12,)))
    assert not torch.equal(plain, expected)
    assert float((shifted.float() - expected.float()).norm() / expected.float().norm()) < 0.01


@pytest.mark.parametrize(("heads", "groups", "prefix", "lengths"), SHAPES)
def test_the_written_backward_pass_is_the_derivative(heads, groups, prefix, lengths):
    """Computed in float64, as autograd takes it of the plain formula.

    ``gradcheck`` itself can't be used: scores are made and kept in float32 whatever the inputs are, and its
    differences of 1e-6 would drown in their rounding.
    """
    parts = tensors(heads, groups, prefix + sum(lengths))
    exact = [part.detach().double().requires_grad_() for part in parts]
    _out, slopes = with_gradients(lambda *qkv: pack_attention(*qkv, Segments(prefix, lengths)), parts)
    _out, wanted = with_gradients(lambda *qkv: alone(*qkv, prefix, lengths), exact)
    for slope, want in zip(slopes, wanted, strict=True):
        assert float((slope - want).norm() / want.norm().clamp(min=1e-9)) < 1e-5 or float(slope.norm()) < 1e-5


@pytest.mark.parametrize("changed", range(12))
def test_no_token_sees_a_later_one_or_another_example(changed):
    """The pack: a prefix of 3, then examples of 4, 2 and 3 tokens."""
    prefix, lengths = 3, (4, 2, 3)
    owner = [0] * prefix + [n for n, length in enumerate(lengths, 1) for _ in range(length)]
    segments = Segments(prefix, lengths)
    parts = [part.detach() for part in tensors(2, 1, 12)]
    before = pack_attention(*parts, segments)
    for part in parts:
        part[changed] += 3
    moved = (pack_attention(*parts, segments) != before).any(1).tolist()
    sees = [row >= changed and (owner[changed] in {0, owner[row]}) for row in range(12)]
    assert moved == sees


@pytest.mark.parametrize("row", range(12))
def test_a_rows_gradient_reaches_only_what_it_saw(row):
    prefix, lengths = 3, (4, 2, 3)
    owner = [0] * prefix + [n for n, length in enumerate(lengths, 1) for _ in range(length)]
    q, k, v = tensors(2, 1, 12)
    out = pack_attention(q, k, v, Segments(prefix, lengths))
    _of_q, of_k, of_v = torch.autograd.grad(out[row].sum(), (q, k, v))
    seen = [column <= row and owner[column] in {0, owner[row]} for column in range(12)]
    assert (of_v != 0).flatten(1).any(1).tolist() == seen
    assert not of_k[[column for column in range(12) if not seen[column]]].any()


def test_segments_say_where_they_start_and_what_they_see():
    assert list(Segments(3, (4, 2))) == [(0, 3, 0), (3, 4, 3), (7, 2, 3)]
    assert list(Segments(0, (4, 2))) == [(0, 4, 0), (4, 2, 0)]


def test_a_mask_is_made_once_for_all_layers():
    segments = Segments(2, (3, 3))
    mask = segments.mask(3, 2)
    assert mask.tolist() == [[0, 0, 0, *[-torch.inf] * 2], [0, 0, 0, 0, -torch.inf], [0] * 5]
    assert segments.mask(3, 2) is mask


def test_second_derivatives_are_refused_rather_than_wrong():
    q, k, v = tensors(2, 1, 4)
    (slope,) = torch.autograd.grad(pack_attention(q, k, v, Segments(0, (4,))).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()
