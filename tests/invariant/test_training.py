"""What must stay true of training however it is cut up: equal runs for equal settings, to the bit where it is promised.

The runs are real: :func:`znatok.train.run.train` on a tiny Qwen2, in float32 and in int8, one thread.
"""

import signal

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

import helpers
import tiny
from znatok.config import LoraOptions, ModelOptions
from znatok.errors import Interrupted, UsageError
from znatok.expert import Voice, open_expert
from znatok.fast.loss import answer_loss
from znatok.files import read_json
from znatok.model.adapters import TARGETS, inject
from znatok.model.score import head_weight, hidden_states
from znatok.tokens.collate import Collator, ExampleSet
from znatok.train import run as run_module
from znatok.train.prepare import prepare

# PEFT 0.21 reads a property that transformers 5.23 has renamed; goes with the filter in znatok.model.adapters
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SAME = ("step", "epoch", "loss", "learning_rate", "grad_norm", "tokens")
OVERFIT = {"learning_rate": 0.05, "num_train_epochs": 5, "keep": "best"}
"""With the pairs below, the validation loss is lowest at its first measurement, whatever the rounding."""
UNLIKE = [(question, "Да, да, да, да.") for question, _answer in tiny.PAIRS[:-1]] + [(tiny.PAIRS[-1][0], "7 / 8 = 9")]
"""The seed 42 puts the last pair to validation: the better the others are known, the less it is expected."""


def history(run):
    """Return all that two equal runs must have in common, to the last bit."""
    return [{key: row[key] for key in SAME} for row in helpers.rows(run)], helpers.validations(run)


def risen(run):
    """Return what was learned from zero: the adapter's B matrices as one vector."""
    return torch.cat([tensor.flatten() for name, tensor in helpers.adapter(run).items() if "lora_B" in name])


def stop_after(monkeypatch, step, error=None):
    """Let a signal arrive, or an error strike, during a step of the next run."""

    class Struck(run_module.Signals):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                if error is not None:
                    raise error
                self.caught = signal.SIGINT
            super().on_step_end(args, state, control, **kwargs)

    monkeypatch.setattr(run_module, "Signals", Struck)


def undisturbed(monkeypatch):
    monkeypatch.undo()


# Batches


@pytest.mark.parametrize(("pairs", "splits"), [(4, [(4, 1), (2, 2), (1, 4)]), (5, [(5, 1), (3, 2), (1, 5)])])
def test_accumulated_batches_train_as_one(tiny_dir, tmp_path, pairs, splits, trained_in):
    """A mean of the batches' means would weigh short answers more (transformers#24725)."""
    data = tiny.write_pairs(tmp_path / "few.jsonl", tiny.PAIRS[:pairs])
    runs = [
        helpers.trained(
            tiny_dir,
            data,
            tmp_path / f"{batch}x{steps}",
            lora={"lora_dropout": 0.0},
            data_options={"val_share": 0},
            num_train_epochs=6,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            dtype=trained_in,
        )
        for batch, steps in splits
    ]
    whole = runs[0]
    assert len(helpers.losses(whole)) == 6
    for part in runs[1:]:
        if trained_in == "int8":  # gradients of shared tokens are summed before they are rounded, or after
            assert helpers.losses(part) == pytest.approx(helpers.losses(whole), abs=5e-4)
            assert torch.cosine_similarity(risen(part), risen(whole), dim=0) > 0.995
            continue
        assert helpers.losses(part) == pytest.approx(helpers.losses(whole), abs=1e-5)
        for name, tensor in helpers.adapter(whole).items():
            torch.testing.assert_close(helpers.adapter(part)[name], tensor, rtol=0, atol=1e-5)


