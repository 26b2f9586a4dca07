"""The fast engine's layers against transformers' and PEFT's own: loss, gradients, dropout, and what is left out."""

from dataclasses import replace

import pytest
import torch

import packs
from znatok.fast import block, compiled, eager, linear, loss
from znatok.fast.compiler import build
from znatok.fast.eager import Dropout
from znatok.fast.linear import FloatWeight
from znatok.generate.rows import RowCache
from znatok.model.backbone import build_backbone, obstacle
from znatok.tokens.packing import pack

pytestmark = pytest.mark.filterwarnings(packs.QUIET)


@pytest.fixture(params=["qwen2", "llama"])
def model(request):
    """The two architectures: with biases on queries, keys and values, and without."""
    return packs.adapted(packs.base(request.param))


def check(model, backbone, examples, limit=1000, *, share=True):
    expected_loss, expected = packs.slopes(model, packs.losses_alone(model, examples))
    found = packs.losses_packed(backbone, model, examples, limit, share=share)
    loss, gradients = packs.slopes(model, found)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        assert packs.distance(gradients[name], gradient) < 1e-5, name


# Against transformers


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("limit", [1000, 40, 1], ids=["one pack", "some packs", "a pack each"])
def test_loss_and_gradients_are_those_of_transformers_and_peft(model, limit, share):
    assert not obstacle(model)
    check(model, build_backbone(model), packs.rows(), limit, share=share)


def test_one_layer_is_first_and_last_at_once():
    model = packs.adapted(packs.base(num_hidden_layers=1))
    check(model, build_backbone(model), packs.rows())


@pytest.mark.parametrize(
    "shape",
    [
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 4},
        {"intermediate_size": 72, "hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 3},
        {"tie_word_embeddings": False},
    ],
    ids=["one key head", "a key head each", "odd widths", "a head of its own"],
)
def test_other_shapes(shape):
    model = packs.adapted(packs.base(**shape))
    check(model, build_backbone(model), packs.rows())


def test_a_head_wider_than_the_models_share():
    model = packs.adapted(packs.base("llama", head_dim=16))
    check(model, build_backbone(model), packs.rows())


def test_adapters_of_different_ranks():
    model = packs.adapted(packs.base(), ranks={"q_proj": 1, "v_proj": 7, "gate_proj": 3, "down_proj": 9})
    check(model, build_backbone(model), packs.rows())


def test_a_single_example_with_a_single_answer_token(model):
    check(model, build_backbone(model), [packs.Row((5, 6, 7), 2)])
    shortest = [packs.Row((5, 6), 1)]  # its one row attends to itself only: queries and keys have no gradient
    expected_loss, expected = packs.slopes(model, packs.losses_alone(model, shortest))
    loss, found = packs.slopes(model, packs.losses_packed(build_backbone(model), model, shortest))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert packs.distance(packs.flat(found), packs.flat(expected)) < 1e-5


def test_hidden_states_are_those_of_the_answer_rows_in_their_order(model):
    examples = packs.rows()
    backbone, packed = build_backbone(model), pack(examples)
    found = backbone.hidden(packed)
    with torch.no_grad():
        expected = [
            model.get_base_model().model(input_ids=torch.tensor([e.ids])).last_hidden_state[0, e.answer_start - 1 : -1]
            for e in examples
        ]
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-4)
    assert len(found) == len(packed.targets_N)


