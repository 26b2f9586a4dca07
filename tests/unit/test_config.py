import argparse
import dataclasses
import io
import math
import sys

import pytest

from znatok import config
from znatok.config import (
    DataOptions,
    LoraOptions,
    ModelOptions,
    Parser,
    SampleOptions,
    TrainConfig,
    TrainOptions,
    add_options,
    boolean,
    explicit,
    from_args,
    option,
)
from znatok.errors import UsageError
from znatok.scripts import train_parser

GROUPS = (ModelOptions, DataOptions, LoraOptions, TrainOptions, SampleOptions)
NUMBERS = [(group, spec) for group in GROUPS for spec in dataclasses.fields(group) if spec.type in (int, float)]
by_name = {"ids": lambda value: getattr(value, "name", getattr(value, "__name__", None))}


def parse(group, *argv, **defaults):
    parser = Parser(prog="prog")
    add_options(parser, group, **defaults)
    return from_args(group, parser.parse_args(argv))


# Limits


@pytest.mark.parametrize(("group", "spec"), NUMBERS, **by_name)
def test_both_ends_of_every_limit_are_allowed_and_what_is_beyond_is_not(group, spec):
    low, high = spec.metadata["low"], spec.metadata["high"]
    assert math.isfinite(low)
    assert math.isfinite(high)
    assert low <= spec.default <= high
    for value in (low, high):
        assert getattr(group(**{spec.name: spec.type(value)}), spec.name) == value
    for value in (low - 1, high + 1, math.nan, math.inf, -math.inf):
        with pytest.raises(UsageError, match=rf"--{spec.name} .*: expected a number in \[") as caught:
            group(**{spec.name: value})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999"])
def test_numbers_that_are_none_are_refused_on_the_command_line(text):
    with pytest.raises(UsageError, match="--learning_rate"):
        parse(TrainOptions, f"--learning_rate={text}")


def test_an_option_without_limits_still_refuses_nan():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Loose(config.Options):
        """A group."""

        x: float = option(0.0, "anything")
        y: float = 1.0

    assert Loose(x=math.inf).x == math.inf
    assert Loose(y=math.nan).y != Loose().y
    with pytest.raises(UsageError, match="--x nan"):
        Loose(x=math.nan)


def test_a_choice_is_checked_wherever_it_comes_from():
    with pytest.raises(UsageError, match="--overlong cut: expected one of shorten, refuse"):
        DataOptions(overlong="cut")
    with pytest.raises(UsageError, match="argument --overlong: invalid choice: 'cut'"):
        parse(DataOptions, "--overlong", "cut")


def test_options_cannot_be_changed_after_their_check():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SampleOptions().temperature = 9
    with pytest.raises(UsageError, match="--temperature 9"):
        dataclasses.replace(SampleOptions(), temperature=9)


# Flags


@pytest.mark.parametrize("group", GROUPS, **by_name)
def test_no_flags_give_the_defaults(group):
    assert parse(group) == group()


@pytest.mark.parametrize(("group", "spec"), NUMBERS, **by_name)
def test_every_flag_has_a_snake_and_a_kebab_spelling(group, spec):
    value = str(spec.type(spec.metadata["high"]))
    snake, kebab = f"--{spec.name}", f"--{spec.name.replace('_', '-')}"
    for argv in ([snake, value], [kebab, value], [f"{snake}={value}"], [f"{kebab}={value}"]):
        assert getattr(parse(group, *argv), spec.name) == spec.metadata["high"]


TRUE = ["true", "True", "TRUE", "1", "yes", "Y", "on", "да", "ДА"]
FALSE = ["false", "False", "0", "no", "n", "OFF", "нет", "Нет"]


@pytest.mark.parametrize(("text", "value"), [(t, True) for t in TRUE] + [(f, False) for f in FALSE])
def test_every_spelling_of_a_boolean(text, value):
    assert boolean(text) is value
    assert parse(LoraOptions, "--use_lora", text).use_lora is value
    assert parse(LoraOptions, f"--use-lora={text}").use_lora is value


def test_a_boolean_flag_alone_means_true():
    assert parse(TrainOptions, "--force").force is True
    assert parse(TrainOptions, "--dry-run", "--seed", "1") == TrainOptions(dry_run=True, seed=1)
    assert parse(LoraOptions, "--use_lora", "--lora_r", "4") == LoraOptions(lora_r=4)


