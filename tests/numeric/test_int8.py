"""Products in int8: exact where they are whole numbers, within a percent or two where they are rounded."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import packs
from znatok.fast import eager
from znatok.fast.eager import Rows
from znatok.fast.kernels import kernels
from znatok.fast.linear import FrozenLinear, Int8Weight, quantise_weight
from znatok.fast.loss import Int8Head, row_loss
from znatok.fast.product import INT_MM, ONEDNN, ONEDNN_7
from znatok.model.adapters import TARGETS
from znatok.model.backbone import build_backbone, obstacle

pytestmark = [
    pytest.mark.filterwarnings(packs.QUIET),
    pytest.mark.skipif(not INT_MM.exact(), reason="this processor's int8 product is not exact"),
]

SHAPES = [((128,), 192), ((128, 64, 64), 256), ((36,), 20), ((100, 28), 70), ((7,), 33), ((1,), 1), ((512,), 1536)]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(3)


def noise(generator, *shape):
    return torch.randn(*shape, generator=generator)


def rounded(weight_NK, widths, bias=None):
    pairs = [quantise_weight(part.clone()) for part in weight_NK.split(widths)]
    return Int8Weight(torch.cat([q for q, _step in pairs]), torch.cat([step for _q, step in pairs]), widths, bias)


def forward(weight, x_TK):
    bare = weight.parts([None] * len(weight.widths))
    return kernels().finish(weight.product(weight.encode(x_TK)), bare, bias_N=weight.bias)


def backward(weight, grad_TN):
    return kernels().finish(weight.transposed(weight.encode_gradient(grad_TN)), weight.input_part(None))


@pytest.mark.parametrize(("widths", "inputs"), SHAPES)
def test_both_products_are_within_two_percent_of_float(generator, widths, inputs):
    exact, x, grad = (
        noise(generator, sum(widths), inputs),
        noise(generator, 40, inputs),
        noise(generator, 40, sum(widths)),
    )
    weight = rounded(exact, widths)
    assert packs.distance(forward(weight, x), x @ exact.t()) < 0.02
    assert packs.distance(backward(weight, grad), grad @ exact) < 0.02


@pytest.mark.parametrize(("widths", "inputs"), SHAPES)
@pytest.mark.parametrize("tokens", [1, 2, 16, 17, 40])
def test_the_whole_numbers_are_exact(generator, widths, inputs, tokens):
    weight = rounded(noise(generator, sum(widths), inputs), widths)
    for rows, product, other in (
        (weight.encode(noise(generator, tokens, inputs)), weight.product, weight.q.t()),
        (weight.encode_gradient(noise(generator, tokens, sum(widths))), weight.transposed, weight.q),
    ):
        raw = product(rows)
        assert raw.acc.dtype is torch.int32
        assert torch.equal(raw.acc.long(), rows.q.long() @ other.long())
        assert raw.row is rows.step


def test_the_largest_numbers_do_not_overflow():
    """127 · 127 · 8960 inputs is the most a projection of Qwen2.5-1.5B can sum up."""
    weight = Int8Weight(torch.full((64, 8960), 127, dtype=torch.int8), torch.ones(64), (64,))
    rows = Rows(torch.full((17, 8960), -127, dtype=torch.int8), torch.ones(17))
    assert (weight.product(rows).acc == -127 * 127 * 8960).all()


def test_rounding_is_all_that_is_lost(generator):
    """The stored weight, turned back on both sides, is the original within half a step in each turned row."""
    exact = noise(generator, 128, 96)
    weight = rounded(exact, (128,))
    turned = weight.q.float() * weight.step[:, None]
    wanted = eager.rotate(eager.rotate(exact.t(), 64).t(), 32)  # outputs in blocks of 64, inputs of 32
    assert ((turned - wanted).abs() <= 0.501 * weight.step[:, None]).all()


def plain_int8(x):
    """Round rows with a step of their own and nothing else, as the usual recipe does."""
    step = x.abs().amax(1, keepdim=True) / 127
    return (x / step).round() * step


@pytest.mark.parametrize(("widths", "inputs"), [((128,), 192), ((256,), 1024), ((100, 28), 192)])
def test_an_outlier_channel_does_not_drown_the_others(generator, widths, inputs):
    """One input is a hundred times the rest, as SwiGLU's outputs are; what the rest says must survive."""
    exact, x = noise(generator, sum(widths), inputs), noise(generator, 40, inputs)
    x[:, 3] *= 100
    ours = packs.distance(forward(rounded(exact, widths), x), x @ exact.t())
    plain = packs.distance(plain_int8(x) @ plain_int8(exact).t(), x @ exact.t())
    assert ours < 0.02
    assert plain > 2 * ours


