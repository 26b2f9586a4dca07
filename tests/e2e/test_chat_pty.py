"""The conversation as people have it: at a terminal, through a pipe, in a plain locale."""

import re
import signal
import subprocess
import time
from typing import NamedTuple

import pexpect
import psutil
import pytest

import helpers
import tiny
from znatok.files import read_json

FIRST, SECOND = "Что такое PLA?", "Где печатают ABS?"
SHORT = ("--max_new_tokens", "12", "--temperature", "0.8")
PROMPT = ">>> "

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)  # pty.fork, 3.12+


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model that says many different things."""
    return tiny.save_tiny(tmp_path_factory.mktemp("chat") / "model", initializer_range=0.3)


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A tiny model that would rather say anything than stop."""
    return tiny.save_endless(tmp_path_factory.mktemp("chat") / "endless")


def words(model, *more):
    return ("--model_name", str(model), "--dtype", "float32", *more)


class Done(NamedTuple):
    """How a piped conversation ended, in bytes."""

    code: int
    out: bytes
    err: bytes


@pytest.fixture(scope="module")
def piped(model, tmp_path_factory):
    """Hold several conversations through pipes, all at once: starting takes longer than answering."""
    folder = tmp_path_factory.mktemp("piped")
    (folder / "q.txt").write_text(f"{FIRST}\n\n{SECOND}\n", encoding="utf-8")
    both, seven = f"{FIRST}\n{SECOND}\n".encode(), ("--test_seed", "7")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    conversations = {
        "C locale": (seven, both.rstrip(), {"LC_ALL": "C", "LANG": "C"}),
        "file": ((*seven, "--questions", "q.txt"), b"", {}),
        "ascii, seed 8": (("--test_seed", "8"), both, ascii_only),
        "cp1251": (seven, FIRST.encode("cp1251"), {}),
    }
    processes = {}
    for name, (flags, given, changes) in conversations.items():
        (folder / name).write_bytes(given)
        with (folder / name).open("rb") as stdin:
            processes[name] = start(model, *SHORT, *flags, stdin=stdin, cwd=folder, **changes)
    return {name: finish(process) for name, process in processes.items()}


def start(model, *more, stdin, cwd, **changes):
    environment = helpers.environment(**changes)
    environment.pop("PYTHONIOENCODING", None)
    pipe = subprocess.PIPE
    argv = helpers.command("chatting.py", *words(model, *more))
    return subprocess.Popen(argv, stdin=stdin, stdout=pipe, stderr=pipe, cwd=cwd, env=environment)


def finish(process):
    out, err = process.communicate(timeout=300)  # several start at once
    return Done(process.returncode, out, err)


def at_terminal(model, *more, cwd, term="dumb"):
    program, *rest = helpers.command("chatting.py", *words(model, *more))
    child = pexpect.spawn(program, rest, cwd=str(cwd), env=helpers.environment(TERM=term), encoding="utf-8", timeout=60)
    child.expect_exact(PROMPT)
    return child


def compute(child, seconds=0.3):
    """Read what a child says until it has computed for so long: it is at work then, and not at its prompt."""
    times, ends = psutil.Process(child.pid).cpu_times, time.monotonic() + 300
    before = times().user
    while times().user < before + seconds:
        assert time.monotonic() < ends, "it does nothing"
        child.expect(pexpect.TIMEOUT, timeout=0.05)


def ended(child):
    """Wait for the end; return the exit code."""
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus


def test_the_same_seed_says_the_same_at_the_terminal_and_in_a_pipe_in_the_c_locale(model, piped, tmp_path):
    child = at_terminal(model, *SHORT, "--test_seed", "7", cwd=tmp_path)
    said = ""
    for question in (FIRST, SECOND):
        child.sendline(question)
        child.expect_exact(PROMPT)
        answer = child.before.replace("\r\n", "\n").split(question, 1)[1].removeprefix("\n")
        said += re.sub(r"\(cut at 12 tokens; .*\)\n", "", answer)  # said to people, not into a pipe
    assert said.encode() == piped["C locale"].out
    child.sendline("/hlep")
    child.expect_exact("no such command, did you mean /help?")
    child.expect_exact(PROMPT)
    child.sendeof()
    assert ended(child) == 0


