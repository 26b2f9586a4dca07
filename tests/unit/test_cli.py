import io
import json
import shutil
import subprocess
import sys

import pytest

import helpers
import tiny
from znatok import __version__, cli, logs, scripts
from znatok.errors import (
    DataError,
    GateError,
    Interrupted,
    ModelError,
    SystemFault,
    TrainingError,
    UsageError,
    ZnatokError,
    catalogue,
)
from znatok.exam.judge import Judge
from znatok.model import load
from znatok.verbs import data, talk
from znatok.verbs.verb import show

HEAVY = ("torch", "transformers", "peft", "numpy", "matplotlib", "huggingface_hub")

BASH = shutil.which("bash")

LIGHT = f"""
import sys
from znatok.cli import VERBS, main
from znatok.scripts import chat_main, train_main
calls = [(main, ["--help"]), (main, ["--version"]), (train_main, ["--help"]), (chat_main, ["--help"])]
calls += [(main, [verb, "--help"]) for verb in VERBS]
calls += [(main, ["data", "check", "--help"]), (main, ["model", "list", "--help"]), (main, ["no-such-verb"])]
for call, words in calls:
    try:
        call(words)
    except SystemExit as ended:
        assert ended.code in (0, None), (words, ended.code)
    heavy = [name for name in {HEAVY} if name in sys.modules]
    assert not heavy, (words, heavy)
"""


REFUSED = """
from pathlib import Path
from znatok.cli import main
from znatok.runs import Run, create
from znatok.scripts import run_command
codes = [
    main(["train", "--lora_r", "0"]),
    main(["train", "--data_path", "x", "--resume", "--output_dir", "run"]),
    main(["no-such-verb"]),
    main(["data", "check", "bad.jsonl", "--json"]),
    run_command(lambda: len(Run(Path("run")).read_status())),
    run_command(lambda: create("bad.jsonl/run", "m")),
]
print()
print(*codes)
"""


@pytest.fixture
def _english(monkeypatch):
    monkeypatch.setenv("ZNATOK_LANG", "en")
    yield
    monkeypatch.undo()
    catalogue.cache_clear()


@pytest.mark.usefixtures("_english")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lang", "ru", "--help"], "обучить адаптер"),
        (["--lang=ru"], "обучить адаптер"),
        (["--lang", "en", "--help"], "train an adapter"),
    ],
)
def test_a_language_is_asked_for_before_the_verb(words, said, capsys):
    assert cli.main(words) == 0
    assert said in capsys.readouterr().out


@pytest.mark.usefixtures("_english")
@pytest.mark.parametrize("words", [["--lang"], ["--lang", "de", "doctor"], ["--lang="]])
def test_a_language_there_is_not_is_refused(words, capsys):
    assert cli.main(words) == 2
    assert "expected one of ru, en" in capsys.readouterr().err


@pytest.mark.usefixtures("_english")
@pytest.mark.parametrize("words", [["--no_color"], ["--no-color", "--lang", "en"], ["--lang=en", "--no_color"], []])
def test_colours_are_left_out_where_they_are_not_wanted(words, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "")  # taken back after the test
    monkeypatch.setattr(logs, "_console", None)
    assert cli.main([*words, "tell"]) == 2
    said = capsys.readouterr().err
    assert "tell: no such command" in said
    assert ("\x1b[31m" in said) is not bool(words)
    assert cli.main([*words, "--help"]) == 0
    assert "znatok --no_color VERB" in capsys.readouterr().out


def test_help_of_every_verb_starts_without_the_heavy_libraries():
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], capture_output=True, text=True, env=helpers.environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    for verb in cli.VERBS:
        assert f"usage: znatok {verb}" in done.stdout
    assert "usage: train_model.py" in done.stdout
    assert "usage: chatting.py" in done.stdout


def test_checking_data_needs_no_torch(tmp_path):
    data = tiny.write_pairs(tmp_path / "pairs.jsonl")
    call = f"main(['data', 'check', {str(data)!r}])"
    code = f"import sys; from znatok.cli import main; {call}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=helpers.environment(), check=True
    )
    assert done.stdout.splitlines()[-1] == "False"


def test_the_list_of_verbs_is_the_first_thing_said(capsys):
    for words in ([], ["--help"], ["-h"], ["help"]):
        assert cli.main(words) == 0
        text = capsys.readouterr().out
        assert all(f"  znatok {verb}" in text for verb in cli.VERBS)


