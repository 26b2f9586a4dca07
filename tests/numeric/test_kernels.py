"""Every compiled kernel against its eager twin."""

import pytest
import torch

from znatok.fast import compiled, eager
from znatok.fast.compiler import build
from znatok.fast.eager import Dropout, History, Part, Raw, Rounding

pytestmark = pytest.mark.skipif(build().library is None, reason=f"no compiled kernels: {build().reason}")

T = 7
DROPOUT = Dropout(0.25, 987654321)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request):
    return request.param


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(5)


def noise(generator, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=generator).to(dtype)


def group(generator, widths, rank):
    return [Part(n, eager.block_of(n), noise(generator, rank, n)) for n in widths]


def product(generator, width, kind):
    """A raw product of each kind: int8 times int8, or float."""
    if kind is torch.int32:
        acc = torch.randint(-100000, 100000, (T, width), generator=generator, dtype=torch.int32)
        return Raw(acc, noise(generator, T).abs() / 1e5, noise(generator, width).abs())
    return Raw(noise(generator, T, width, dtype=kind))


def same_rows(one, other):
    """Rounding at exact halves may differ by one step where float32 sums differ in their last bit."""
    torch.testing.assert_close(one.step, other.step, rtol=1e-5, atol=0)
    difference = (one.q.int() - other.q.int()).abs()
    assert int(difference.max()) <= 1
    assert float(difference.float().mean()) < 0.01


def close(one, other):
    slack = {"rtol": 2e-2, "atol": 2e-2} if one.dtype is torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(one, other, **slack)


@pytest.mark.parametrize("widths", [(128,), (96, 32, 64), (36,), (1536, 256)])
def test_quantise(generator, dtype, widths):
    x = noise(generator, T, sum(widths), dtype=dtype)
    parts = group(generator, widths, 2)
    for column in (None, noise(generator, sum(widths)).abs()):
        for levels in (127, 63):
            rows = compiled.quantise(x, parts, column, levels)
            same_rows(rows, eager.quantise(x, parts, column, levels))
            assert (rows.q.abs().amax(1) == levels).all()


def test_quantise_of_zeros_is_zero():
    rows = compiled.quantise(torch.zeros(2, 64), [Part(64, 64)])
    assert not rows.q.any()
    assert torch.isfinite(rows.step).all()


@pytest.mark.parametrize("shape", [(128, 5), (36, 3), (64, 9000)])
def test_rotate_long(generator, shape):
    x = noise(generator, *shape)
    expected = eager.rotate_long_(x.clone(), eager.block_of(shape[0]))
    close(compiled.rotate_long_(x.clone(), eager.block_of(shape[0])), expected)


@pytest.mark.parametrize("width", [1, 2, 12, 64, 448, 1536])
def test_rotation_is_its_own_inverse_and_keeps_length(generator, width):
    x = noise(generator, 3, width)
    turned = eager.rotate(x, eager.block_of(width))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(eager.rotate(turned, eager.block_of(width)), x, rtol=1e-4, atol=1e-5)


def test_drop(generator, dtype):
    x = noise(generator, T, 100, dtype=dtype)
    assert torch.equal(compiled.drop(x, DROPOUT), eager.drop(x, DROPOUT))


def test_dropout_is_fair():
    kept = eager.keep_mask((400, 500), Dropout(0.1, 7)).double()
    assert abs(float(kept.mean()) - 0.9) < 4 * (0.09 / 200_000) ** 0.5
    assert abs(float(kept.mean(0).var()) / (0.09 / 400) - 1) < 0.3  # columns differ as chance has them differ
    assert abs(float(kept.mean(1).var()) / (0.09 / 500) - 1) < 0.3
    centred = kept - 0.9
    for one, other in ((centred[:, :-1], centred[:, 1:]), (centred[:-1], centred[1:])):
        assert abs(float((one * other).mean())) < 4 * 0.09 / 200_000**0.5  # neighbours know nothing of each other
    assert not torch.equal(kept, eager.keep_mask((400, 500), Dropout(0.1, 8)).double())