def test_ctrl_c_stops_an_answer_and_comes_back_to_the_prompt(endless, tmp_path):
    child = at_terminal(endless, "--temperature", "0", "--max_new_tokens", "30000", cwd=tmp_path)
    child.sendline(FIRST)
    child.expect(r"[\s\S]{300}")  # well into the answer
    child.sendintr()
    child.expect_exact("(stopped)")
    child.expect_exact(PROMPT)
    child.sendline("/save dialogue.json")
    child.expect_exact("saved: dialogue.json")
    child.expect_exact(PROMPT)
    question, answer = read_json(tmp_path / "dialogue.json")["messages"]
    assert question["content"] == FIRST
    assert len(answer["content"]) > 100  # kept as far as it got
    child.sendline(f"/compare {FIRST}")
    compute(child)
    child.sendintr()
    child.expect_exact("(stopped)")
    child.expect_exact(PROMPT)
    child.sendintr()
    child.expect_exact("Ctrl-C once more leaves too")
    child.expect_exact(PROMPT)
    child.sendintr()
    assert ended(child) == 130


def test_a_pasted_text_of_several_lines_is_one_message(model, tmp_path):
    """Each of its lines was a question of its own."""
    child = at_terminal(model, *SHORT, "--no_history", cwd=tmp_path, term="xterm")
    child.send("\x1b[200~line1\nline2\x1b[201~\r")
    child.expect_exact(PROMPT)
    child.sendline("/save dialogue.json")
    child.expect_exact("saved: dialogue.json")
    child.sendline("/exit")
    assert ended(child) == 0
    messages = read_json(tmp_path / "dialogue.json")["messages"]
    assert [message["content"] for message in messages][::2] == ["line1\nline2"]


def test_a_pipe_gets_answers_only_even_in_the_c_locale(piped):
    code, out, err = piped["C locale"]
    assert code == 0, err
    assert out
    assert b">>>" not in out
    assert b"no adapter" in err
    assert b"no adapter" not in out


def test_a_file_of_questions_is_answered_question_by_question(piped):
    code, out, err = piped["file"]
    assert code == 0, err
    first, second = out.decode().split(f"\n\n{SECOND}\n")
    question, answer = first.split("\n", 1)
    assert question == FIRST
    assert piped["C locale"].out.decode().startswith(answer)
    assert second.strip()


def test_a_console_that_knows_only_ascii_shows_question_marks_instead_of_failing(piped):
    """Not the C locale, which Python takes for UTF-8, but one where that is switched off."""
    code, out, err = piped["ascii, seed 8"]
    assert code == 0, err
    assert out.isascii()
    assert b"?" in out


def test_another_seed_gives_another_answer(piped):
    assert piped["ascii, seed 8"].out != piped["C locale"].out.decode().encode("ascii", "replace")


def test_questions_in_another_encoding_are_one_line_of_error(piped):
    code, out, err = piped["cp1251"]
    assert (code, out) == (3, b"")
    assert err.splitlines()[-1].startswith(b"error: standard input is not UTF-8 at byte 0")
    assert b"Traceback" not in err


def test_ctrl_c_ends_a_pipe_with_130(endless, tmp_path):
    flags = ("--temperature", "0", "--max_new_tokens", "30000")
    process = start(endless, *flags, stdin=subprocess.PIPE, cwd=tmp_path)
    process.stdin.write(f"{FIRST}\n{SECOND}\n".encode())
    process.stdin.flush()
    assert process.stdout.read(1)  # an answer has begun
    process.send_signal(signal.SIGINT)
    code, _out, err = finish(process)
    assert code == 130, err
    assert b"Traceback" not in err
