"""What a finished run directory holds, as other programs and later commands rely on it."""

import json

import pytest

import helpers
from znatok.config import TrainConfig
from znatok.files import read_json, read_jsonl
from znatok.train.prepare import prepare

MANIFEST = {
    *("base", "data", "lora", "options", "data_options", "seed", "dtype", "chat"),
    *("znatok", "started", "versions", "command", "machine", "engine", "plan", "result"),
    *("processes", "validation"),
}
RESULT = {"steps", "first_loss", "last_loss", "best", "kept", "adapter_delta_norm", "peak_rss_bytes", "wall_seconds"}
PLAN = {
    *("examples", "validation", "steps", "epochs", "tokens", "computed_tokens", "answer_tokens"),
    *("trainable", "parameters", "batch", "processes", "seconds", "peak_rss_bytes", "probe_tokens_per_second"),
}


@pytest.fixture(scope="module")
def config(tiny_dir, tmp_path_factory):
    import tiny

    folder = tmp_path_factory.mktemp("contract")
    return helpers.settings(tiny_dir, tiny.write_pairs(folder / "pairs.jsonl"), folder / "run")


@pytest.fixture(scope="module")
def run(config):
    from znatok.train.run import train

    return train(config).run


def test_the_directory_holds_these_files_and_folders(run):
    here = {path.name for path in run.path.iterdir()}
    assert here == {
        *("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("chat_template.jinja", "run.toml", "manifest.json", "metrics.jsonl", "status.json", "checkpoints", ".lock"),
    }


def test_checkpoints_are_named_by_their_step_and_only_the_newest_two_stay(run):
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-000006", "step-000009"]


def test_run_toml_gives_the_configuration_back(run, config):
    assert TrainConfig.from_toml(run.options) == config


def test_the_manifest_says_what_the_run_was_made_of_and_what_it_came_to(run, config):
    manifest = read_json(run.manifest)
    assert manifest.keys() == MANIFEST
    assert manifest["result"].keys() == RESULT
    assert manifest["plan"].keys() == PLAN
    assert manifest["engine"].keys() == {"name", "reason", "float_groups", "guard"}
    assert (manifest["engine"]["name"], manifest["engine"]["guard"]) == ("float32", None)
    assert manifest["versions"].keys() == {"torch", "transformers", "peft", "accelerate", "tokenizers"}
    assert manifest["base"].keys() == {"name", "sha256"}
    assert manifest["data"].keys() == {"sha256", "pairs", "path"}
    assert manifest["chat"].keys() == {"format", "end_id", "stop_ids", "system"}
    assert manifest["plan"]["steps"] == manifest["result"]["steps"] == 9
    assert manifest["plan"]["seconds"] > 0
    assert manifest["seed"] == config.train.seed
    assert manifest["lora"] == {"use_lora": True, "lora_r": 8, "lora_alpha": 32, "lora_dropout": 0.1}
    rows = helpers.rows(run)
    assert (manifest["result"]["first_loss"], manifest["result"]["last_loss"]) == (rows[0]["loss"], rows[-1]["loss"])


def test_the_manifests_command_repeats_the_run(run, config):
    from znatok.scripts import train_config, train_parser

    program, verb, *words = read_json(run.manifest)["command"]
    assert (program, verb) == ("znatok", "train")
    again = train_config(train_parser("znatok train", "expert").parse_args(words), words)
    assert (again.model, again.data, again.lora) == (config.model, config.data, config.lora)
    assert again.train.learning_rate == config.train.learning_rate


def test_metrics_have_a_row_per_step_and_per_validation(run):
    found = read_jsonl(run.metrics)
    steps, validations = [r for r in found if "loss" in r], [r for r in found if "val_loss" in r]
    assert all(row.keys() == helpers.ROW_KEYS for row in steps)
    assert all(row.keys() == {"step", "epoch", "val_loss"} for row in validations)
    assert [row["step"] for row in steps] == list(range(1, 10))
    assert [row["step"] for row in validations] == [3, 6, 9]
    assert [row["epoch"] for row in validations] == [1.0, 2.0, 3.0]
    assert len(steps) + len(validations) == len(found)


def test_tokens_are_cumulative_and_count_no_padding(run, config):
    epoch = sum(len(example.ids) for example in prepare(config).train)
    tokens = [row["tokens"] for row in helpers.rows(run)]
    assert tokens == sorted(set(tokens))
    assert tokens[2::3] == [epoch, 2 * epoch, 3 * epoch]
    assert all(isinstance(value, int) for value in tokens)


def test_seconds_grow_and_speed_is_tokens_over_them(run):
    rows = helpers.rows(run)
    before = {"tokens": 0, "seconds": 0.0}
    for row in rows:
        seconds = row["seconds"] - before["seconds"]
        assert seconds > 0
        assert row["tokens_per_second"] == pytest.approx((row["tokens"] - before["tokens"]) / seconds, rel=0.3)
        before = row


def test_the_status_is_finished(run):
    status = read_json(run.path / "status.json")
    assert status.keys() == {"state", "updated", "pid"}
    assert status["state"] == "finished"


def test_the_adapters_config_is_pefts_and_names_no_path_of_this_machine(run, tiny_dir):
    stated = read_json(run.path / "adapter_config.json")
    assert stated["base_model_name_or_path"] == tiny_dir.name
    assert (stated["peft_type"], stated["task_type"], stated["inference_mode"]) == ("LORA", "CAUSAL_LM", True)
    assert (stated["r"], stated["lora_alpha"], stated["lora_dropout"]) == (8, 32, 0.1)
    assert len(stated["target_modules"]) == 7
    assert str(tiny_dir) not in json.dumps(stated)


def test_the_stored_template_renders_what_was_trained(run, config):
    from transformers import AutoTokenizer

    ready = prepare(config)
    tokenizer = AutoTokenizer.from_pretrained(run.path)
    example = ready.train[0]
    messages = [{"role": "user", "content": example.pair.prompt}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert list(ids) == list(example.ids[: example.answer_start])
