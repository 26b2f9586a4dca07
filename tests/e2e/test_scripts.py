"""The commands as a user types them, each in a process of its own, on a tiny model."""

import io
import json
import os
import shutil
import signal
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import helpers
import tiny
from znatok import cli
from znatok.eval.publish import END, START
from znatok.files import read_json, read_jsonl
from znatok.scripts import chat_main, train_main
from znatok.train import checkpoints

QUESTIONS = "Что такое 3д печать?\nКак рассчитать стоимость одной напечатанной детали?\n"
ARTEFACTS = (
    *("compare/answers.jsonl", "compare/summary.json", "compare/Базовая модель.txt", "compare/дообученная модель.txt"),
    *("images/training_loss.png", "images/comparison_table.png", "images/dataset_example.png", "report.html"),
)


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # else Python takes the C locale for UTF-8


def seed_command(model="Qwen/Qwen2.5-1.5B", data="data.jsonl", output="my-lora-model"):
    """Return the seed document's training command, with other names and paths only."""
    return [
        *("--model_name", model, "--data_path", data, "--output_dir", output, "--use_lora"),
        *("--lora_r", "8", "--lora_alpha", "32", "--learning_rate", "2e-4", "--num_train_epochs", "3"),
    ]


@pytest.fixture(scope="module")
def place(tiny_dir, tmp_path_factory):
    """Return a folder as a user would have it: data, questions, held-out pairs, and a trained model."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(tiny_dir, folder / "model")
    tiny.write_pairs(folder / "data.jsonl")
    tiny.write_pairs(
        folder / "heldout.jsonl", [("Что такое сопло?", "Выход горячего конца."), ("Где сушат?", "В печи.")]
    )
    (folder / "questions.txt").write_text(QUESTIONS, encoding="utf-8")
    strict = {"PYTHONWARNINGS": "error", "PYTHONOPTIMIZE": "1"}  # our code warns of nothing and rests on no assert
    done = helpers.script("train_model.py", *seed_command(model="model"), cwd=folder, **strict)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "\x1b" not in done.stderr
    assert "done: my-lora-model; talk to it with: python chatting.py --model_dir my-lora-model" in done.stderr
    return folder


def refused(done, code, *said):
    """Check that a command ended with one line of error, the right code and nothing of ours."""
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert done.stderr.rstrip("\n").endswith(lines[0])
    assert "Traceback" not in done.stderr + done.stdout
    for text in said:
        assert text in lines[0]


@pytest.fixture
def here(place, monkeypatch, capsys):
    """Return a function that runs an entry point in this process, in the user's folder: loading torch takes seconds."""
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))

    def run(entry, *words):
        capsys.readouterr()
        code = entry([str(word) for word in words])
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(words, code, out, err)

    return run


# The seed document, command by command


def test_training_leaves_a_finished_run(place):
    """Under python -O -W error, too."""
    run = place / "my-lora-model"
    assert helpers.status(run) == "finished"
    assert len(helpers.losses(run)) == 9
    assert read_json(run / "adapter_config.json")["lora_alpha"] == 32
    assert not (place / "runs").exists()


def test_the_base_and_the_tuned_model_answer_piped_questions(place):
    name = ["--model_name", "model", "--test_seed", "42", "--max_new_tokens", "8"]
    base = helpers.script("chatting.py", *name, cwd=place, stdin=QUESTIONS)
    tuned = helpers.script("chatting.py", *name, "--model_dir", "my-lora-model", cwd=place, stdin=QUESTIONS)
    for done in (base, tuned):
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout
    assert "no adapter" in base.stderr
    assert "my-lora-model" in tuned.stderr