@torch.no_grad()
@pytest.mark.parametrize("settled", [False, True], ids=["as it trains", "answering"])
def test_a_prompt_and_what_follows_token_by_token_give_what_the_whole_gives(model, settled):
    """Several rows at once, of several lengths, one slot idle."""
    examples = packs.rows()[:3]
    backbone = build_backbone(model)
    expected = [model.get_base_model().model(input_ids=torch.tensor([e.ids])).last_hidden_state[0] for e in examples]
    if settled:
        backbone = backbone.answering(4)
    cache, slots, prompt = RowCache(len(backbone.layers), 4), (3, 0, 2), 5
    for slot, example, wanted in zip(slots, examples, expected, strict=True):
        cache.filling = (slot, len(example.ids))
        ids = torch.tensor(example.ids[:prompt])
        found = backbone.continued(ids, torch.arange(prompt), cache.attend)
        torch.testing.assert_close(found, wanted[:prompt], rtol=1e-4, atol=1e-4)
        cache.filling, cache.lengths[slot] = None, prompt
    for place in range(prompt, min(len(example.ids) for example in examples)):
        ids, positions = torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
        for slot, example in zip(slots, examples, strict=True):
            ids[slot], positions[slot] = example.ids[place], place
            cache.lengths[slot] += 1
        found = backbone.continued(ids, positions, cache.attend)
        for slot, wanted in zip(slots, expected, strict=True):
            torch.testing.assert_close(found[slot], wanted[place], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_without_adapters_the_base_speaks(model):
    examples = packs.rows()
    backbone = build_backbone(model)
    bare = packs.losses_packed(backbone.without_adapters(), model, examples, limit=1)
    with model.disable_adapter():
        expected = packs.losses_alone(model, examples)
    assert torch.stack(bare).tolist() == pytest.approx(torch.stack(expected).tolist(), rel=1e-5)
    assert torch.stack(packs.losses_packed(backbone, model, examples, limit=1)).tolist() != pytest.approx(
        torch.stack(expected).tolist(), rel=1e-3
    )
    never_adapted = packs.base(model.get_base_model().config.model_type)
    alone = packs.losses_packed(build_backbone(never_adapted), never_adapted, examples, limit=1)
    assert torch.stack(alone).tolist() == pytest.approx(torch.stack(expected).tolist(), rel=1e-5)


@torch.no_grad()
def test_building_the_backbone_leaves_the_model_as_it_was(model):
    ids = torch.tensor([packs.rows()[1].ids])
    before, state = model(ids).logits, {name: p.clone() for name, p in model.state_dict().items()}
    build_backbone(model)
    assert torch.equal(model(ids).logits, before)
    after = model.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())


def test_bfloat16_is_close_to_float32():
    model = packs.adapted(packs.base())
    expected_loss, expected = packs.slopes(model, packs.losses_alone(model, packs.rows()))
    halved = packs.adapted(packs.base().to(torch.bfloat16))
    for name, parameter in packs.learned(halved).items():
        parameter.data = packs.learned(model)[name].data.clone()
    backbone = build_backbone(halved)
    assert backbone.dtype is torch.bfloat16
    loss, gradients = packs.slopes(halved, packs.losses_packed(backbone, halved, packs.rows()))
    assert all(gradient.dtype is torch.float32 for gradient in gradients.values())
    assert loss == pytest.approx(expected_loss, rel=0.02)
    assert torch.cosine_similarity(packs.flat(gradients), packs.flat(expected), dim=0) > 0.99


# Dropout


class SameMask(torch.nn.Module):
    """Dropout that drops what the fast engine drops."""

    def __init__(self, dropout, rows_N):
        super().__init__()
        self.dropout, self.rows_N = dropout, rows_N

    def forward(self, x):
        mask = torch.zeros(x.shape[1:])
        chosen = torch.arange(x.shape[1]) if self.rows_N is None else self.rows_N
        mask[chosen] = eager.keep_mask((len(chosen), x.shape[2]), self.dropout).float()
        return x * mask * self.dropout.keep


def test_dropout_is_pefts_with_the_same_mask():
    """Projections that share an input share its mask; the last layer draws for the wanted rows only."""
    share, sites = 0.3, {"q": 0, "k": 0, "v": 0, "o": 1, "gate": 2, "up": 2, "down": 3}
    model = packs.adapted(packs.base(), dropout=share)
    packed = pack(packs.rows()[2:3])
    backbone = build_backbone(model, dropout=share)
    backbone.training = True
    torch.manual_seed(11)
    seeds = torch.randint(2**62, (8,)).tolist()
    for name, module in model.named_modules():
        if name.endswith("lora_dropout"):
            number = int(name.split(".layers.")[1].split(".")[0])
            site = sites[name.split(".")[-2].removesuffix("_proj")]
            rows_N = packed.rows_N if number == 1 and site > 0 else None
            module["default"] = SameMask(Dropout(share, seeds[4 * number + site]), rows_N)
    expected_loss, expected = packs.slopes(model, packs.losses_alone(model, packs.rows()[2:3]))
    torch.manual_seed(11)
    found_loss, found = packs.slopes(model, packs.losses_packed(backbone, model, packs.rows()[2:3]))
    assert found_loss == pytest.approx(expected_loss, rel=1e-5)
    for name, gradient in expected.items():
        assert packs.distance(found[name], gradient) < 1e-5, name