@pytest.mark.parametrize("dropout", [None, Dropout(), DROPOUT])
def test_normalise(generator, dtype, dropout):
    x, gain = noise(generator, T, 192), noise(generator, 192)
    what = {"rounded": Rounding(64, 63), "dropout": dropout, "plain": True, "dtype": dtype}
    one, other = compiled.normalise(x, gain, 1e-6, **what), eager.normalise(x, gain, 1e-6, **what)
    close(one.rstd, other.rstd)
    same_rows(one.rows, other.rows)
    close(one.plain, other.plain)
    assert (one.dropped is None) == (dropout is None)
    if dropout is not None:
        close(one.dropped, other.dropped)


def test_normalise_backward_is_the_derivative(generator):
    x, gain, grad, add = (noise(generator, *shape) for shape in ((T, 48), (48,), (T, 48), (T, 48)))
    x.requires_grad_()
    rstd = torch.rsqrt(x.square().mean(-1) + 1e-6)
    (expected,) = torch.autograd.grad(x * rstd[:, None] * gain, x, grad)
    for twin in (compiled, eager):
        got = twin.normalise_backward(grad, x.detach(), rstd.detach(), gain, None)
        close(got, expected)
        close(twin.normalise_backward(grad, x.detach(), rstd.detach(), gain, add), expected + add)


