"""Which engine trains, why, and that a run stays with the one it began with."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

import gguf_files
import helpers
import tiny
from znatok.errors import ModelError, UsageError
from znatok.fast import product
from znatok.fast.guard import Verdict
from znatok.fast.linear import FloatWeight, Int8Weight
from znatok.files import read_json
from znatok.model import load
from znatok.model.load import int8_obstacle
from znatok.model.source import resolve
from znatok.train import engine
from znatok.train import run as run_module
from znatok.train.computation import FastPacked, Padded, Sharded
from znatok.train.prepare import prepare
from znatok.train.run import stored_engine
from znatok.train.shards import shard
from znatok.train.team import Team

# PEFT 0.21 reads a property that transformers 5.23 has renamed; goes with the filter in znatok.model.adapters
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.usefixtures("int8_here"),
]

FAILED = Verdict(2.5, 2.0, 0.9, (0.8, "1.down"), ("0.down", "1.down"))


@pytest.fixture
def settings(tiny_dir, pairs_file, tmp_path):
    """Return a function that gives a configuration with the default number format."""
    return lambda **options: helpers.settings(tiny_dir, pairs_file, tmp_path / "run", **{"dtype": "auto"} | options)


@pytest.fixture
def gemma(tmp_path):
    return gguf_files.write(tmp_path / "gemma.gguf", gguf_files.model("gemma3"))


def processor(monkeypatch, **capabilities):
    """Let this be a processor that can do so much and no more."""
    monkeypatch.setattr(load, "machine_capabilities", lambda: {"platform": "linux", **capabilities})


def failing(monkeypatch):
    """Let every comparison end badly."""
    monkeypatch.setattr(engine, "judge", lambda backbone, *_: (backbone, FAILED))


def floats_of(backbone):
    """Return the groups that are really computed in float."""
    return tuple(
        sorted(
            f"{number}.{group}"
            for number, layer in enumerate(backbone.layers)
            for group in ("qkv", "out", "gate_up", "down")
            if isinstance(getattr(layer, group).weight, FloatWeight)
        )
    )


# What is chosen


def test_int8_is_chosen_where_it_is_fast_and_has_proved_itself(settings, capsys):
    ready = prepare(settings())
    assert ready.loaded.int8
    assert ready.engine.name == "int8"
    assert "kernels" in ready.engine.reason
    assert isinstance(ready.engine.computation, FastPacked)
    assert floats_of(ready.engine.computation.backbone) == ready.engine.floats == ()
    assert ready.engine.verdict.passed
    said = capsys.readouterr().err
    assert "comparing int8 with float on the first batch" in said
    assert ": trained in int8\n" in said
    assert "engine: int8, " in said


@pytest.mark.parametrize(
    ("capabilities", "name"),
    [({"avx512_bf16": True}, "bfloat16"), ({"avx": True}, "float32"), ({"avx512_f": True, "bf16": False}, "float32")],
)
def test_float_is_computed_by_the_fast_engine_where_int8_is_slow(settings, monkeypatch, capsys, capabilities, name):
    processor(monkeypatch, **capabilities)
    ready = prepare(settings())
    assert not ready.loaded.int8
    assert (ready.engine.name, ready.engine.verdict, ready.engine.floats) == (name, None, ())
    assert isinstance(ready.engine.computation, FastPacked)
    assert isinstance(ready.engine.computation.backbone.layers[0].qkv.weight, FloatWeight)
    assert "comparing" not in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_float_format_that_is_asked_for_is_given(settings, dtype):
    ready = prepare(settings(dtype=dtype))
    assert ready.engine.name == dtype
    assert ready.engine.computation.backbone.dtype is getattr(torch, dtype)


def test_models_of_another_family_train_with_transformers_layers(gemma, pairs_file, tmp_path, capsys):
    ready = prepare(helpers.settings(gemma, pairs_file, tmp_path / "run", dtype="auto"))
    assert not ready.loaded.int8
    assert isinstance(ready.engine.computation, Padded)
    assert ready.engine.name == "transformers"
    assert ready.engine.reason == "Gemma3ForCausalLM is not built like Llama"
    assert "engine: transformers, Gemma3ForCausalLM is not built like Llama" in capsys.readouterr().err


@pytest.fixture
def stretched(tmp_path):
    """Return a Llama whose rotary positions are scaled: of the family, but not what the fast engine computes."""
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    tiny.tiny_tokenizer().save_pretrained(tmp_path / "stretched")
    model = gguf_files.model("llama", vocab_size=512, rope_parameters=rope, max_position_embeddings=512)
    model.save_pretrained(tmp_path / "stretched")
    return tmp_path / "stretched"


def test_what_the_fast_engine_can_not_compute_is_not_computed_in_int8(stretched, pairs_file, tmp_path):
    """Nothing would compare it with float, and a resumed run would load it in float."""
    ready = prepare(helpers.settings(stretched, pairs_file, tmp_path / "run", dtype="auto"))
    assert (ready.engine.name, ready.engine.reason) == ("transformers", "scaled rotary positions")
    assert isinstance(ready.engine.computation, Padded)
    assert not ready.loaded.int8


def test_int8_that_can_not_be_computed_is_refused_where_it_is_insisted_on(stretched, pairs_file, tmp_path):
    with pytest.raises(UsageError, match="--dtype int8: scaled rotary positions"):
        prepare(helpers.settings(stretched, pairs_file, tmp_path / "run", dtype="int8"))


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({}, 640),
        ({"pack_tokens": 64}, 64),
        ({"low_memory": True}, 256),
        ({"low_memory": True, "pack_tokens": 64}, 64),
    ],
)
def test_the_size_of_a_pack_is_the_one_asked_for(settings, options, limit):
    assert prepare(settings(**options)).engine.computation.limit == limit


# int8 that can't be had


@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_a_slow_processor_is_an_obstacle(settings, monkeypatch, dtype):
    processor(monkeypatch, avx=True)
    if dtype == "auto":
        assert prepare(settings()).engine.name == "float32"
        return
    with pytest.raises(
        UsageError, match=r"--dtype int8: this processor has no int8 .* faster than float; use --dtype auto"
    ):
        prepare(settings(dtype="int8"))


@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_a_processor_that_multiplies_inexactly_is_an_obstacle(settings, monkeypatch, dtype):
    monkeypatch.setattr(product.Way, "exact", lambda _way: False)
    if dtype == "auto":
        assert prepare(settings()).engine.name == "bfloat16"
        return
    with pytest.raises(UsageError, match="--dtype int8: this processor has no int8 product that is exact"):
        prepare(settings(dtype="int8"))


def test_another_family_is_an_obstacle(gemma, pairs_file, tmp_path):
    with pytest.raises(UsageError, match="--dtype int8: Gemma3ForCausalLM is not built like Llama"):
        prepare(helpers.settings(gemma, pairs_file, tmp_path / "run", dtype="int8"))


def test_cuda_is_an_obstacle(tiny_dir, monkeypatch):
    source = resolve(str(tiny_dir))
    assert int8_obstacle(source) == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert int8_obstacle(source) == "int8 is for CPUs"


# int8 that does not prove itself


def test_int8_that_is_too_far_off_gives_way_to_float(settings, monkeypatch, capsys):
    failing(monkeypatch)
    ready = prepare(settings())
    assert not ready.loaded.int8
    assert (ready.engine.name, ready.engine.floats) == ("bfloat16", ())
    assert ready.engine.verdict is FAILED  # the manifest says why it is not int8
    said = capsys.readouterr().err
    assert "loss +25.00 %, cosine of the gradient 0.9000 (0.8000 in 1.down): not close enough" in said
    assert "engine: bfloat16, " in said


def test_the_adapter_starts_the_same_after_giving_way(settings, monkeypatch):
    failing(monkeypatch)
    gave_way = prepare(settings()).model
    straight = prepare(settings(dtype="bfloat16")).model
    ours, theirs = dict(gave_way.named_parameters()), dict(straight.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], parameter) for name, parameter in theirs.items())


def test_int8_that_is_insisted_on_is_given_with_a_warning(settings, monkeypatch, capsys):
    failing(monkeypatch)
    ready = prepare(settings(dtype="int8"))
    assert ready.loaded.int8
    assert ready.engine.name == "int8"
    assert not ready.engine.verdict.passed
    assert isinstance(ready.engine.computation.backbone.layers[0].qkv.weight, Int8Weight)
    said = capsys.readouterr().err
    assert "not close enough" in said
    assert "int8 is used all the same, as --dtype int8 asks" in said


def test_the_groups_stated_as_float_are_those_computed_in_float(settings, monkeypatch):
    """A resumed run goes by what is stated; after a failed comparison that must be what really computed."""
    failing(monkeypatch)
    found = prepare(settings(dtype="int8")).engine
    assert found.floats == floats_of(found.computation.backbone)


def test_the_guard_sees_the_first_examples_of_the_first_batch(settings, monkeypatch):
    seen = []

    def judge(backbone, pack, *_rest):
        seen.append(pack)
        return backbone, dataclasses.replace(FAILED, loss=2.0, cosine=1.0, floats=())

    monkeypatch.setattr(engine, "judge", judge)
    ready = prepare(settings(per_device_train_batch_size=9))
    chosen = engine._judged(settings(per_device_train_batch_size=9), ready.train)
    tokens = [len(example.ids) for example in chosen]
    assert sum(tokens[:-1]) < engine.JUDGED_TOKENS <= sum(tokens)
    assert seen[0].tokens == sum(tokens)
    one = engine._judged(settings(per_device_train_batch_size=1), ready.train)
    assert len(one) == 1


# A run stays with its engine


def test_a_resumed_run_does_not_judge_again(settings, monkeypatch):
    monkeypatch.setattr(engine, "judge", None)  # a call would be a TypeError
    found = prepare(settings(), {"name": "int8", "float_groups": ["0.qkv", "1.down"]}).engine
    assert (found.name, found.floats) == ("int8", ("0.qkv", "1.down"))
    assert floats_of(found.computation.backbone) == ("0.qkv", "1.down")
    assert floats_of(prepare(settings(), {"name": "int8", "float_groups": []}).engine.computation.backbone) == ()


@pytest.mark.parametrize("stored", [{"name": "bfloat16"}, {"name": "transformers"}, {}], ids=str)
def test_a_run_that_began_in_float_goes_on_in_float(settings, monkeypatch, stored):
    """Without a name the run is older than int8 is."""
    monkeypatch.setattr(engine, "judge", None)
    ready = prepare(settings(), stored)
    assert not ready.loaded.int8
    assert ready.engine.name == "bfloat16"


def test_what_began_in_int8_is_resumed_to_the_bit_with_its_groups_in_float(settings, tmp_path, monkeypatch):
    real = engine.judge

    def judge(backbone, pack, heads, read):
        _chosen, verdict = real(backbone, pack, heads, read)
        floats = ("0.down", "1.qkv")
        return engine.with_floats(backbone, floats, read), dataclasses.replace(verdict, floats=floats)

    def config(name, **options):
        return dataclasses.replace(
            settings(), train=dataclasses.replace(settings().train, output_dir=str(tmp_path / name), **options)
        )

    monkeypatch.setattr(engine, "judge", judge)
    whole = run_module.train(config("whole")).run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "finish", lambda *_: (_ for _ in ()).throw(RuntimeError("power cut")))
        with pytest.raises(RuntimeError, match="power cut"):
            run_module.train(config("parts", save_steps=4))
    monkeypatch.setattr(engine, "judge", None)
    parts = run_module.train(config("parts", save_steps=4, resume=True)).run
    assert helpers.adapter_bytes(parts) == helpers.adapter_bytes(whole)
    stated = [read_json(run.manifest)["engine"] for run in (parts, whole)]
    assert stated[0] == stated[1]
    assert stated[0]["float_groups"] == ["0.down", "1.qkv"]


def test_the_manifest_says_what_computed_the_run_and_how_it_proved_itself(settings):
    run = run_module.train(settings()).run
    manifest = read_json(run.manifest)
    assert manifest["dtype"] == "int8"
    assert manifest["engine"].keys() == {"name", "reason", "float_groups", "guard"}
    assert manifest["engine"]["name"] == "int8"
    assert manifest["engine"]["float_groups"] == []
    assert manifest["engine"]["guard"].keys() == {
        *("loss", "reference_loss", "gradient_cosine", "worst_group", "worst_group_cosine", "float_groups"),
    }
    assert manifest["engine"]["guard"]["gradient_cosine"] > 0.985


def test_only_a_run_to_be_resumed_has_a_stored_engine(settings, tmp_path):
    assert stored_engine(settings()) is None
    run = run_module.train(settings(max_steps=2)).run
    assert stored_engine(settings(resume=True)) == read_json(run.manifest)["engine"]
    assert stored_engine(settings()) is None


def test_a_run_cut_off_before_its_manifest_is_judged_like_a_new_one(settings, monkeypatch):
    """Nothing was decided yet: what it would have become, it becomes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "write_manifest", lambda *_: (_ for _ in ()).throw(RuntimeError("power cut")))
        with pytest.raises(RuntimeError, match="power cut"):
            run_module.train(settings())
    run = run_module.train(settings(resume=True)).run
    assert read_json(run.manifest)["engine"]["name"] == "int8"