@pytest.mark.parametrize("text", ["", "maybe", "2", "wahr", " true", "None"])
def test_other_words_are_no_booleans(text):
    with pytest.raises(UsageError, match=r"argument --use_lora/--use-lora: .* is neither true nor false"):
        parse(LoraOptions, f"--use_lora={text}")


@pytest.mark.parametrize("text", ["1e-4", "1e-4 ", " 1e-4", "0.0001", "1E-4", ".0001"])
def test_a_number_may_be_written_in_many_ways(text):
    assert parse(TrainOptions, "--learning_rate", text).learning_rate == 1e-4


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--learning_rate", "1e-4x"], "invalid float value: '1e-4x'"),
        (["--learning_rate", "2,5"], "invalid float value: '2,5'"),
        (["--seed", "1.5"], "invalid int value: '1.5'"),
        (["--seed"], "expected one argument"),
        (["--learnig_rate", "1"], r"unrecognized arguments: --learnig_rate 1, did you mean --learning_rate\?"),
        (["--sed=1"], r"did you mean --seed\?"),
        (["--max-step=1"], r"did you mean --max-steps\?"),
        (["--learning"], "unrecognized arguments: --learning"),
        (["--qqqqqq"], r"unrecognized arguments: --qqqqqq \(see prog --help\)"),
        (["stray"], r"unrecognized arguments: stray \(see prog --help\)"),
        (["--{braces}"], r"unrecognized arguments: --\{braces\}"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error_with_a_hint(argv, message):
    with pytest.raises(UsageError, match=message):
        parse(TrainOptions, *argv)


@pytest.mark.parametrize(
    ("former", "hint"),
    [
        ("--evaluation_strategy", ", did you mean --eval_steps?"),
        ("--eval_strategy", ", did you mean --eval_steps?"),
        ("--max_seq_length", ", did you mean --max_length?"),
        ("--per_gpu_train_batch_size", ", did you mean --per_device_train_batch_size?"),
        ("--fp16", ""),
        ("--save_total_limit", ""),
    ],
)
def test_names_of_older_libraries_are_usage_errors(former, hint):
    with pytest.raises(UsageError) as caught:
        train_parser("znatok train").parse_args([former, "1"])
    assert str(caught.value) == f"unrecognized arguments: {former} 1{hint} (see znatok train --help)"


def test_an_abbreviation_is_never_guessed():
    with pytest.raises(UsageError, match="unrecognized"):
        parse(TrainOptions, "--learning", "1e-4")


def test_a_command_may_have_defaults_of_its_own():
    assert parse(SampleOptions, temperature=0.0, max_new_tokens=9) == SampleOptions(temperature=0.0, max_new_tokens=9)


def test_explicit_names_what_was_really_stated():
    argv = ["--max-steps", "3", "--seed=7", "--use_lora", "x", "-h", "--", "--qqq"]
    assert explicit(argv, TrainOptions) == {"max_steps", "seed"}
    assert explicit(argv, LoraOptions) == {"use_lora"}


# Help


def test_help_shows_every_flag_with_its_default_and_percent_signs(capsys):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Percents(config.Options):
        """Shares, in %."""

        share: float = option(0.5, "100 % of %(prog)s and 5%d")
        name: str = option("50%", "a default with a sign")

    parser = Parser(prog="prog")
    for group in (*GROUPS, Percents):
        add_options(parser, group)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    assert "100 % of %(prog)s and 5%d (default: 0.5)" in text
    assert "(default: 50%)" in text
    for group in GROUPS:
        for spec in dataclasses.fields(group):
            assert f"--{spec.name}" in text
            assert f"--{spec.name.replace('_', '-')}" in text


@pytest.mark.parametrize("group", GROUPS, **by_name)
def test_every_option_explains_itself_on_one_line(group):
    for spec in dataclasses.fields(group):
        assert spec.metadata["help"]
        assert "\n" not in spec.metadata["help"]
        assert not spec.metadata["help"].endswith(".")


# TOML


def test_toml_round_trip_of_the_defaults(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(TrainConfig().to_toml(), encoding="utf-8")
    assert TrainConfig.from_toml(path) == TrainConfig()
    assert "output_dir" not in path.read_text(encoding="utf-8")  # None has no spelling in TOML


def test_toml_round_trip_of_everything_else(tmp_path):
    settings = TrainConfig(
        model=ModelOptions(model_name='C:\\модели\\мой "файл".gguf', dtype="bfloat16"),
        data=DataOptions(system="строка\nи \u2028 ещё\t'''", val_share=0, skip_bad=True),
        lora=LoraOptions(use_lora=False, lora_dropout=1e-7),
        train=TrainOptions(output_dir="runs/x y", learning_rate=1e-9, num_train_epochs=0.5, seed=2**31 - 1),
    )
    path = tmp_path / "run.toml"
    path.write_bytes(settings.to_toml().encode())
    assert TrainConfig.from_toml(path) == settings


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[train]\nlearnig_rate = 1", r"run\.toml: unknown option learnig_rate, did you mean learning_rate\?"),
        ("[trainn]\nseed = 1", r"run\.toml: unknown option trainn, did you mean train\?"),
        ("zzz = 1", r"run\.toml: unknown option zzz$"),
        ("train = 5", "unknown option 5"),
        ("[train]\nlearning_rate = 7", r"--learning_rate 7: expected a number in \[1e-09, 1\]"),
        ("[train]\nlearning_rate = nan", "--learning_rate nan"),
        ('[train]\nlearning_rate = "1e-4"', "learning_rate = '1e-4': expected float"),
        ("[train]\nseed = 1.0", "seed = 1.0: expected int"),
        ("[train]\nseed = true", "seed = True: expected int"),
        ('[train]\nforce = "false"', "force = 'false': expected bool"),
        ("[train]\nforce = 1", "force = 1: expected bool"),
        ("[train]\noutput_dir = 1", "output_dir = 1: expected str"),
        ("[data]\nsystem = []", r"system = \[\]: expected str"),
        ('[data]\noverlong = "cut"', "--overlong cut: expected one of"),
        ("[train", r"run\.toml: not TOML: "),
    ],
)
def test_a_wrong_toml_file_is_a_usage_error(tmp_path, toml, message):
    path = tmp_path / "run.toml"
    path.write_text(toml)
    with pytest.raises(UsageError, match=message):
        TrainConfig.from_toml(path)


