"""int8 on trial: what it may differ by, what is put back to float, and that the trial leaves no trace."""

import json
from dataclasses import replace

import pytest
import torch

import packs
from znatok.fast import guard
from znatok.fast.guard import COSINE_LIMIT, GROUPS, LOSS_LIMIT, Verdict, judge, with_floats
from znatok.fast.linear import FloatWeight, Int8Weight, quantise_weight
from znatok.fast.product import INT_MM
from znatok.model.backbone import build_backbone
from znatok.model.score import head_weight
from znatok.tokens.packing import pack

pytestmark = [
    pytest.mark.filterwarnings(packs.QUIET),
    pytest.mark.skipif(not INT_MM.exact(), reason="this processor's int8 product is not exact"),
]


class Trial:
    """A float model with adapters, its int8 backbone, and a batch to compare them on."""

    def __init__(self, layers=2, spread=0.0):
        self.model = packs.adapted(packs.base(num_hidden_layers=layers), spread=spread)
        self.exact = build_backbone(self.model)
        self.pack = pack(packs.rows())
        self.heads = head_weight(self.model), head_weight(self.model)
        self.reads = []
        self.backbone = self.rounded()

    def read(self, number, group):
        self.reads.append(f"{number}.{group}")
        return getattr(self.exact.layers[number], group).weight.weight

    def rounded(self, spoilt=(), factor=3.0):
        """Return the int8 backbone; the steps of spoilt groups are ``factor`` times what they should be."""
        layers = []
        for number, layer in enumerate(self.exact.layers):
            groups = {}
            for name in GROUPS:
                old = getattr(layer, name)
                pairs = [quantise_weight(w.clone()) for w in old.weight.weight.split(old.weight.widths)]
                step = torch.cat([step for _q, step in pairs]) * (factor if f"{number}.{name}" in spoilt else 1)
                weight = Int8Weight(torch.cat([q for q, _step in pairs]), step, old.weight.widths, old.weight.bias)
                groups[name] = replace(old, weight=weight)
            layers.append(replace(layer, **groups))
        return replace(self.exact, layers=layers)

    def judge(self, backbone=None):
        return judge(backbone or self.backbone, self.pack, self.heads, self.read)


def kinds(backbone):
    """Return the groups that are computed in float."""
    return {
        f"{number}.{name}"
        for number, layer in enumerate(backbone.layers)
        for name in GROUPS
        if isinstance(getattr(layer, name).weight, FloatWeight)
    }


def test_honest_int8_passes_as_it_is():
    trial = Trial()
    chosen, verdict = trial.judge()
    assert verdict.passed
    assert verdict.floats == ()
    assert chosen is trial.backbone
    assert abs(verdict.difference) <= LOSS_LIMIT
    assert COSINE_LIMIT <= verdict.worst[0] <= 1.0001
    assert verdict.worst[0] <= verdict.cosine + 1e-3
    assert sorted(trial.reads) == sorted(
        2 * [f"{n}.{g}" for n in range(2) for g in GROUPS if (n, g) != (0, "qkv")] + ["0.qkv"]
    )  # forward and backward, and nothing below the first adapter


def test_the_reference_is_the_float_model_at_its_start():
    """The loss of B = 0 is the base's own but for the little spread that gives A a gradient."""
    trial = Trial()
    with torch.no_grad():
        expected = sum(packs.losses_alone(trial.model, packs.rows())) / len(trial.pack.targets_N)
    _chosen, verdict = trial.judge()
    assert verdict.reference == pytest.approx(float(expected), rel=1e-3)
    assert verdict.reference != float(expected)