def test_a_run_of_another_format_is_not_gone_on_with(settings, monkeypatch):
    """An int8 run, resumed on a processor without fast int8, must not go on in float unsaid."""
    run_module.train(settings(max_steps=2))
    processor(monkeypatch, avx512_bf16=True)
    with pytest.raises(UsageError, match="dtype: int8 → bfloat16"):
        run_module.train(settings(max_steps=2, resume=True))


def test_options_of_memory_may_change_when_a_run_is_resumed(settings, tmp_path):
    run_module.train(settings(max_steps=2))
    run_module.train(settings(max_steps=2, resume=True, low_memory=True, pack_tokens=64))


def test_pairs_of_one_token_train_in_int8(settings, tmp_path, tiny_dir):
    """The shortest packs there are: fewer rows than the int8 product of some torch versions takes."""
    data = tiny.write_pairs(tmp_path / "short.jsonl", [(str(n), str(n)) for n in range(10)])
    options = {"per_device_train_batch_size": 1, "data_options": {"system": ""}, "pack_tokens": 16, "max_steps": 3}
    run = run_module.train(helpers.settings(tiny_dir, data, tmp_path / "run", dtype="int8", **options)).run
    assert all(loss > 0 for loss in helpers.losses(run))


# A base that is split over several processes


def test_one_process_has_nobody_to_share_a_base_with(settings):
    with pytest.raises(
        UsageError, match="--shard_base: one process has nobody to share the base with; start znatok train with"
    ):
        prepare(settings(shard_base=True))


@pytest.mark.parametrize("dtype", ["int8", "auto"])
def test_a_split_base_is_in_float(settings, monkeypatch, dtype):
    monkeypatch.setattr(engine, "shard", lambda *_: None)
    config, two = settings(shard_base=True, dtype=dtype), Team(0, 2)
    if dtype == "int8":
        with pytest.raises(UsageError, match="--dtype int8: the base is split over 2 processes; use --dtype auto"):
            prepare(config, team=two)
        return
    monkeypatch.setattr("znatok.train.prepare.probe", lambda plan, *_: plan)
    ready = prepare(config, team=two)
    assert isinstance(ready.engine.computation, Sharded)
    assert (ready.loaded.format, ready.engine.name) == ("bfloat16", "transformers")


def test_a_model_without_a_list_of_layers_cannot_be_split():
    whole = SimpleNamespace(get_base_model=lambda: SimpleNamespace(model=torch.nn.Linear(2, 2)))
    with pytest.raises(ModelError, match="--shard_base: this model has no list of layers"):
        shard(whole, Team(0, 2))