def test_a_seed_decides_what_is_dropped_and_only_while_training():
    model = packs.adapted(packs.base(), dropout=0.5)
    backbone = build_backbone(model, dropout=0.5)

    def loss(seed, *, training=True):
        backbone.training = training
        torch.manual_seed(seed)
        return packs.slopes(model, packs.losses_packed(backbone, model, packs.rows()))

    first, again, other = loss(1), loss(1), loss(2)
    assert first[0] == again[0] != other[0]
    assert all(torch.equal(again[1][name], gradient) for name, gradient in first[1].items())
    state = torch.get_rng_state()
    quiet = loss(1, training=False)
    assert quiet[0] == packs.slopes(model, packs.losses_packed(build_backbone(model), model, packs.rows()))[0]
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(1).get_state())
    assert not torch.equal(state, torch.get_rng_state())  # training had drawn from the global generator


def test_dropout_changes_no_gradient_on_average():
    """At B = 0 dropout changes no activation, and its expectation on the gradient of B is exact."""
    model = packs.adapted(packs.base(), dropout=0.3, spread=0)
    backbone = build_backbone(model, dropout=0.3)

    def gradient():
        _loss, gradients = packs.slopes(model, packs.losses_packed(backbone, model, packs.rows()))
        return packs.flat({name: g for name, g in gradients.items() if "lora_B" in name})

    whole = gradient()
    backbone.training = True
    torch.manual_seed(3)
    draws = torch.stack([gradient() for _ in range(200)])
    assert packs.distance(draws[0], whole) > 0.1
    assert packs.distance(draws.mean(0), whole) < 3 * float(draws.std(0).norm() / whole.norm()) / 200**0.5


# What is not computed


class Refusing(FloatWeight):
    """A weight that must not be asked for the gradient of its input."""

    def transposed(self, rows):
        raise AssertionError("nothing below is trained")


def test_no_gradient_is_computed_below_the_first_adapter():
    model = packs.adapted(packs.base())
    backbone = build_backbone(model)
    first = backbone.layers[0]
    held = Refusing(first.qkv.weight.weight, first.qkv.weight.widths, first.qkv.weight.bias)
    layers = [replace(first, qkv=replace(first.qkv, weight=held)), *backbone.layers[1:]]
    check(model, replace(backbone, layers=layers), packs.rows())
    with pytest.raises(AssertionError, match="nothing below"):  # the second layer passes its gradient on
        check(model, replace(backbone, layers=[*backbone.layers[:1], layers[0]]), packs.rows())


@torch.no_grad()
def test_nothing_is_kept_where_no_gradient_is_wanted():
    model = packs.adapted(packs.base())
    hidden = build_backbone(model).hidden(pack(packs.rows()))
    assert not hidden.requires_grad
    assert hidden.grad_fn is None


# Kernels


@pytest.mark.skipif(build().library is None, reason=f"no compiled kernels: {build().reason}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("share", [0.0, 0.2])
def test_compiled_and_eager_kernels_train_alike(monkeypatch, dtype, share):
    model = packs.adapted(packs.base().to(dtype), dropout=share)
    backbone = build_backbone(model, dropout=share)
    backbone.training = True
    found = []
    for kernels in (compiled, eager):
        for module in (block, linear, loss):
            monkeypatch.setattr(module, "kernels", lambda kernels=kernels: kernels)
        torch.manual_seed(4)
        found.append(packs.slopes(model, packs.losses_packed(backbone, model, packs.rows())))
    slack = 1e-5 if dtype is torch.float32 else 2e-2
    assert found[0][0] == pytest.approx(found[1][0], rel=slack)
    assert packs.distance(packs.flat(found[0][1]), packs.flat(found[1][1])) < slack


# What the engine refuses


def test_adapters_on_some_projections_of_a_group_are_an_obstacle():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(packs.base(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    assert obstacle(model) == "adapters on some projections of a layer only"


def test_adapters_on_whole_groups_only_are_computed():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(packs.base(), LoraConfig(r=2, target_modules=["o_proj", "down_proj"])).eval()
    assert not obstacle(model)
    for name, parameter in packs.learned(model).items():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    check(model, build_backbone(model), packs.rows())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"hidden_act": "gelu"}, "the activation gelu"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "scaled rotary positions"),
        ({"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, "attention through a window"),
    ],
)
def test_models_that_differ_are_an_obstacle(change, why):
    assert obstacle(packs.base("qwen2", **change)) == why


def test_gemma_is_an_obstacle():
    assert obstacle(packs.base("gemma3")) == "Gemma3ForCausalLM is not built like Llama"