def test_padding_changes_neither_loss_nor_gradient(tiny_dir, pairs_file, tmp_path):
    ready = prepare(helpers.settings(tiny_dir, pairs_file, tmp_path / "run"))
    learned = {name: p for name, p in ready.model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for position, parameter in enumerate(learned.values()):  # B starts at zero, and A's gradient with it
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(position)) / 10)
    rows = sorted(ExampleSet(ready.train).examples, key=lambda example: len(example.ids))
    pair = ExampleSet([rows[0], rows[-1]])
    assert len(pair[0]["input_ids"]) < len(pair[1]["input_ids"])

    def gradients(*batches):
        ready.model.zero_grad()
        total = sum(
            answer_loss(
                hidden_states(ready.model, batch["input_ids"], batch["attention_mask"]),
                head_weight(ready.model),
                batch["labels"],
            )[0]
            for batch in batches
        )
        total.backward()
        return total.item(), {name: p.grad.clone() for name, p in learned.items()}

    collate = Collator(pad_id=0)
    padded_loss, padded = gradients(collate([pair[0], pair[1]]))
    alone_loss, alone = gradients(collate([pair[0]]), collate([pair[1]]))
    assert padded_loss == pytest.approx(alone_loss, rel=1e-6)
    for name, gradient in alone.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(padded[name], gradient, rtol=1e-4, atol=1e-5)


# Repeating and resuming


def test_a_seed_decides_everything(tiny_dir, pairs_file, tmp_path, trained_in):
    first, again, other = (
        helpers.trained(tiny_dir, pairs_file, tmp_path / name, seed=seed, dtype=trained_in)
        for name, seed in [("first", 1), ("again", 1), ("other", 2)]
    )
    assert helpers.adapter_bytes(first) == helpers.adapter_bytes(again)
    assert history(first) == history(again)
    assert helpers.adapter_bytes(first) != helpers.adapter_bytes(other)


@pytest.fixture(scope="module")
def straight(tiny_dir, tmp_path_factory):
    """Return a function that gives an uninterrupted run with certain options, trained once."""
    folder = tmp_path_factory.mktemp("straight")
    plain = tiny.write_pairs(folder / "pairs.jsonl")
    unlike = tiny.write_pairs(folder / "unlike.jsonl", UNLIKE)
    runs = {}

    def get(**options):
        key = repr(sorted(options.items()))
        data = unlike if options.get("learning_rate") == OVERFIT["learning_rate"] else plain
        if key not in runs:
            runs[key] = helpers.trained(tiny_dir, data, folder / f"run-{len(runs)}", **options)
        return data, runs[key]

    return get


@pytest.mark.parametrize(
    ("stops", "options"),
    [
        pytest.param([1], {}, id="first step"),
        pytest.param([4], {}, id="mid-epoch"),
        pytest.param([3], {}, id="epoch end"),
        pytest.param([2, 5, 6], {}, id="three times"),
        pytest.param([3], {"save_steps": 2}, id="epoch end, saved by steps"),
        pytest.param([6], {"save_steps": 2}, id="epoch end and save due"),
        pytest.param([5], {"save_steps": 2, "eval_steps": 2}, id="validated by steps"),
        pytest.param([4], {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}, id="accumulated"),
        pytest.param([4], {"max_steps": 8}, id="limited steps"),
        pytest.param([7], OVERFIT, id="best was early"),
        pytest.param([6, 10], OVERFIT | {"early_stopping": 3}, id="stops early"),
    ],
)
def test_a_resumed_run_equals_a_straight_one_to_the_bit(tiny_dir, straight, tmp_path, monkeypatch, stops, options):
    check_resuming(tiny_dir, straight, tmp_path, monkeypatch, stops, options)


@pytest.mark.usefixtures("int8_here")
@pytest.mark.parametrize(
    ("stops", "options"),
    [
        pytest.param([4], {}, id="mid-epoch"),
        pytest.param([2, 5, 6], {}, id="three times"),
        pytest.param([4], {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}, id="accumulated"),
        pytest.param([3], {"pack_tokens": 64}, id="in parts"),
    ],
)
def test_a_resumed_int8_run_equals_a_straight_one_to_the_bit(tiny_dir, straight, tmp_path, monkeypatch, stops, options):
    check_resuming(tiny_dir, straight, tmp_path, monkeypatch, stops, {"dtype": "auto"} | options)
    assert read_json(tmp_path / "parts" / "manifest.json")["engine"]["name"] == "int8"