def test_compare_writes_everything_and_publish_puts_it_into_a_repository(place, tmp_path, here):
    """Also where the locale knows only ASCII: two of the files have Russian names, and could not be written there."""
    files = ["--questions", "questions.txt", "--heldout", "heldout.jsonl", "--max_new_tokens", "8"]
    done = helpers.script("znatok", "compare", "my-lora-model", *files, "--json", cwd=place, **ASCII)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["questions"] == 4
    run = place / "my-lora-model"
    for name in ARTEFACTS:
        assert (run / name).stat().st_size > 0, name
    assert len(read_jsonl(run / "compare" / "answers.jsonl")) == 2 * (2 * 2 + 2)

    for name in ("README.md", "README.ru.md"):
        (tmp_path / name).write_text(f"# Мой знаток\n\n{START}\n{END}\n", encoding="utf-8")
    published = here(cli.main, "publish", "my-lora-model", "--repo", tmp_path)
    assert published.returncode == 0, published.stderr
    for name in ("images/training_loss.png", "images/comparison_table.png", "images/dataset_example.png"):
        assert (tmp_path / name).read_bytes() == (run / name).read_bytes()
    for name in ("Базовая модель.txt", "дообученная модель.txt"):
        assert "Что такое 3д печать?" in (tmp_path / name).read_text(encoding="utf-8")
    assert "| Held-out loss per answer token ↓ | 2 |" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert sorted(published.stdout.splitlines())[0].endswith("README.md")