def test_toml_in_another_encoding_is_a_usage_error(tmp_path):
    path = tmp_path / "run.toml"
    path.write_bytes('[data]\nsystem = "Знаток"\n'.encode("cp1251"))
    with pytest.raises(UsageError, match="not TOML"):
        TrainConfig.from_toml(path)


def test_a_whole_number_will_do_for_a_share_of_one(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[train]\nnum_train_epochs = 3\n")
    assert TrainConfig.from_toml(path).train.num_train_epochs == 3


# Streams


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "koi8-r"])
def test_streams_never_fail_on_output_and_never_invent_input(monkeypatch, encoding):
    def stream(data=b""):
        return io.TextIOWrapper(io.BytesIO(data), encoding=encoding, errors="surrogateescape")

    given = "Что?".encode("utf-8" if encoding == "ascii" else encoding)
    monkeypatch.setattr(sys, "stdin", stream(given))
    monkeypatch.setattr(sys, "stdout", stream())
    monkeypatch.setattr(sys, "stderr", stream())
    config.utf8_streams()
    assert sys.stdin.readline() == "Что?"
    sys.stdout.write("ёж \U0001f994 \ud800\n")
    sys.stdout.flush()
    assert sys.stdout.buffer.getvalue().endswith(
        "ёж ? ?\n".encode(encoding, "replace") if encoding != "utf-8" else b"?\n"
    )


def test_bytes_that_are_no_text_are_an_error_not_surrogates(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xd7\xf2\xee?"), "utf-8", errors="surrogateescape"))
    config.utf8_streams()
    with pytest.raises(UnicodeDecodeError):
        sys.stdin.readline()


def test_streams_that_are_not_there_are_left_alone(monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    config.utf8_streams()


def test_booleans_refuse_as_argparse_wants_it():
    with pytest.raises(argparse.ArgumentTypeError, match="'maybe' is neither true nor false"):
        boolean("maybe")