def test_the_version_is_said(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"znatok {__version__}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainn"], "trainn: no such command, did you mean train? (see znatok --help)"),
        (["frobnicate"], "frobnicate: no such command (see znatok --help)"),
        (["train", "--lora_rr", "4"], "did you mean --lora_r? (see znatok train --help)"),
        (["train", "--lora_r", "eight"], "--lora_r"),
        (["train", "--lora_r", "0"], "--lora_r 0: expected a number in [1, 1024]"),
        (["train", "--lora_dropout", "1.5"], "--lora_dropout 1.5: expected a number in [0, 0.9]"),
        (["train", "--learning_rate", "nan"], "--learning_rate nan: expected a number in"),
        (["train", "--use_lora", "maybe"], "neither true nor false"),
        (["train", "--dtype", "float16"], "float16"),
        (["train", "--data_path", "d\udcff.jsonl"], r"--data_path 'd\udcff.jsonl': not UTF-8; rename the file"),
        (["chat", "--model_dir", "x", "--model_name", "\udcd0"], r"--model_name '\udcd0': not UTF-8"),
        (["train", "--resume"], "--resume needs --output_dir"),
        (["train", "--use_lora=false"], "--use_lora false"),
        (["data"], "verb"),
        (["chat", "--test_seed", "-1"], "--test_seed -1: expected a whole number"),
        (["compare", "--asked", "-1"], "--asked -1: expected a whole number"),
    ],
)
def test_wrong_words_end_with_code_2_and_a_hint(words, said, capsys):
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_resuming_and_forcing_contradict_each_other(tiny_dir, pairs_file, tmp_path, capsys):
    run = helpers.trained(tiny_dir, pairs_file, tmp_path / "run", max_steps=2)
    assert cli.main(["train", "--resume", "--force", "--output_dir", str(run.path)]) == 2
    assert "contradict each other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["data", "check", "missing.jsonl"], 3, "missing.jsonl"),
        (["train", "--data_path", "missing.jsonl", "--model_name", "x/y"], 3, "missing.jsonl"),
        (["train", "--resume", "--output_dir", "nowhere"], 4, "nowhere: no such run directory"),
        (["chat", "--model_dir", "nowhere"], 4, "nowhere: no such run directory"),
        (["compare"], 4, "no run yet"),
        (["publish", "nowhere"], 4, "nowhere"),
        (["ask"], 2, "no question"),
    ],
)
def test_what_is_not_there_is_named_with_the_code_of_its_kind(words, code, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", None)
    assert cli.main(words) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ZnatokError("x"), 1),
        (TrainingError("x"), 1),
        (UsageError("x"), 2),
        (DataError("x"), 3),
        (ModelError("x"), 4),
        (SystemFault("x"), 5),
        (GateError("x"), 6),
        (Interrupted("x"), 130),
        (Interrupted("x", exit_code=143), 143),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_kind_of_error_has_its_exit_code(error, code, capsys):
    def fail():
        raise error

    assert scripts.run_command(fail) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_memory_that_runs_out_under_a_verb_is_one_line(capsys):
    """It was a traceback without advice."""
    assert scripts.run_command(lambda: len(bytearray(1 << 60))) == 5
    err = capsys.readouterr().err
    assert err.startswith("error: memory ran out (MemoryError): take a smaller model")
    assert err.count("\n") == 1


