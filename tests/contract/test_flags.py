"""The option sets of the two root scripts, frozen: adding, losing or changing one is a reviewed change of a table."""

import re

import pytest

from znatok.config import LoraOptions, from_args
from znatok.scripts import chat_parser, train_config, train_parser

SYSTEM = "Ты знаток своего дела. Отвечай точно, по существу и по-русски."

# name, type, default, choices
MODEL = {
    ("model_name", "str", "Qwen/Qwen2.5-1.5B", None),
    ("dtype", "str", "auto", ("auto", "float32", "bfloat16", "int8")),
}
TRAIN = MODEL | {
    ("recipe", "str", "seed", ("seed", "expert")),
    ("data_path", "str", "data.jsonl", None),
    ("max_length", "int", 512, None),
    ("overlong", "str", "shorten", ("shorten", "refuse")),
    ("skip_bad", "bool", False, None),
    ("val_share", "float", 0.1, None),
    ("val_path", "str", None, None),
    ("system", "str", SYSTEM, None),
    ("use_lora", "bool", True, None),
    ("lora_r", "int", 8, None),
    ("lora_alpha", "int", 32, None),
    ("lora_dropout", "float", 0.1, None),
    ("output_dir", "str", None, None),
    ("learning_rate", "float", 2e-4, None),
    ("num_train_epochs", "float", 3, None),
    ("per_device_train_batch_size", "int", 4, None),
    ("gradient_accumulation_steps", "int", 1, None),
    ("lr_scheduler_type", "str", "linear", ("linear", "cosine", "constant")),
    ("warmup_ratio", "float", 0.05, None),
    ("weight_decay", "float", 0.0, None),
    ("max_grad_norm", "float", 1.0, None),
    ("seed", "int", 42, None),
    ("max_steps", "int", 0, None),
    ("save_steps", "int", 0, None),
    ("eval_steps", "int", 0, None),
    ("keep_checkpoints", "int", 2, None),
    ("keep", "str", "last", ("last", "best")),
    ("early_stopping", "int", 0, None),
    ("pack_tokens", "int", 640, None),
    ("low_memory", "bool", False, None),
    ("shard_base", "bool", False, None),
    ("threads", "int", 0, None),
    ("resume", "bool", False, None),
    ("force", "bool", False, None),
    ("dry_run", "bool", False, None),
}
CHAT = MODEL | {
    ("model_dir", "str", None, None),
    ("test_seed", "int", 42, None),
    ("questions", "str", None, None),
    ("system", "str", None, None),
    ("knowledge", "str", None, None),
    ("no_history", "switch", False, None),
    ("base", "switch", False, None),
    ("engine", "str", "auto", ("auto", "torch", "llamacpp")),
    ("temperature", "float", 0.7, None),
    ("top_p", "float", 0.9, None),
    ("top_k", "int", 0, None),
    ("repetition_penalty", "float", 1.0, None),
    ("frequency_penalty", "float", 0.0, None),
    ("presence_penalty", "float", 0.0, None),
    ("max_new_tokens", "int", 256, None),
}

# the seed document: its command lines, its table of parameters, its LoraConfig
HISTORICAL_TRAIN = {
    "model_name": "Qwen/Qwen2.5-1.5B",
    "data_path": "data.jsonl",
    "use_lora": True,
    "lora_r": 8,
    "lora_alpha": 32,
    "lora_dropout": 0.1,
    "learning_rate": 2e-4,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 4,
    "max_length": 512,
    "seed": 42,
}
SEED_COMMAND = [
    *("--model_name", "Qwen/Qwen2.5-1.5B", "--data_path", "data.jsonl", "--output_dir", "my-lora-model", "--use_lora"),
    *("--lora_r", "8", "--lora_alpha", "32", "--learning_rate", "2e-4", "--num_train_epochs", "3"),
]


def options(parser):
    """Return (name, type, default, choices) of every option but --help."""
    found = set()
    for action in parser._actions:
        if action.dest == "help":
            continue
        kind = "switch" if action.nargs == 0 else "bool" if action.nargs == "?" else (action.type or str).__name__
        found.add((action.dest, kind, action.default, action.choices and tuple(action.choices)))
    return found


@pytest.mark.parametrize(("make", "frozen"), [(train_parser, TRAIN), (chat_parser, CHAT)], ids=["train", "chat"])
def test_the_options_are_those_of_the_table_and_no_others(make, frozen):
    assert options(make("prog")) == frozen


@pytest.mark.parametrize("make", [train_parser, chat_parser], ids=["train", "chat"])
def test_every_option_has_its_snake_case_spelling_and_the_kebab_one(make):
    for action in make("prog")._actions:
        if action.dest != "help":
            assert action.option_strings == sorted(
                {f"--{action.dest}", f"--{action.dest.replace('_', '-')}"}, key=lambda flag: flag != f"--{action.dest}"
            )


def test_users_of_train_see_no_more_options_than_they_can_survey():
    assert len(TRAIN) <= 40


def test_the_historical_flags_have_the_seed_documents_defaults():
    args = train_parser("train_model.py").parse_args([])
    assert {name: getattr(args, name) for name in HISTORICAL_TRAIN} == HISTORICAL_TRAIN
    assert args.output_dir is None


def test_the_seed_documents_training_command_parses_as_it_stands():
    config = train_config(train_parser("train_model.py").parse_args(SEED_COMMAND), SEED_COMMAND)
    plain = train_config(train_parser("train_model.py").parse_args([]), [])
    assert config.train.output_dir == "my-lora-model"
    assert (config.model, config.data, config.lora) == (plain.model, plain.data, plain.lora)


@pytest.mark.parametrize(
    ("words", "model_dir"),
    [
        ("--model_name Qwen/Qwen2.5-1.5B --test_seed 42", None),
        ("--model_name Qwen/Qwen2.5-1.5B --model_dir my-lora-model --test_seed 42", "my-lora-model"),
    ],
)
def test_the_seed_documents_chat_commands_parse_as_they_stand(words, model_dir):
    args = chat_parser("chatting.py").parse_args(words.split())
    assert (args.model_name, args.model_dir, args.test_seed) == ("Qwen/Qwen2.5-1.5B", model_dir, 42)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--use_lora"], True),
        (["--use_lora", "true"], True),
        (["--use_lora=true"], True),
        (["--use_lora=false"], False),
        (["--use_lora", "false"], False),
        (["--use-lora"], True),
        (["--use_lora", "--lora_r", "8"], True),
        ([], True),
    ],
)
def test_every_spelling_of_use_lora_parses(words, value):
    args = train_parser("train_model.py").parse_args(words)
    assert from_args(LoraOptions, args).use_lora is value


@pytest.mark.parametrize("make", [train_parser, chat_parser], ids=["train", "chat"])
def test_help_names_every_option_with_its_default(make):
    text = make("prog").format_help()
    for action in make("prog")._actions:
        if action.dest != "help":
            assert re.search(rf"--{action.dest}\b", text)
    assert "(default: 42)" in text
