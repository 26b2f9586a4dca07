"""Adapters: standard files, exact switching off, and nothing attached that does not fit."""

import json
import warnings

import pytest
import safetensors.torch
import torch
from peft import PeftModel

import tiny
from znatok.config import LoraOptions
from znatok.errors import ModelError, UsageError
from znatok.model import adapters
from znatok.model.adapters import CONFIG, WEIGHTS, attach, base_only, delta_norm, inject, load_weights, save_adapter

IDS = torch.tensor([[5, 6, 7, 8]])


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def trained(seed=0, **options):
    """Return a tiny model whose adapter does something."""
    model = inject(tiny.tiny_model(), LoraOptions(**options), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@pytest.fixture
def saved(tmp_path):
    """Return the directory of a saved adapter."""
    save_adapter(trained(), tmp_path / "run", "org/Tiny")
    return tmp_path / "run"


def edit(directory, **changes):
    path = directory / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def spoil(directory, change):
    tensors = safetensors.torch.load_file(directory / WEIGHTS)
    change(tensors)
    safetensors.torch.save_file(tensors, directory / WEIGHTS)


# Fresh adapters


def test_all_seven_projections_are_trained_in_float32_and_nothing_else():
    model = inject(tiny.tiny_model().bfloat16(), LoraOptions(), 42)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trainable.values()} == {torch.float32}
    assert all("lora_" in name for name in trainable)
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trainable} == set(adapters.TARGETS)
    assert len(trainable) == 2 * 7 * 2
    assert {p.dtype for name, p in model.named_parameters() if name not in trainable} == {torch.bfloat16}


def test_options_reach_the_layers():
    layer = inject(tiny.tiny_model(), LoraOptions(lora_r=3, lora_alpha=6, lora_dropout=0.25), 0)
    layer = layer.base_model.model.model.layers[0].mlp.down_proj
    assert layer.lora_A["default"].weight.shape == (3, 64)
    assert layer.scaling["default"] == 2.0
    assert layer.lora_dropout["default"].p == 0.25


def test_a_fresh_adapter_changes_nothing_and_its_norm_is_zero():
    base = logits(tiny.tiny_model())
    model = inject(tiny.tiny_model(), LoraOptions(), 1)
    assert delta_norm(model) == 0.0
    assert torch.equal(logits(model), base)
    assert not model.training