def test_outlier_rows_of_weights_do_not_drown_the_gradient(generator):
    """The steps of the rows are folded into the gradient before it is rounded: a large row must not hide the rest."""
    exact, grad = noise(generator, 192, 128), noise(generator, 40, 192)
    exact[5] *= 100
    ours = packs.distance(backward(rounded(exact, (192,)), grad), grad @ exact)
    step = exact.abs().amax(1) / 127
    plain = packs.distance(plain_int8(grad * step) @ (exact / step[:, None]).round(), grad @ exact)
    assert ours < 0.02
    assert plain > ours


def test_a_zero_weight_stays_zero_and_finite(generator):
    weight = rounded(torch.zeros(64, 64), (64,))
    assert not forward(weight, noise(generator, 4, 64)).any()
    assert not backward(weight, noise(generator, 4, 64)).any()


def test_parts_of_a_group_are_the_projections_themselves(generator):
    exact, bias, x = noise(generator, 128, 64), noise(generator, 128), noise(generator, 20, 64)
    group = rounded(exact, (64, 32, 32), bias)
    whole = forward(group, x).split(group.widths, dim=1)
    for alone, expected in zip(group.split(), whole, strict=True):
        torch.testing.assert_close(forward(alone, x), expected)
        assert alone.q.untyped_storage().data_ptr() == group.q.untyped_storage().data_ptr()


# The module that stands for nn.Linear


@pytest.fixture
def layer(generator):
    exact, bias = noise(generator, 96, 64), noise(generator, 96)
    return exact[64:], bias[64:], FrozenLinear(rounded(exact, (64, 32), bias), 1, torch.float32)


@pytest.mark.parametrize("shape", [(1, 64), (5, 64), (16, 64), (17, 64), (2, 3, 64), (1, 1, 64), (3, 9, 64), (64,)])
def test_the_module_multiplies_and_takes_gradients_like_a_linear_layer(generator, layer, shape):
    exact, bias, module = layer
    x = noise(generator, *shape).requires_grad_()
    expected = F.linear(x, exact, bias)
    grad = noise(generator, *expected.shape)
    found = module(x)
    assert found.shape == expected.shape
    assert packs.distance(found.detach(), expected.detach()) < 0.02
    (slope,), (wanted,) = torch.autograd.grad(found, x, grad), torch.autograd.grad(expected, x, grad)
    assert slope.shape == x.shape
    assert packs.distance(slope, wanted) < 0.02