def check_resuming(tiny_dir, straight, tmp_path, monkeypatch, stops, options):
    data, whole = straight(**options)
    parts = tmp_path / "parts"
    for round_, step in enumerate(stops):
        stop_after(monkeypatch, step)
        with pytest.raises(Interrupted):
            helpers.trained(tiny_dir, data, parts, resume=round_ > 0, **options)
        assert helpers.status(parts) == "interrupted"
        assert len(helpers.rows(parts)) == step
        undisturbed(monkeypatch)
    helpers.trained(tiny_dir, data, parts, resume=True, **options)
    assert history(parts) == history(whole)
    assert helpers.adapter_bytes(parts) == helpers.adapter_bytes(whole)
    assert helpers.status(parts) == "finished"
    results = [read_json(run / "manifest.json")["result"]["best"] for run in (parts, whole.path)]
    assert results[0] == results[1]


def test_the_overfitted_run_really_keeps_an_early_adapter(straight):
    for options in (OVERFIT, OVERFIT | {"early_stopping": 3}):
        _data, run = straight(**options)
        best = min(helpers.validations(run), key=lambda row: row["val_loss"])
        assert best["step"] == 3 < helpers.rows(run)[-1]["step"]
        result = read_json(run.manifest)["result"]
        assert result["best"] == {"step": best["step"], "val_loss": best["val_loss"]}
        assert result["kept"] == best["step"]
    assert len(helpers.losses(run)) == 12


def test_the_last_adapter_is_kept_unless_the_best_is_asked_for(straight):
    _data, last = straight(**(OVERFIT | {"keep": "last"}))
    _data, best = straight(**OVERFIT)
    assert helpers.adapter_bytes(last) != helpers.adapter_bytes(best)
    result = read_json(last.manifest)["result"]
    assert result["kept"] == result["steps"] > result["best"]["step"]


@pytest.mark.parametrize("error", [None, RuntimeError("power cut")], ids=["signal", "crash"])
def test_a_run_cut_off_as_it_stops_early_does_not_train_on(tiny_dir, straight, tmp_path, monkeypatch, error):
    options = OVERFIT | {"early_stopping": 3}
    data, whole = straight(**options)
    if error is None:
        stop_after(monkeypatch, 12)
        helpers.trained(tiny_dir, data, tmp_path / "run", **options)
    else:
        monkeypatch.setattr(run_module, "finish", lambda *_: (_ for _ in ()).throw(error))
        with pytest.raises(RuntimeError):
            helpers.trained(tiny_dir, data, tmp_path / "run", **options)
        undisturbed(monkeypatch)
        helpers.trained(tiny_dir, data, tmp_path / "run", resume=True, **options)
    assert history(tmp_path / "run") == history(whole)
    assert helpers.adapter_bytes(tmp_path / "run") == helpers.adapter_bytes(whole)


def test_a_crash_costs_only_the_steps_since_the_last_checkpoint(tiny_dir, straight, tmp_path, monkeypatch):
    data, whole = straight(save_steps=2)
    crashed = tmp_path / "crashed"
    stop_after(monkeypatch, 6, error=RuntimeError("power cut"))
    with pytest.raises(RuntimeError, match="power cut"):
        helpers.trained(tiny_dir, data, crashed, save_steps=2)
    undisturbed(monkeypatch)
    assert helpers.status(crashed) == "failed"
    assert helpers.rows(crashed)[-1]["step"] == 5
    with (crashed / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 6, "lo')
    (crashed / "checkpoints" / ".staging" / "half").mkdir(parents=True)
    helpers.trained(tiny_dir, data, crashed, save_steps=2, resume=True)
    assert history(crashed) == history(whole)
    assert helpers.adapter_bytes(crashed) == helpers.adapter_bytes(whole)
    assert not (crashed / "checkpoints" / ".staging").exists()


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tiny_dir, straight, tmp_path, monkeypatch, capsys):
    data, whole = straight(save_steps=2)
    parts = tmp_path / "parts"
    stop_after(monkeypatch, 5)
    with pytest.raises(Interrupted):
        helpers.trained(tiny_dir, data, parts, save_steps=2)
    undisturbed(monkeypatch)
    weights = parts / "checkpoints" / "step-000005" / "optimizer.pt"
    weights.write_bytes(weights.read_bytes()[:-10])
    helpers.trained(tiny_dir, data, parts, save_steps=2, resume=True)
    assert "step-000005: skipped, optimizer.pt has changed" in capsys.readouterr().err
    assert history(parts) == history(whole)
    assert helpers.adapter_bytes(parts) == helpers.adapter_bytes(whole)