def test_one_question_gets_one_answer_and_nothing_else_on_stdout(place, here):
    words = ["--model_dir", "my-lora-model", "--max_new_tokens", "4", "Что такое сопло?"]
    done = helpers.script("znatok", "ask", *words, cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stdout == here(cli.main, "ask", *words).stdout
    assert done.stdout.endswith("\n")


# What can go wrong


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        (["--data_path", "date.jsonl"], 3, ["date.jsonl"]),
        (["--data_path", "bad.jsonl"], 3, ["bad.jsonl:2"]),
        (["--data_path", "empty.jsonl"], 3, ["empty.jsonl", "no records"]),
        (["--model_name", "madel"], 4, ["madel"]),
        (["--model_name", "./madel"], 4, ["./madel: no such file or directory"]),
        (["--model_name", "nobody/nothing"], 4, ["nobody/nothing", "HF_HUB_OFFLINE"]),
        (["--learnig_rate", "1e-4"], 2, ["did you mean --learning_rate?"]),
        (["--lora_r", "0"], 2, ["--lora_r 0: expected a number in [1, 1024]"]),
        (["--output_dir", "used"], 2, ["used: not empty", "--resume", "--force"]),
        (["--output_dir", "data.jsonl"], 2, ["data.jsonl: a file stands there"]),
        (["--output_dir", "data.jsonl/run"], 5, ["data.jsonl/run: can't be written to"]),
        (["--output_dir", "new", "--resume"], 4, ["new: no such run directory"]),
        (["--output_dir", "used", "--resume"], 2, ["used: no run.toml"]),
        (["--seed", "43", "--resume"], 2, ["options.seed: 42 → 43"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else str(value),
)
def test_a_wrong_command_is_one_line_and_the_code_of_its_kind(place, here, changes, code, said):
    (place / "bad.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a", \n', encoding="utf-8")
    (place / "empty.jsonl").write_text("\n", encoding="utf-8")
    (place / "used").mkdir(exist_ok=True)
    (place / "used" / "thesis.txt").write_text("mine", encoding="utf-8")
    command = [*seed_command(model="model"), *([] if "--seed" in changes else ["--output_dir", "new"]), *changes]
    refused(here(train_main, *command), code, *said)
    assert not (place / "new").exists()
    assert helpers.status(place / "my-lora-model") == "finished"
    assert [path.name for path in (place / "used").iterdir()] == ["thesis.txt"]


def test_chatting_with_a_run_that_is_not_there_is_one_line(here):
    refused(here(chat_main, "--model_dir", "my-lora-madel"), 4, "my-lora-madel")


def test_an_adapter_on_another_base_is_refused(here, tmp_path):
    other = tiny.save_tiny(tmp_path / "other", seed=9)
    refused(here(chat_main, "--model_name", other, "--model_dir", "my-lora-model"), 4, "their weights differ")


@pytest.mark.parametrize(
    ("name", "words", "code"),
    [("train_model.py", ["--lora_r", "0"], 2), ("chatting.py", ["--model_dir", "my-lora-madel"], 4)],
)
def test_the_shell_sees_the_same_line_and_code(place, name, words, code):
    refused(helpers.script(name, *words, cwd=place), code)


# Signals


LONG = ["--dtype", "float32", "--num_train_epochs", "10", "--save_steps", "1000", "--threads", "1"]


@pytest.fixture
def training(place, tmp_path):
    """Return a function that starts a training of 30 steps and returns when the second one waits for a signal."""
    processes = []

    def start(output):
        command = [*seed_command("model", "data.jsonl", str(output)), *LONG]
        process = helpers.started("train_model.py", *command, cwd=place, **helpers.held(tmp_path / "held", rows=1))
        processes.append(process)
        metrics = Path(output) / "metrics.jsonl"
        helpers.wait_for(lambda: metrics.is_file() and read_jsonl(metrics), process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_ctrl_c_saves_and_resuming_ends_as_if_nothing_had_happened(place, here, training, tmp_path):
    run = tmp_path / "run"
    code, err = helpers.stop(training(run), signal.SIGINT)
    assert code == 130, err
    assert "Traceback" not in err
    assert helpers.status(run) == "interrupted"
    stopped = len(helpers.losses(run))
    assert 1 <= stopped < 30
    assert checkpoints.step_of(checkpoints.newest(run / "checkpoints", pytest.fail)) == stopped
    advice = [line for line in err.splitlines() if "go on with: " in line][-1].split("go on with: ")[1]
    program, *words = advice.split()
    done = helpers.script(program, *words, cwd=place)
    assert done.returncode == 0, done.stderr
    straight = here(train_main, *seed_command("model", output=tmp_path / "s"), *LONG)
    assert straight.returncode == 0, straight.stderr
    assert helpers.adapter_bytes(run) == helpers.adapter_bytes(tmp_path / "s")
    assert helpers.losses(run) == helpers.losses(tmp_path / "s")
    finished = here(cli.main, *words)
    assert finished.returncode == 0
    assert "this run is finished" in finished.stderr


def test_a_second_signal_ends_at_once_and_leaves_the_run_readable(training, tmp_path):
    run = tmp_path / "run"
    process = training(run)
    process.send_signal(signal.SIGSTOP)  # so that both arrive within one step; Python takes SIGINT first
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    code, err = helpers.stop(process, signal.SIGCONT)
    assert code == 143, err
    assert "Traceback" not in err
    assert helpers.status(run) == "interrupted"
    assert helpers.losses(run)
    assert checkpoints.complete(run / "checkpoints") == []


def test_a_killed_run_starts_again_and_its_lock_dies_with_it(here, training, tmp_path):
    run = tmp_path / "run"
    process = training(run)
    process.kill()
    process.communicate()
    assert helpers.status(run) == "running"
    done = here(cli.main, "train", "--resume", "--output_dir", run)
    assert done.returncode == 0, done.stderr
    assert "starting from the beginning" in done.stderr
    assert len(helpers.losses(run)) == 30


def test_a_second_process_on_the_same_run_is_turned_away_and_sigterm_still_saves(here, training, tmp_path):
    run = tmp_path / "run"
    process = training(run)
    process.send_signal(signal.SIGSTOP)
    try:
        for more in ("--resume", "--force"):
            command = [*seed_command("model", output=run), *LONG, more]
            refused(here(train_main, *command), 5, f"process {process.pid} is writing")
    finally:
        process.send_signal(signal.SIGCONT)
    code, err = helpers.stop(process, signal.SIGTERM)
    assert code == 143, err
    assert helpers.status(run) == "interrupted"
    assert checkpoints.step_of(checkpoints.newest(run / "checkpoints", pytest.fail)) == len(helpers.losses(run))


# The network


def test_downloads_go_through_the_proxy_that_is_set_and_say_what_it_said(tmp_path):
    """Pip and the hub's library obey the variables; of this proxy each hears a refusal."""
    asked = []

    class Refusing(BaseHTTPRequestHandler):
        def do_CONNECT(self):
            asked.append(self.path)
            self.send_error(403, "not from here")

        def log_message(self, *_arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        proxies = dict.fromkeys(["HTTPS_PROXY", "https_proxy"], f"http://127.0.0.1:{proxy.server_port}")
        nothing = dict.fromkeys(["NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy", "PIP_FIND_LINKS"], "")
        pip = {"PIP_INDEX_URL": "https://index.example/simple", "PIP_RETRIES": "0", "PIP_NO_INDEX": "0"}
        home = {"ZNATOK_HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
        model = ("model", "get", "smollm2-135m-instruct")
        done = helpers.script("znatok", *model, cwd=tmp_path, **proxies, **nothing, **pip, **home)
        proxy.shutdown()
    refused(done, 4, "smollm2-135m-instruct", "403")
    assert {"index.example:443", "huggingface.co:443"} <= set(asked)


# Pipes, terminals and locales


@pytest.mark.parametrize(
    ("changes", "encoding", "shown"),
    [
        (ASCII, "ascii", "??? 1,"),
        ({"PYTHONIOENCODING": "ascii"}, "ascii", "??? 1,"),
        ({"PYTHONIOENCODING": "cp1251"}, "cp1251", "пар 1,"),
        ({"PYTHONIOENCODING": "cp1251:strict"}, "cp1251", "пар 1,"),
        ({"LC_ALL": "C"}, "utf-8", "пар 1,"),
        ({"LC_ALL": "POSIX"}, "utf-8", "пар 1,"),
        ({"LC_ALL": "tr_TR.UTF-8"}, "utf-8", "пар 1,"),
    ],
    ids=lambda value: " ".join(map("=".join, value.items())) if isinstance(value, dict) else None,
)
def test_russian_is_shown_on_any_console_and_json_says_it_all(tmp_path, changes, encoding, shown):
    """A terminal wants «?» for what it can't show; a program that reads JSON wants the letters."""
    record = {"prompt": "Что такое сопло?", "response": "Выход.", "topic": "печать"}
    (tmp_path / "данные.jsonl").write_text(json.dumps(record), encoding="utf-8")
    command = helpers.command("znatok", "data", "check", "данные.jsonl")
    env = helpers.environment(ZNATOK_LANG="ru", **changes)
    plain, document = (
        subprocess.run([*command, *more], cwd=tmp_path, env=env, capture_output=True, timeout=60, check=True)
        for more in ([], ["--json"])
    )
    assert shown in plain.stdout.decode(encoding)
    assert json.loads(document.stdout.decode(encoding))["topics"] == {"печать": 1}


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["data", "check", "data.jsonl"]], ids=" ".join)
def test_a_reader_that_has_seen_enough_causes_no_complaint(place, words):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            helpers.command("znatok", *words),
            cwd=place,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            env=helpers.environment(PYTHONUNBUFFERED=""),
            timeout=300,
            check=False,
        )
    finally:
        os.close(writer)
    assert done.stderr == ""
    assert done.returncode in {0, 141}


def test_training_whose_messages_nobody_reads_ends_without_a_traceback(place, tmp_path):
    command = helpers.command("train_model.py", *seed_command("model", "data.jsonl", str(tmp_path / "run")))
    process = subprocess.Popen(
        command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=helpers.environment()
    )
    first = process.stdout.readline()
    process.stdout.close()
    assert "Traceback" not in first
    assert process.wait(timeout=300) in {0, 1, 141}
    assert not (tmp_path / "run").exists() or helpers.status(tmp_path / "run") in {"finished", "interrupted"}


@pytest.mark.skipif(not torch.cpu.get_capabilities().get("avx2"), reason="no AVX2 here")
def test_where_there_is_avx2_only_int8_trains_with_7_bits(tiny_dir, pairs_file, tmp_path):
    """oneDNN is told to use nothing newer; the claim that this processor has VNNI is then found to be false."""
    words = ("--model_name", tiny_dir, "--data_path", pairs_file, "--output_dir", "run", "--dtype", "int8")
    done = helpers.script(
        *("znatok", "train", *words, "--num_train_epochs", "2"),
        cwd=tmp_path,
        ONEDNN_MAX_CPU_ISA="AVX2",
        ZNATOK_HOME=str(tmp_path / "home"),
    )
    assert done.returncode == 0, done.stderr
    assert "int8: oneDNN, 7 bits" in done.stderr
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert manifest["engine"]["name"] == "int8"
    assert manifest["engine"]["guard"]["gradient_cosine"] > 0.9
    assert manifest["result"]["adapter_delta_norm"] > 0
