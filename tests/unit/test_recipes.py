"""Recipes: options taken together, behind whatever the command line states."""

import pytest

from znatok.config import RECIPES
from znatok.scripts import train_config, train_parser


def made(*words, recipe="seed"):
    return train_config(train_parser("znatok train", recipe).parse_args(list(words)), list(words))


def test_the_seed_recipe_is_the_original_script():
    config = made()
    assert (config.lora.lora_r, config.train.learning_rate, config.train.num_train_epochs) == (8, 2e-4, 3)
    assert config.data.data_path == "data.jsonl"
    assert made("--recipe", "seed", recipe="expert") == config


def test_the_expert_recipe_sets_what_it_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = made("--recipe", "expert")
    values = vars(config.train) | vars(config.lora)
    assert {name: values[name] for name in RECIPES["expert"]} == RECIPES["expert"]
    assert config.data.data_path == "data.jsonl"  # nothing else is here


def test_flags_go_before_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = made("--recipe=expert", "--lora_r=4", "--learning-rate", "0.001")
    assert (config.lora.lora_r, config.train.learning_rate) == (4, 0.001)
    assert config.lora.lora_alpha == RECIPES["expert"]["lora_alpha"]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((), ("data/expanded.jsonl", "data/eval/dev.jsonl")),
        (("--data_path", "mine.jsonl"), ("mine.jsonl", None)),
        (("--val_path", "mine.jsonl"), ("data.jsonl", "mine.jsonl")),
    ],
)
def test_the_expert_recipe_takes_the_large_set_where_it_is(tmp_path, monkeypatch, words, wanted):
    (tmp_path / "data" / "eval").mkdir(parents=True)
    for name in ("expanded.jsonl", "eval/dev.jsonl"):
        (tmp_path / "data" / name).write_text("", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    config = made("--recipe", "expert", *words)
    assert (config.data.data_path, config.data.val_path) == wanted