def test_a_run_stopped_before_any_checkpoint_starts_again(tiny_dir, straight, tmp_path, monkeypatch):
    data, whole = straight()
    parts = tmp_path / "parts"
    stop_after(monkeypatch, 2, error=RuntimeError("power cut"))
    with pytest.raises(RuntimeError):
        helpers.trained(tiny_dir, data, parts)
    undisturbed(monkeypatch)
    helpers.trained(tiny_dir, data, parts, resume=True)
    assert history(parts) == history(whole)
    assert helpers.adapter_bytes(parts) == helpers.adapter_bytes(whole)


@pytest.mark.parametrize("options", [{}, OVERFIT | {"early_stopping": 3}], ids=["all steps", "stopped early"])
def test_resuming_a_finished_run_changes_nothing(tiny_dir, tmp_path, options):
    pairs_file = tiny.write_pairs(tmp_path / "pairs.jsonl", UNLIKE)
    run = helpers.trained(tiny_dir, pairs_file, tmp_path / "run", **options)
    assert len(helpers.losses(run)) == (12 if options else 9)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != ".lock"}
    helpers.trained(tiny_dir, pairs_file, run.path, resume=True, **options)
    after = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 7}, "seed: 42 → 7"),
        ({"learning_rate": 1e-3}, "options.learning_rate: 0.005 → 0.001"),
        ({"lora": {"lora_r": 4}}, "lora.lora_r: 8 → 4"),
        ({"data_options": {"system": "Hm."}}, "chat.system: Ты знаток своего дела."),
    ],
)
def test_resuming_with_other_options_is_refused_and_leaves_the_run_alone(
    tiny_dir, straight, tmp_path, monkeypatch, change, said
):
    data, _whole = straight()
    stop_after(monkeypatch, 2)
    with pytest.raises(Interrupted):
        helpers.trained(tiny_dir, data, tmp_path / "run")
    undisturbed(monkeypatch)
    with pytest.raises(UsageError) as caught:
        helpers.trained(tiny_dir, data, tmp_path / "run", resume=True, **change)
    assert said in str(caught.value)
    assert helpers.status(tmp_path / "run") == "interrupted"


def test_resuming_with_other_data_or_another_base_is_refused(tiny_dir, straight, tmp_path, monkeypatch):
    data, _whole = straight()
    stop_after(monkeypatch, 2)
    with pytest.raises(Interrupted):
        helpers.trained(tiny_dir, data, tmp_path / "run")
    undisturbed(monkeypatch)
    fewer = tiny.write_pairs(tmp_path / "fewer.jsonl", tiny.PAIRS[:9])
    with pytest.raises(UsageError, match=r"data\.pairs: 10 → 9"):
        helpers.trained(tiny_dir, fewer, tmp_path / "run", resume=True)
    other = tiny.save_tiny(tmp_path / "other", seed=5)
    with pytest.raises(UsageError, match=r"base\.sha256: "):
        helpers.trained(other, data, tmp_path / "run", resume=True)


def test_data_that_only_moved_may_be_resumed(tiny_dir, straight, tmp_path, monkeypatch):
    data, whole = straight()
    stop_after(monkeypatch, 2)
    with pytest.raises(Interrupted):
        helpers.trained(tiny_dir, data, tmp_path / "run")
    undisturbed(monkeypatch)
    moved = tiny.write_pairs(tmp_path / "moved.jsonl")
    helpers.trained(tiny_dir, moved, tmp_path / "run", resume=True)
    assert helpers.adapter_bytes(tmp_path / "run") == helpers.adapter_bytes(whole)


# What was learned