def test_a_row_is_the_same_alone_and_among_others(generator, layer):
    _exact, _bias, module = layer
    x = noise(generator, 20, 64)
    assert torch.equal(module(x)[:3], module(x[:3]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_module_answers_in_the_dtype_it_is_asked_in(generator, layer, dtype):
    exact, bias, module = layer
    x = noise(generator, 18, 64).to(dtype).requires_grad_()
    found = module(x)
    found.sum().backward()
    assert found.dtype is x.grad.dtype is dtype
    assert packs.distance(found.detach().float(), F.linear(x.detach().float(), exact, bias)) < 0.02


def test_the_modules_weight_takes_no_memory_and_fools_nobody(layer):
    exact, _bias, module = layer
    assert module.weight.shape == exact.shape
    assert (module.out_features, module.in_features) == exact.shape
    assert module.weight.isnan().all()
    assert module.weight.untyped_storage().nbytes() == 4
    assert not any(parameter.requires_grad for parameter in module.parameters())


# A whole model


def int8_model(architecture="qwen2", dtype=torch.float32):
    """Return the float base, and the same base with its projections rounded."""
    exact, model = packs.base(architecture), packs.base(architecture).to(dtype)
    for layer in model.model.layers:
        for owner, names in (
            (layer.self_attn, ("q_proj", "k_proj", "v_proj")),
            (layer.self_attn, ("o_proj",)),
            (layer.mlp, ("gate_proj", "up_proj")),
            (layer.mlp, ("down_proj",)),
        ):
            old = [getattr(owner, name) for name in names]
            bias = None if old[0].bias is None else torch.cat([module.bias.float() for module in old])
            widths = tuple(module.out_features for module in old)
            group = rounded(torch.cat([module.weight.float() for module in old]), widths, bias)
            for index, name in enumerate(names):
                setattr(owner, name, FrozenLinear(group, index, dtype))
    return exact, model.requires_grad_(False)


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_peft_takes_the_module_for_a_linear_layer(architecture):
    exact, model = int8_model(architecture)
    tuned, reference = packs.adapted(model), packs.adapted(exact)
    names = {name.split(".")[-2] for name, module in tuned.named_modules() if isinstance(module, FrozenLinear)}
    assert names == set(TARGETS)  # each inside its LoRA layer
    loss, gradients = packs.slopes(tuned, packs.losses_alone(tuned, packs.rows()))
    wanted_loss, wanted = packs.slopes(reference, packs.losses_alone(reference, packs.rows()))
    assert loss == pytest.approx(wanted_loss, rel=0.02)
    assert torch.cosine_similarity(packs.flat(gradients), packs.flat(wanted), dim=0) > 0.98


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_fast_engine_in_int8_is_close_to_float(architecture, dtype):
    exact, model = int8_model(architecture, dtype)
    tuned, reference = packs.adapted(model), packs.adapted(exact)
    assert not obstacle(tuned)
    backbone = build_backbone(tuned)
    assert all(isinstance(layer.qkv.weight, Int8Weight) for layer in backbone.layers)
    loss, gradients = packs.slopes(tuned, packs.losses_packed(backbone, tuned, packs.rows()))
    wanted_loss, wanted = packs.slopes(reference, packs.losses_alone(reference, packs.rows()))
    assert loss == pytest.approx(wanted_loss, rel=0.03)
    assert torch.cosine_similarity(packs.flat(gradients), packs.flat(wanted), dim=0) > 0.98


@pytest.mark.parametrize("limit", [1000, 20, 1])
def test_packs_of_few_rows_train_in_int8(limit):
    _exact, model = int8_model()
    tuned = packs.adapted(model)
    short = [packs.Row((5, 6, 7, 8), 2), packs.Row((5, 9), 1), packs.Row((5, 6, 4), 2)]
    together = packs.slopes(tuned, packs.losses_packed(build_backbone(tuned), tuned, short))
    apart = packs.slopes(tuned, packs.losses_packed(build_backbone(tuned), tuned, short, limit))
    assert apart[0] == pytest.approx(together[0], rel=0.01)
    assert torch.cosine_similarity(packs.flat(apart[1]), packs.flat(together[1]), dim=0) > 0.99


# The head


@pytest.fixture
def head(generator):
    """Return hidden states, targets, and a head in float and in int8."""
    rows = noise(generator, 500, 64) * 0.3
    q, step = quantise_weight(rows.clone(), turn=False)
    hidden = noise(generator, 150, 64)
    target = torch.randint(0, 500, (150,), generator=generator)
    hidden[:20] = 2 * rows[target[:20]]  # the model is sure, and right
    hidden[20:40] = 2 * rows[(target[20:40] + 1) % 500]  # and wrong
    return hidden.requires_grad_(), target, rows, Int8Head(Int8Weight(q, step, (500,), turned=False), rows)


def test_an_int8_head_gives_the_loss_of_the_float_head(head):
    hidden, target, rows, rounded_head = head
    ours, theirs = (row_loss(hidden, one, target).item() for one in (rounded_head, rows))
    assert ours == pytest.approx(theirs, rel=1e-6)
    with torch.no_grad():
        assert row_loss(hidden, rounded_head, target).item() == pytest.approx(theirs, rel=1e-6)


def test_an_int8_head_gives_the_slope_of_the_float_head_in_every_row(head):
    hidden, target, rows, rounded_head = head
    (found,) = torch.autograd.grad(2 * row_loss(hidden, rounded_head, target), hidden)
    (exact,) = torch.autograd.grad(2 * row_loss(hidden, rows, target), hidden)
    error = (found - exact).norm(dim=1) / exact.norm(dim=1)
    assert error.max() < 0.04
    assert error.mean() < 0.01
    assert (
        exact[:20].norm(dim=1).median() < 0.05 * exact[20:].norm(dim=1).min()
    )  # where the model is sure, little is left


def test_the_int8_heads_loss_in_pieces_is_the_loss_of_the_whole(head):
    """The order of rows and the size of pieces must not matter but for the draws."""
    hidden, target, _rows, rounded_head = head
    (whole,) = torch.autograd.grad(row_loss(hidden, rounded_head, target), hidden)
    pieces = [row_loss(h, rounded_head, t) for h, t in zip(hidden.split(7), target.split(7), strict=True)]
    (parts,) = torch.autograd.grad(sum(pieces), hidden)
    assert packs.distance(parts, whole) < 0.01
    torch.manual_seed(1)
    (one,) = torch.autograd.grad(row_loss(hidden, rounded_head, target), hidden)
    torch.manual_seed(1)
    (same,) = torch.autograd.grad(row_loss(hidden, rounded_head, target), hidden)
    assert torch.equal(one, same)


# Other ways to multiply


@pytest.mark.parametrize("way", [ONEDNN, ONEDNN_7], ids=lambda way: way.name)
@pytest.mark.parametrize(("widths", "inputs"), SHAPES)
def test_another_way_is_as_good_as_its_levels(generator, way, widths, inputs):
    exact, x, grad = (
        noise(generator, sum(widths), inputs),
        noise(generator, 40, inputs),
        noise(generator, 40, sum(widths)),
    )
    plain = rounded(exact, widths)
    weight = replace(plain, way=way)
    assert int(weight.encode(x).q.abs().max()) == int(weight.encode_gradient(grad).q.abs().max()) == way.levels
    limit = 0.02 * 127 / way.levels
    assert packs.distance(forward(weight, x), x @ exact.t()) < limit
    assert packs.distance(backward(weight, grad), grad @ exact) < limit
    if way.levels == 127:
        torch.testing.assert_close(forward(weight, x), forward(plain, x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(backward(weight, grad), backward(plain, grad), rtol=1e-5, atol=1e-5)


def test_weights_for_answers_are_laid_out_once_and_keep_their_parts(generator):
    weight = rounded(noise(generator, 192, 64), (128, 64))
    answering = weight.answering(32)
    assert answering.way is ONEDNN
    assert weight.answering(32) is answering
    assert answering.answering(32) is answering
    assert [part.way for part in answering.split()] == [ONEDNN, ONEDNN]
    assert replace(weight, way=ONEDNN_7).answering(32).way is ONEDNN_7  # where more levels would not be exact


def test_the_head_keeps_to_the_levels_of_its_way(head, monkeypatch):
    hidden, target, rows, rounded_head = head
    seven = replace(rounded_head, weight=replace(rounded_head.weight, way=ONEDNN_7))
    taken, real = [], kernels().slope_rounded
    monkeypatch.setattr(kernels(), "slope_rounded", lambda *a: taken.append(real(*a)) or taken[-1])
    (found,) = torch.autograd.grad(row_loss(hidden, seven, target), hidden)
    (exact,) = torch.autograd.grad(row_loss(hidden, rows, target), hidden)
    assert max(int(slope.rows.q.abs().max()) for slope in taken) == 63
    assert packs.distance(found, exact) < 0.03