@pytest.mark.parametrize("options", [["-O"], ["-OO"], ["-W", "error"]], ids=" ".join)
def test_what_is_checked_stays_checked_by_an_optimised_python_and_nothing_warns(options, tmp_path):
    """A check by assert would be gone under -O; loading and training are run so in test_scripts."""
    (tmp_path / "bad.jsonl").write_text('{"prompt": 1, "response": "b"}\n', encoding="utf-8")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.toml").write_text("[model]\nmodel_name = 5\n", encoding="utf-8")
    (tmp_path / "run" / "status.json").write_text("[1]", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, *options, "-c", REFUSED], cwd=tmp_path, env=helpers.environment(), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "2 2 2 3 3 5", done.stderr
    assert done.stderr.count("error: ") == 5  # the records are listed on stdout
    assert "Warning" not in done.stderr


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        scripts.run_command(lambda: 1 // 0)


# --json


def document(words, capsys, code=0):
    """Run a verb; return the one JSON document on its stdout."""
    assert cli.main(words) == code
    return json.loads(capsys.readouterr().out)


def test_data_check_prints_one_json_document(pairs_file, tmp_path, capsys):
    assert document(["data", "check", str(pairs_file), "--json"], capsys)["pairs"] == 10
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a"}\n', encoding="utf-8")
    assert document(["data", "check", str(bad), "--json"], capsys, code=3)["problems"]


def test_model_list_prints_one_json_document(capsys):
    assert "qwen2.5-coder-1.5b-instruct" in {row["name"] for row in document(["model", "list", "--json"], capsys)}


def test_doctor_prints_one_json_document(capsys):
    found = document(["doctor", "--json"], capsys)
    assert found["znatok"] == __version__
    assert found["packages"]["torch"]


def test_doctor_says_what_a_slow_processor_means_for_training(capsys, monkeypatch):
    monkeypatch.setattr(load, "machine_capabilities", lambda: {"avx2": True})
    found = document(["doctor", "--json"], capsys)
    assert found["number_format"] == "float32"
    assert found["number_format_reason"] == "float32: this machine has no native bfloat16"
    assert found["python"].startswith("3.")


def test_plan_prints_one_json_document_and_writes_nothing(tiny_dir, pairs_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["plan", "--model_name", str(tiny_dir), "--data_path", str(pairs_file), "--threads", "1", "--json"]
    words += ["--recipe", "seed"]
    before = sorted(tmp_path.rglob("*"))
    found = document(words, capsys)
    assert found["steps"] == 9
    assert found["seconds"] > 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_prints_the_plan_and_writes_nothing(tiny_dir, pairs_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    words = ["train", "--model_name", str(tiny_dir), "--data_path", str(pairs_file), "--threads", "1", "--dry-run"]
    assert cli.main([*words, "--recipe", "seed"]) == 0
    assert "steps: 9 in 3 epochs" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_one_example_is_shown_with_its_trained_tokens(tiny_dir, pairs_file, capsys):
    words = ["data", "show", str(pairs_file), "--row", "2", "--model_name", str(tiny_dir)]
    assert cli.main(words) == 0
    shown = capsys.readouterr()
    assert "<|im_start|>user\nЧто такое ABS?<|im_end|>" in shown.out
    assert "format chatml" in shown.err
    assert cli.main([*words[:4], "11", *words[5:]]) == 2
    assert "--row 11" in capsys.readouterr().err


# A result as one JSON document


def test_every_verb_that_ends_with_a_result_has_json():
    lasting = {"chat", "serve", "web", "completion"}  # they talk, or write a script
    parsers = {name: verb.parser() for name, verb in cli.VERBS.items() if name not in lasting}
    leaves = {name: parser for name, parser in parsers.items() if name not in {"data", "model"}}
    for name in ("data", "model"):
        (parts,) = (action.choices for action in parsers[name]._actions if isinstance(action.choices, dict))
        leaves |= {f"{name} {part}": parser for part, parser in parts.items()}
    assert len(leaves) == 20
    assert [name for name, parser in leaves.items() if "--json" not in parser._option_string_actions] == []


def test_training_ends_with_one_json_document_that_the_next_verbs_can_be_fed_with(
    tiny_dir, pairs_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    model = ["--model_name", str(tiny_dir), "--threads", "1", "--dtype", "float32"]
    words = [*model, "--data_path", str(pairs_file), "--recipe", "seed", "--json"]
    assert document(["train", *words, "--dry_run"], capsys)["run"] is None
    made = document(["train", *words, "--output_dir", "expert", "--num_train_epochs", "1"], capsys)
    assert (made["run"], made["plan"]["steps"], made["result"]["steps"]) == ("expert", 3, 3)
    monkeypatch.setattr("sys.stdin", None)
    question = ["ask", "Что такое PLA?", "--model_dir", made["run"], "--max_new_tokens", "5", "--engine", "torch"]
    said = document([*question, "--json"], capsys)
    assert (said["question"], said["voice"], said["seed"], said["sources"]) == ("Что такое PLA?", "tuned", 42, "")
    assert 1 <= said["tokens"] <= 5
    assert said["stop"] in {"end", "length"}
    assert cli.main(question) == 0
    assert capsys.readouterr().out.strip() == logs.printable(said["answer"])
    cost = document(["ask", "Сколько стоит печать?", "--model_dir", "expert", "--engine", "torch", "--json"], capsys)
    assert (cost["tokens"], cost["stop"]) == (0, None)  # computed, not generated


def test_parts_of_a_file_are_one_json_document(pairs_file, tmp_path, tiny_dir, capsys):
    parts = [str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl")]
    made = document(["data", "split", str(pairs_file), "--share", "0.2", "--out", *parts, "--json"], capsys)
    assert list(made["pairs"]) == parts
    assert sum(made["pairs"].values()) == 10
    kept = document(["data", "dedupe", str(pairs_file), "--out", parts[0], "--json"], capsys)
    assert kept["pairs"][parts[0]] + len(kept["left_out"]) == 10
    shown = document(["data", "show", str(pairs_file), "--model_name", str(tiny_dir), "--json"], capsys)
    assert shown["format"] == "chatml"
    assert len(shown["ids"]) == len(shown["trained"])
    assert 0 < sum(shown["trained"]) < len(shown["ids"])


def test_a_part_is_not_written_over_another_or_over_its_source(pairs_file, tmp_path, capsys):
    whole, here = pairs_file.read_bytes(), str(tmp_path / "x.jsonl")
    assert cli.main(["data", "split", str(pairs_file), "--out", here, here]) == 2
    assert "named for two outputs" in capsys.readouterr().err
    facts = tmp_path / "facts.jsonl"
    facts.write_text("", encoding="utf-8")
    expand = ["data", "expand", "--facts", str(facts), "--wordings", str(pairs_file)]
    for words in (
        ["data", "split", str(pairs_file), "--out", here, str(pairs_file)],
        ["data", "dedupe", str(pairs_file), "--out", str(pairs_file)],
        [*expand, "--out", str(pairs_file)],
        [*expand, "--out", here, "--dev", str(facts)],
    ):
        assert cli.main(words) == 2
        assert "would replace the file it is made from" in capsys.readouterr().err
    assert pairs_file.read_bytes() == whole
    assert not (tmp_path / "x.jsonl").exists()


def test_a_place_that_can_not_be_written_is_said(pairs_file, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    assert cli.main(["data", "dedupe", str(pairs_file), "--out", str(tmp_path / "folder")]) == 5
    assert "can't be written" in capsys.readouterr().err


# Completion


@pytest.fixture(scope="module")
def completed(tmp_path_factory):
    """Return what bash offers after some words, in a folder with a run and a data file."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "runs").mkdir()
    (folder / "pairs.jsonl").write_text("")
    script = helpers.script("znatok", "completion", "bash", cwd=folder).stdout
    (folder / "znatok.bash").write_text(script)

    def offered(*words):
        ask = 'source znatok.bash; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_znatok; echo "${COMPREPLY[@]}"'
        done = subprocess.run(
            [BASH, "-c", ask, "bash", "znatok", *words], cwd=folder, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    return offered


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["tr"], {"train"}),
        (["data", "sp"], {"split"}),
        (["train", "--lora_"], {"--lora_r", "--lora_alpha", "--lora_dropout"}),
        (["export", "--to", ""], {"merged", "gguf", "lora-gguf", "ollama", "card", "hub"}),
        (["train", "--model_name", "qwen2.5-coder-0"], {"qwen2.5-coder-0.5b-instruct"}),
        (["train", "--data_path", "p"], {"pairs.jsonl"}),
        (["data", "check", "p"], {"pairs.jsonl"}),
        (["compare", "r"], {"runs"}),
        (["chat", "--model_dir", ""], {"runs"}),  # a directory, so not the file
    ],
)
def test_bash_offers_what_may_stand_there(completed, words, wanted):
    assert set(completed(*words)) == wanted


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_can_read_their_script(shell, tmp_path):
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"no {shell} on this machine")
    script = tmp_path / "znatok"
    script.write_text(helpers.script("znatok", "completion", shell, cwd=tmp_path).stdout)
    assert "lora-gguf" in script.read_text()
    subprocess.run([program, "-n", script], check=True)


# Libraries that are not there


@pytest.mark.parametrize(
    ("library", "ask", "extra"),
    [
        ("gradio", lambda: cli.main(["web"]), "web"),
        ("uvicorn", lambda: cli.main(["web"]), "web"),
        ("uvicorn", lambda: cli.main(["serve", "--model_name", "x"]), "serve"),
        ("fastapi", lambda: cli.main(["serve", "--model_name", "x"]), "serve"),
        ("prometheus_client", lambda: cli.main(["serve", "--model_name", "x"]), "serve"),
        ("optuna", lambda: cli.main(["search", "--val_path", "data.jsonl", "--data_path", "data.jsonl"]), "search"),
        ("openai", lambda: scripts.run_command(lambda: Judge("http://x", "m", None)), "judge"),
    ],
)
def test_an_extra_that_is_not_installed_is_named_with_its_command(library, ask, extra, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny.write_pairs(tmp_path / "data.jsonl")
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)  # what Python itself does to a module that must not be had
    assert ask() == 5
    assert f"pip install 'znatok[{extra}]'" in capsys.readouterr().err


# Streams that are not there


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_a_closed_stream_is_no_crash(tmp_path, closed):
    command = f'"{sys.executable}" -m znatok model list {closed}'
    done = subprocess.run(
        [BASH, "-c", command], cwd=tmp_path, env=helpers.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stderr == ""


# The newest run


def test_chat_and_ask_take_the_newest_run_unless_told_otherwise(tmp_path, monkeypatch):
    def speaker(*words):
        return talk.with_latest(talk.ask_flags().parse_args(words), list(words)).model_dir

    monkeypatch.chdir(tmp_path)
    assert speaker("Вопрос?") is None
    (tmp_path / "runs" / "latest").mkdir(parents=True)
    assert speaker("Вопрос?") == "runs/latest"
    assert [speaker(*stated) for stated in (["--model_dir", "x"], ["--model-dir=x"])] == ["x", "x"]
    assert [speaker(*stated) for stated in (["--model_name", "x"], ["--model-name=x"])] == [None, None]


# Going on with a run


def test_resuming_takes_what_is_not_stated_from_the_run(tmp_path):
    made = helpers.settings("model", "pairs.jsonl", tmp_path, lora={"lora_r": 4}, seed=7, threads=3)
    (tmp_path / "run.toml").write_text(made.to_toml(), encoding="utf-8")

    def resumed(*words):
        given = ["--resume", "--output_dir", str(tmp_path), *words]
        return scripts.train_config(scripts.train_parser("znatok train").parse_args(given), given)

    plain = resumed()
    assert (plain.model, plain.data, plain.lora) == (made.model, made.data, made.lora)
    assert (plain.train.seed, plain.train.threads, plain.train.learning_rate) == (7, 3, 5e-3)
    assert (plain.train.resume, plain.train.output_dir) == (True, str(tmp_path))
    stated = resumed("--seed=8", "--lora-r", "16", "--threads", "1")
    assert (stated.train.seed, stated.lora.lora_r, stated.train.threads) == (8, 16, 1)
    assert stated.train.learning_rate == 5e-3


def test_resuming_where_no_run_was_started_is_refused(tmp_path, capsys):
    assert cli.main(["train", "--resume", "--output_dir", str(tmp_path)]) == 2
    assert "no run.toml, so no run was started there; leave --resume out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "stored", [b"x = " + b"[" * 100_000, b"\xff\xfe", b"[model", None], ids=["deep", "UTF-16", "cut", "folder"]
)
def test_options_of_a_run_that_can_not_be_read_are_one_line(stored, tmp_path, capsys):
    path = tmp_path / "run.toml"
    path.mkdir() if stored is None else path.write_bytes(stored)
    assert cli.main(["train", "--resume", "--output_dir", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "run.toml" in err
    assert err.count("\n") == 1


def test_json_cannot_drive_the_terminal_and_says_the_same(capsys):
    """`znatok ask --json` printed U+009B and U+202E of an answer as they were."""
    value = {"answer": "Сопло 🙂 100 °C\x1b[2J\x9b31m\u202e\u2028\U000e0001\x7f\n"}
    show(value, [], as_json=True)
    out = capsys.readouterr().out
    assert logs.printable(out) == out
    assert "Сопло 🙂 100 °C\\u001b[2J\\u009b31m\\u202e" in out
    assert json.loads(out) == value


def test_a_stream_that_knows_no_cyrillic_gets_json_that_says_it_all(monkeypatch):
    """Every letter was a question mark: valid, and useless."""
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
    monkeypatch.setattr("sys.stdout", console)
    show({"answer": "Сопло"}, [], as_json=True)
    console.flush()
    assert json.loads(console.buffer.getvalue()) == {"answer": "Сопло"}


@pytest.mark.parametrize("flag", ["--data_path", "--val_share", "--skip_bad"])
def test_data_show_refuses_flags_it_would_not_obey(flag):
    with pytest.raises(UsageError, match="unrecognized"):
        data.data_flags().parse_args(["show", flag, "0.1"])