def test_validation_rows_equal_a_computation_without_znatok(tiny_dir, pairs_file, tmp_path):
    config = helpers.settings(tiny_dir, pairs_file, tmp_path / "run", keep_checkpoints=10, learning_rate=0.02)
    examples = prepare(config).validation
    run = run_module.train(config).run
    found = helpers.validations(run)
    assert [row["step"] for row in found] == [3, 6, 9]
    for row in found:
        base = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, run.checkpoints / f"step-{row['step']:06d}").eval()
        total, count = 0.0, 0
        for example in examples:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([example.ids])).logits[0]
            answer = torch.tensor(example.ids[example.answer_start :])
            predicted = logits[example.answer_start - 1 : -1].log_softmax(dim=-1)
            total -= predicted.gather(1, answer[:, None]).sum().item()
            count += len(answer)
        assert row["val_loss"] == pytest.approx(total / count, abs=1e-5)


def test_the_loss_falls(pairs_file, tmp_path):
    loud = tiny.save_tiny(tmp_path / "loud", initializer_range=0.3)  # the fixture's logits are too small to move far
    run = helpers.trained(loud, pairs_file, tmp_path / "run", learning_rate=0.01, num_train_epochs=8)
    found = helpers.losses(run)
    assert sum(found[-3:]) / 3 < 0.8 * found[0]


@pytest.mark.parametrize(("share", "peak"), [(0, 0), (0.3, 3), (1, 9)])
def test_the_learning_rate_rises_for_the_share_of_steps_asked_for(tiny_dir, pairs_file, tmp_path, share, peak):
    """The Trainer takes a warm-up of exactly 1 for one step, not for all of them."""
    run = helpers.trained(tiny_dir, pairs_file, tmp_path / "run", warmup_ratio=share)
    rates = [row["learning_rate"] for row in helpers.rows(run)] + [0.0 if share < 1 else 5e-3]
    assert rates.index(max(rates)) == peak
    assert rates[peak] == pytest.approx(5e-3)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_the_adapter_gives_the_same_logits_in_stock_peft(tiny_dir, pairs_file, tmp_path):
    run = helpers.trained(tiny_dir, pairs_file, tmp_path / "run")
    base = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        untouched = base(input_ids=ids).logits
        stock = PeftModel.from_pretrained(base, run.path).eval()(input_ids=ids).logits
        expert = open_expert(ModelOptions(model_name="", dtype="float32"), run, "")
        ours = expert.model(input_ids=ids).logits
        with expert.speaking(Voice.BASE):
            silent = expert.model(input_ids=ids).logits
    assert torch.equal(ours, stock)
    assert torch.equal(silent, untouched)
    assert not torch.equal(stock, untouched)


def test_training_leaves_the_base_as_it_was(tiny_dir, pairs_file, tmp_path):
    config = helpers.settings(tiny_dir, pairs_file, tmp_path / "run")
    ready = prepare(config)
    frozen = {name: p.detach().clone() for name, p in ready.model.named_parameters() if not p.requires_grad}
    learned = {name: p.detach().clone() for name, p in ready.model.named_parameters() if p.requires_grad}
    with run_module.own_run(config, ready.team) as run:
        run_module.run_in(run, config, ready)
    now = dict(ready.model.named_parameters())
    assert frozen
    assert all(torch.equal(now[name], tensor) for name, tensor in frozen.items())
    assert all(".lora_" in name for name in learned)
    assert not all(torch.equal(now[name], tensor) for name, tensor in learned.items())
    stored = load_file(tiny_dir / "model.safetensors")
    assert torch.equal(now["base_model.model.model.embed_tokens.weight"], stored["model.embed_tokens.weight"])


def test_the_seed_documents_configuration_trains_9_232_384_parameters():
    """The document says 800 thousand; that is not what its own settings give on Qwen2.5-1.5B."""
    shape = Qwen2Config(
        vocab_size=151_936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        base = Qwen2ForCausalLM(shape).requires_grad_(False)
    assert sum(p.numel() for p in base.parameters()) == 1_543_714_304
    model = inject(base, LoraOptions(), seed=42)
    assert len(TARGETS) == 7
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 9_232_384