def test_the_seed_decides_the_start_and_the_global_state_is_left_alone():
    torch.manual_seed(7)
    state = torch.get_rng_state()
    one, two, other = (inject(tiny.tiny_model(), LoraOptions(), seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    a, b, c = (m.base_model.model.model.layers[0].mlp.up_proj.lora_A["default"].weight for m in (one, two, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_model_without_projections_is_refused_with_the_names_it_has():
    with pytest.raises(ModelError, match=r"no layer to train.*the model has .*head"):
        inject(torch.nn.ModuleDict({"head": torch.nn.Linear(2, 2)}), LoraOptions(), 0)


def test_switching_lora_off_is_a_usage_error():
    with pytest.raises(UsageError, match="--use_lora false"):
        inject(tiny.tiny_model(), LoraOptions(use_lora=False), 0)


def test_the_norm_is_that_of_the_scaled_product():
    model = trained(lora_r=4, lora_alpha=8)
    want = 0.0
    for module in model.modules():
        if hasattr(module, "lora_A"):
            product = module.lora_B["default"].weight.double() @ module.lora_A["default"].weight.double()
            want += float(torch.linalg.norm(2.0 * product.detach()))
    assert delta_norm(model) == pytest.approx(want, rel=1e-9)


# Saved and attached


def test_saved_and_attached_gives_the_same_logits(saved):
    model = attach(tiny.tiny_model(), saved)
    assert torch.equal(logits(model), logits(trained()))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert delta_norm(model) == pytest.approx(delta_norm(trained()))


def test_stock_peft_loads_what_was_saved(saved):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT 0.21 with transformers 5.23
        stock = PeftModel.from_pretrained(tiny.tiny_model(), saved)
    assert torch.equal(logits(stock), logits(trained()))


def test_the_files_name_the_base_and_no_path(saved, tmp_path):
    assert sorted(file.name for file in saved.iterdir()) == [CONFIG, WEIGHTS]
    text = (saved / CONFIG).read_text(encoding="utf-8")
    config = json.loads(text)
    assert config["base_model_name_or_path"] == "org/Tiny"
    assert config["target_modules"] == sorted(adapters.TARGETS)
    assert str(tmp_path) not in text


def test_saving_twice_gives_the_same_bytes(saved, tmp_path):
    save_adapter(trained(), tmp_path / "again", "org/Tiny")
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_an_adapter_can_be_attached_to_train_on(saved):
    model = attach(tiny.tiny_model(), saved, trainable=True)
    assert {name.split(".lora_")[1][0] for name, p in model.named_parameters() if p.requires_grad} == {"A", "B"}


def test_weights_can_be_put_back(saved):
    model = inject(tiny.tiny_model(), LoraOptions(), 3)
    load_weights(model, saved)
    assert torch.equal(logits(model), logits(trained()))
    with pytest.raises(ModelError, match="does not fit"):
        load_weights(inject(tiny.tiny_model(), LoraOptions(lora_r=2), 3), saved)


def test_the_base_alone_answers_inside_base_only_and_flags_come_back(saved):
    base = logits(tiny.tiny_model())
    for model in (attach(tiny.tiny_model(), saved), trained()):
        before = {name: p.requires_grad for name, p in model.named_parameters()}
        tuned = logits(model)
        with base_only(model):
            assert torch.equal(logits(model), base)
        assert torch.equal(logits(model), tuned)
        assert not torch.equal(tuned, base)
        assert {name: p.requires_grad for name, p in model.named_parameters()} == before


def test_base_only_ends_with_an_exception_too(saved):
    model = attach(tiny.tiny_model(), saved)
    tuned = logits(model)
    with pytest.raises(KeyError), base_only(model):
        raise KeyError
    assert torch.equal(logits(model), tuned)


# Refused


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_neither_saved_nor_attached(saved, tmp_path, value):
    model = trained()
    with torch.no_grad():
        model.base_model.model.model.layers[1].mlp.up_proj.lora_B["default"].weight[0, 0] = value
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj.*NaN or infinity"):
        save_adapter(model, tmp_path / "bad", "org/Tiny")
    assert not (tmp_path / "bad").exists()
    spoil(saved, lambda tensors: next(iter(tensors.values())).view(-1)[:1].fill_(value))
    with pytest.raises(ModelError, match="NaN or infinity"):
        attach(tiny.tiny_model(), saved)


def test_an_adapter_for_another_base_is_refused_naming_both_and_the_base_stays_usable(saved):
    other = tiny.tiny_model(hidden_size=48)
    other.config._name_or_path = "org/Other"
    before = logits(other)
    with pytest.raises(ModelError, match=r"adapter for org/Tiny does not fit the model org/Other"):
        attach(other, saved)
    assert torch.equal(logits(other), before)
    assert not any("lora" in name for name, _ in other.named_modules())


def test_a_missing_or_foreign_tensor_is_an_error_not_a_warning(saved):
    spoil(saved, lambda tensors: tensors.pop(sorted(tensors)[3]))
    with pytest.raises(ModelError, match="is missing"):
        attach(tiny.tiny_model(), saved)
    spoil(saved, lambda tensors: tensors.update(extra=torch.zeros(1)))
    with pytest.raises(ModelError, match=r"is missing|has no place"):
        attach(tiny.tiny_model(), saved)


def test_an_adapter_of_more_layers_is_refused(tmp_path):
    model = inject(tiny.tiny_model(num_hidden_layers=3), LoraOptions(), 0)
    save_adapter(model, tmp_path, "org/Deep")
    with pytest.raises(ModelError, match="has no place"):
        attach(tiny.tiny_model(), tmp_path)


def test_a_pickle_is_never_opened(saved):
    (saved / WEIGHTS).rename(saved / "adapter_model.bin")
    with pytest.raises(ModelError, match="a pickle, which can run code"):
        attach(tiny.tiny_model(), saved)


def test_a_directory_without_adapter_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        attach(tiny.tiny_model(), tmp_path)


def test_a_truncated_adapter_is_refused(saved):
    file = saved / WEIGHTS
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(ModelError, match="damaged"):
        attach(tiny.tiny_model(), saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"peft_type": "IA3"},
        {"peft_type": None},
        {"r": 0},
        {"r": 10**9},
        {"r": "8"},
        {"rank_pattern": {"q_proj": 10**9}},
        {"rank_pattern": {"(a+)+$": 8}},
        {"alpha_pattern": {"(a+)+$": 8}},
        {"target_modules": "(a+)+$"},
        {"target_modules": ["(a+)+$"]},
        {"target_modules": ["nothing_like_it"]},
        {"exclude_modules": "(a+)+$"},
        {"layers_pattern": "(a+)+$"},
        {"modules_to_save": ["lm_head"]},
        {"megatron_config": {"x": 1}},
        {"layer_replication": [[0, 10**6]]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": []},
        {"bias": "all"},
        {"use_new_method": True},
        {"auto_mapping": {"parent_library": "os"}},
        {"lora_dropout": "x"},
        {"lora_alpha": None},
    ],
    ids=str,
)
def test_a_config_that_is_not_plain_lora_is_refused(saved, changes):
    edit(saved, **changes)
    with pytest.raises(ModelError, match="run"):
        attach(tiny.tiny_model(), saved)


def test_settings_of_a_newer_peft_that_are_off_do_no_harm(saved):
    edit(saved, use_something=False, another=None, third={})
    assert torch.equal(logits(attach(tiny.tiny_model(), saved)), logits(trained()))