@pytest.mark.parametrize("kind", [torch.int32, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [Dropout(), DROPOUT])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_finish(generator, dtype, kind, dropout, rank):
    widths = (128, 64, 36)
    raw, parts = product(generator, sum(widths), kind), group(generator, widths, rank)
    what = {
        "bias_N": noise(generator, sum(widths)),
        "low_TR": noise(generator, T, 3 * rank),
        "dropout": dropout,
        "add_TN": noise(generator, T, sum(widths)),
        "dtype": dtype,
    }
    close(compiled.finish(raw, parts, **what), eager.finish(raw, parts, **what))
    close(compiled.finish(raw, parts, dtype=dtype), eager.finish(raw, parts, dtype=dtype))


@pytest.mark.parametrize("dropout", [None, DROPOUT])
@pytest.mark.parametrize("rank", [0, 2])
def test_swiglu_and_its_backward(generator, dtype, dropout, rank):
    width = 192
    for kind in {torch.int32, torch.float32, dtype}:
        raw = product(generator, 2 * width, kind)
        parts = group(generator, (width, width), rank or 1)
        low = noise(generator, T, 2 * rank) if rank else None
        what = {"rounded": Rounding(64, 63), "dropout": dropout, "plain": True, "keep": True, "dtype": dtype}
        one, other = compiled.swiglu(raw, parts, low, **what), eager.swiglu(raw, parts, low, **what)
        for name in ("gate_up", "plain", *(["dropped"] if dropout else [])):
            close(getattr(one, name), getattr(other, name))
        same_rows(one.rows, other.rows)
        grad = product(generator, width, kind)._replace(column=None)
        column = noise(generator, 2 * width).abs()
        back = {
            "low_TR": noise(generator, T, 3) if rank else None,
            "down_RF": noise(generator, 3, width),
            "dropout": dropout or Dropout(),
            "rounded": (parts, column, 63),
            "again": True,
        }
        held = [other.gate_up.clone(), other.gate_up.clone()]
        rows = [
            twin.swiglu_backward_(grad, 64, gate_up, **back)
            for twin, gate_up in zip((compiled, eager), held, strict=True)
        ]
        close(held[0], held[1])
        same_rows(rows[0][0], rows[1][0])
        close(rows[0][1], rows[1][1])


def test_swiglu_backward_is_the_derivative(generator):
    width = 64
    gate_up, grad = noise(generator, T, 2 * width).requires_grad_(), noise(generator, T, width)
    gate, up = gate_up.chunk(2, dim=-1)
    (expected,) = torch.autograd.grad(torch.nn.functional.silu(gate) * up, gate_up, grad)
    for twin in (compiled, eager):
        held = gate_up.detach().clone()
        twin.swiglu_backward_(
            Raw(grad), 1, held, low_TR=None, down_RF=None, dropout=Dropout(), rounded=None, again=False
        )
        close(held, expected)


@pytest.mark.parametrize("gate", [-88.8, -100.0, -1e4, 88.8, 1e4])
def test_swiglu_of_a_gate_far_from_zero_is_a_number(dtype, gate):
    """exp(89) is infinite in float32, and 1 / infinity is not a number under -ffast-math's reciprocals."""
    held = torch.tensor([[gate, 2.0]]).to(dtype).repeat_interleave(64, dim=1)
    parts, form = (
        [Part(64), Part(64)],
        {"rounded": Rounding(64), "dropout": None, "plain": True, "keep": True, "dtype": dtype},
    )
    for twin in (compiled, eager):
        out = twin.swiglu(Raw(held.clone()), parts, None, **form)
        close(out.plain, torch.full((1, 64), max(2 * gate, 0.0)).to(dtype))
        assert torch.isfinite(out.rows.step).all()
        slope = out.gate_up.clone()
        twin.swiglu_backward_(
            *(Raw(torch.ones(1, 64, dtype=dtype)), 1, slope),
            **{"low_TR": None, "down_RF": None, "dropout": Dropout(), "rounded": None, "again": False},
        )
        close(slope, torch.tensor([[2.0 * (gate > 0), max(gate, 0.0)]]).to(dtype).repeat_interleave(64, dim=1))


def test_rope_turns_and_turns_back(generator, dtype):
    x, angle = noise(generator, T, 3 * 16, dtype=dtype), noise(generator, T, 8)
    cosine, sine = angle.cos(), angle.sin()
    one = compiled.rope_(x.clone()[:, :32], 16, cosine, sine)
    close(one, eager.rope_(x.clone()[:, :32], 16, cosine, sine))
    close(compiled.rope_(one, 16, cosine, sine, -1.0), x[:, :32])


HEADS, KEYS, WIDTH = 6, 2, 16


def history(generator, dtype, lengths, capacity=9):
    """Buffers of several rows; what lies behind a row's length is not to be read."""

    def buffers():
        made = [noise(generator, KEYS, capacity, WIDTH, dtype=dtype) if n else None for n in lengths]
        for buffer, n in zip(made, lengths, strict=True):
            if buffer is not None:
                buffer[:, n:] = torch.nan
        return made

    return History(buffers(), buffers(), lengths)


def copy_of(past):
    return History(*([None if b is None else b.clone() for b in part] for part in past[:2]), past.lengths)


def projected(generator, dtype, rows):
    """Queries, keys and values side by side, as a layer leaves them."""
    whole = noise(generator, rows, (HEADS + 2 * KEYS) * WIDTH, dtype=dtype)
    return [part.unflatten(1, (-1, WIDTH)) for part in whole.split([HEADS * WIDTH, KEYS * WIDTH, KEYS * WIDTH], dim=1)]


def test_attend_rows(generator, dtype):
    lengths = [1, 0, 9, 4]
    new, past = projected(generator, dtype, 4), history(generator, dtype, lengths)
    pasts = [copy_of(past), copy_of(past)]
    found, expected = (twin.attend_rows(*new, held) for twin, held in zip((compiled, eager), pasts, strict=True))
    close(found, expected)
    assert not found[1].any()  # idle
    for row, length in enumerate(lengths):
        for one, other, part in zip(pasts[0][:2], pasts[1][:2], new[1:], strict=True):
            if length:
                assert torch.equal(one[row][:, :length], other[row][:, :length])
                assert torch.equal(one[row][:, length - 1], part[row])


def test_a_rows_attention_is_the_same_in_any_company(generator, dtype):
    lengths = [3, 7, 5]
    new, past = projected(generator, dtype, 3), history(generator, dtype, lengths)
    whole = compiled.attend_rows(*new, copy_of(past))
    for row in range(3):
        alone = History(*([b if n == row else None for n, b in enumerate(p)] for p in past[:2]), lengths)
        assert torch.equal(compiled.attend_rows(*new, alone)[row], whole[row])


@pytest.mark.parametrize("spoil", ["length", "dtype", "strides"])
def test_attend_rows_refuses_what_it_would_misread(generator, spoil):
    new, past = projected(generator, torch.float32, 2), history(generator, torch.float32, [3, 4])
    if spoil == "length":
        past = past._replace(lengths=[3, 10])
    elif spoil == "dtype":
        past.keys[0] = past.keys[0].double()
    else:
        new[1] = new[1].contiguous()
    with pytest.raises(AssertionError):
        compiled.attend_rows(*new, past)


def test_kernels_leave_the_rounding_of_the_process_alone():
    tiny = torch.tensor([1e-40])
    compiled.quantise(torch.ones(2, 64), [Part(64, 64)])
    assert float(tiny * 1) != 0.0  # a library linked with -ffast-math would have switched subnormal numbers off


def test_slope_is_the_derivative_of_cross_entropy(generator, dtype):
    logits, target = noise(generator, T, 300).mul_(3).to(dtype), torch.randint(0, 300, (T,), generator=generator)
    scores = logits.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(scores, target, reduction="none")
    (slope,) = torch.autograd.grad(expected.sum(), scores)
    for twin in (compiled, eager):
        held = logits.clone()
        close(twin.slope_(held, target), expected.detach().float())
        close(held, slope.to(dtype))


@pytest.mark.parametrize("twin", [compiled, eager], ids=["compiled", "eager"])
def test_what_all_rows_have_in_common_is_not_rounded_away(generator, twin):
    """Of a model that is nearly sure, most tokens have less than half a step: rounded to nearest, all would be 0."""
    rows, width = 300, 4000
    logits, target = noise(generator, rows, width) / 10, torch.randint(0, width, (rows,), generator=generator)
    logits[:, 7] = 6.5  # the largest of the small shares makes the steps large
    logits.scatter_(1, target[:, None], 12.0)
    got = twin.slope_rounded(logits, target, torch.ones(width), 5)
    assert (got.rows.q >= 0).all()
    exact = logits.double().softmax(-1)
    exact[torch.arange(rows), target] -= 1
    found = (got.rows.q.double() * got.rows.step[:, None]).scatter_add_(1, got.at, got.large.double())
    rest = torch.ones(width, dtype=torch.bool)
    rest[7] = rest[target] = False
    assert float(exact[:, rest].max()) < float(got.rows.step.min()) / 2
    torch.testing.assert_close(found[:, rest].sum(), exact[:, rest].sum(), rtol=0.02, atol=0)
    again, other = (twin.slope_rounded(logits, target, torch.ones(width), seed).rows.q for seed in (5, 6))
    assert torch.equal(again, got.rows.q)
    assert not torch.equal(other, got.rows.q)


@pytest.mark.parametrize("levels", [127, 63])
def test_rounded_slope_is_the_derivative_even_where_the_model_is_sure(generator, dtype, levels):
    logits, target = noise(generator, T, 500).mul_(3).to(dtype), torch.randint(0, 500, (T,), generator=generator)
    logits[0, target[0]] = 12  # of the right answer: what is left of the slope must not vanish
    logits[1, (target[1] + 1) % 500] = 30  # of a wrong one
    column = noise(generator, 500).abs() + 0.5
    scores = logits.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(scores, target, reduction="none")
    (slope,) = torch.autograd.grad(expected.sum(), scores)
    twins = [twin.slope_rounded(logits, target, column, 11, levels) for twin in (compiled, eager)]
    same_rows(twins[0].rows, twins[1].rows)
    for got in twins:
        close(got.loss, expected.detach().float())
        whole = got.rows.q.double() * got.rows.step[:, None] / column
        whole.scatter_add_(1, got.at, got.large.double())
        error = (whole - slope).norm(dim=1) / slope.norm(dim=1).clamp(min=1e-4)
        assert float(error.max()) < 0.01 * 127 / levels
        assert int(got.rows.q.abs().max()) == levels