@pytest.mark.parametrize("spoilt", [(), ("1.down",)], ids=["passes", "ranked and repaired"])
def test_the_trial_leaves_weights_gradients_and_chance_alone(spoilt):
    trial = Trial(spread=0.1)
    parameters = packs.learned(trial.model)
    for number, parameter in enumerate(parameters.values()):
        parameter.grad = torch.full_like(parameter, number)
    before = {name: (p.detach().clone(), p.grad.clone()) for name, p in parameters.items()}
    state = torch.get_rng_state()
    backbone = replace(trial.rounded(spoilt), training=True, p=0.5)
    chosen, _verdict = trial.judge(backbone)
    assert all(
        torch.equal(p, before[name][0]) and torch.equal(p.grad, before[name][1]) for name, p in parameters.items()
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert (chosen.training, chosen.p) == (True, 0.5)


def test_the_weights_come_back_even_after_an_error():
    trial = Trial(spread=0.1)
    before = {name: p.detach().clone() for name, p in packs.learned(trial.model).items()}

    def damaged(_number, _group):
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        judge(trial.backbone, trial.pack, trial.heads, damaged)
    assert all(torch.equal(p, before[name]) for name, p in packs.learned(trial.model).items())


def test_dropout_does_not_blur_the_comparison():
    trial = Trial()
    plain = trial.judge()[1]
    dropping = trial.judge(replace(trial.backbone, training=True, p=0.5))[1]
    assert dropping == plain


@pytest.mark.parametrize("spoilt", ["0.qkv", "0.out", "1.gate_up", "1.down"])
def test_a_spoilt_group_is_found_and_computed_in_float(spoilt):
    trial = Trial()
    backbone = trial.rounded({spoilt})
    assert guard._ranking(backbone, trial.pack, head_weight(trial.model), trial.read)[0] == spoilt
    chosen, verdict = trial.judge(backbone)
    assert verdict.passed
    assert spoilt in verdict.floats
    assert len(verdict.floats) == 2  # a quarter of eight groups
    assert kinds(chosen) == set(verdict.floats)


def test_more_spoilt_groups_take_up_to_half_of_the_model():
    trial = Trial()
    spoilt = {"0.down", "1.qkv", "1.down"}
    chosen, verdict = trial.judge(trial.rounded(spoilt))
    assert verdict.passed
    assert spoilt <= set(verdict.floats)
    assert len(verdict.floats) == 4
    assert kinds(chosen) == set(verdict.floats)


def test_a_hopeless_case_is_said_to_be_one():
    trial = Trial()
    backbone = trial.rounded({f"{number}.{group}" for number in range(2) for group in GROUPS})
    chosen, verdict = trial.judge(backbone)
    assert not verdict.passed
    assert chosen is backbone
    assert abs(verdict.difference) > LOSS_LIMIT or verdict.cosine < COSINE_LIMIT


def test_groups_put_back_to_float_are_exact():
    trial = Trial(spread=0.1)
    everything = [f"{number}.{group}" for number in range(2) for group in GROUPS]
    backbone = with_floats(trial.rounded(everything), everything, trial.read)
    loss, gradients = packs.slopes(trial.model, packs.losses_packed(backbone, trial.model, packs.rows()))
    exact_loss, exact = packs.slopes(trial.model, packs.losses_packed(trial.exact, trial.model, packs.rows()))
    assert loss == exact_loss
    assert all(torch.equal(gradients[name], gradient) for name, gradient in exact.items())
    assert with_floats(trial.backbone, [], trial.read) is trial.backbone


@pytest.mark.parametrize(
    ("verdict", "passed"),
    [
        (Verdict(2.0, 2.0, 1.0, (1.0, "0.qkv")), True),
        (Verdict(2.0 * (1 + LOSS_LIMIT) - 1e-6, 2.0, COSINE_LIMIT, (0.5, "0.qkv")), True),
        (Verdict(2.0 * (1 - LOSS_LIMIT) - 1e-3, 2.0, 1.0, (1.0, "0.qkv")), False),
        (Verdict(2.0 * (1 + LOSS_LIMIT) + 1e-3, 2.0, 1.0, (1.0, "0.qkv")), False),
        (Verdict(2.0, 2.0, COSINE_LIMIT - 1e-4, (1.0, "0.qkv")), False),
        (Verdict(float("nan"), 2.0, 1.0, (1.0, "0.qkv")), False),
        (Verdict(2.0, 2.0, float("nan"), (1.0, "0.qkv")), False),
    ],
)
def test_a_verdict_has_two_limits_and_no_number_passes_neither(verdict, passed):
    assert verdict.passed is passed


def test_a_verdict_is_kept_as_plain_json():
    _chosen, verdict = Trial().judge()
    stated = verdict.to_json()
    assert stated.keys() == {
        *("loss", "reference_loss", "gradient_cosine", "worst_group", "worst_group_cosine", "float_groups"),
    }
    assert json.loads(json.dumps(stated)) == stated
    assert stated["worst_group"] in {f"{number}.{group}" for number in range(2) for group in GROUPS}


def test_a_gradient_of_many_values_is_like_itself():
    """float32 sums put the cosine of so many values with themselves at 1.001, and 0.984 above the limit."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(9_000_000, generator=generator) ** 8 * 1e-3
    gradient = torch.randn(9_000_000, generator=generator) * spread
    other = gradient + torch.randn(9_000_000, generator=generator) * spread * 0.1
    same = guard._compare(1.0, 1.0, {"0.qkv": gradient}, {"0.qkv": gradient})
    assert same.cosine == pytest.approx(1.0, abs=1e-9)
    near = guard._compare(1.0, 1.0, {"0.qkv": gradient, "0.out": other}, {"0.qkv": other, "0.out": gradient})
    a, b = gradient.double(), other.double()
    assert near.cosine == pytest.approx(float(2 * (a @ b) / (a @ a + b @ b)), abs=1e-9)
    assert near.worst[0] == pytest.approx(float(a @ b / (a.norm() * b.norm())), abs=1e-9)
