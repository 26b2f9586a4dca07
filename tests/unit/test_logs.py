import os
import subprocess
import sys

import pytest

from znatok import logs


@pytest.fixture(autouse=True)
def _own_console(monkeypatch):
    monkeypatch.setattr(logs, "_console", None)
    monkeypatch.setenv("TERM", "dumb")
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))  # what setup() sets is taken back after the test


def test_messages_go_to_stderr_and_leave_stdout_to_answers(capsys):
    logs.say("о работе")
    logs.warn("осторожно")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "о работе\nосторожно\n"


@pytest.mark.parametrize(
    "text", ["[bold]x[/bold]", "[/]", "data.jsonl:3: key :id: and :smile:", "a\\[b", "1.5 True 'x'"]
)
def test_markup_and_emoji_names_are_shown_as_they_are(capsys, text):
    logs.say(text)
    assert capsys.readouterr().err == text + "\n"


def test_long_lines_are_not_broken_in_a_pipe(capsys):
    logs.say("слово " * 100 + "конец")
    assert capsys.readouterr().err.count("\n") == 1


def test_quiet_is_quiet(capsys):
    logs.setup(quiet=True)
    logs.say("x")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "text", ["Привет, мир!\n\tёж", "100 °C", "10\u202fмм", "со\u00adгласный", "👨\u200d👩\u200d👧", "❤️", "日本語"]
)
def test_text_people_write_is_printable(text):
    assert logs.printable(text) == text


@pytest.mark.parametrize(
    "text", ["\x1b[2J", "\x9b2J", "a\rb", "\x07", "\u202eabc", "\u2028", "\ud800", "\x7f", "\x00", "\ue000"]
)
def test_what_could_drive_the_terminal_is_not_printable(text):
    assert "�" in logs.printable(text)
    assert not {"\x1b", "\x9b", "\r", "\x07", "\u202e", "\u2028", "\ud800"} & set(logs.printable(text))


def test_say_cannot_drive_the_terminal(capsys):
    logs.say("\x1b]0;title\x07")
    assert "\x1b" not in capsys.readouterr().err


def test_peak_memory_is_counted_in_bytes_and_never_falls():
    before = logs.peak_rss_bytes()
    block = bytearray(30 << 20)
    assert logs.peak_rss_bytes() >= before > 10 << 20
    del block
    assert logs.peak_rss_bytes() >= before


def test_importing_configures_nothing():
    code = "import os, warnings; a = dict(os.environ), list(warnings.filters); import znatok.logs, znatok.config; \
assert a == (dict(os.environ), list(warnings.filters)); import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
