"""/compare in the terminal: two answers as they come, and the vote on them."""

import io
from contextlib import contextmanager

import pytest
from rich.console import Console

from znatok import side_by_side
from znatok.chat import Terminal
from znatok.config import SampleOptions
from znatok.expert import Voice
from znatok.files import read_jsonl
from znatok.generate.engine import Answer, Stop
from znatok.runs import Run
from znatok.session import ChatSession
from znatok.side_by_side import compare

SAID = {Voice.BASE: ["Это ", "клей\x1b[2J."], Voice.TUNED: ["Это ", "пластик."]}


class Engine:
    """Says what is written above; hears what stands on the screen before each piece."""

    def __init__(self, voice, heard, fails):
        self._voice, self._heard, self._fails = voice, heard, fails
        self.last = None

    def stream(self, _request):
        for piece in SAID[self._voice]:
            self._heard()
            yield piece
            if self._fails is self._voice:
                raise KeyboardInterrupt
        self.last = Answer("".join(SAID[self._voice]), 3, Stop.END, 1.25)


class Expert:
    def __init__(self, run, heard=lambda: None, fails=None):
        self.run, self._heard, self._fails = run, heard, fails
        self.voices = (Voice.BASE, Voice.TUNED) if run else (Voice.BASE,)

    @contextmanager
    def speaking(self, voice):
        yield Engine(voice, self._heard, self._fails)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "mine").mkdir()
    return Run(tmp_path / "mine")


def session_of(expert):
    return ChatSession(expert, SampleOptions(temperature=0.5), 7, "", Voice.TUNED)


def screen(width, term="xterm", terminal=True):
    return Console(
        width=width, height=40, force_terminal=terminal, file=io.StringIO(), legacy_windows=False,
        _environ={"TERM": term},
    )  # fmt: skip


@pytest.fixture
def terminal(run, capsys):
    terminal = Terminal(session_of(Expert(run)))
    terminal._interactive = True
    return terminal


def test_each_answer_is_on_the_screen_as_it_comes(run):
    """Both were collected before a word was printed."""
    console, seen = screen(80), []
    expert = Expert(run, lambda: seen.append(console.file.getvalue()))
    compare(session_of(expert), "Что?", console=console)
    whole = "[base] Это клей�[2J.\n\n[tuned] Это пластик.\n\n"
    assert seen == ["[base] ", "[base] Это ", whole[: whole.index("Это п")], whole[: whole.index("пластик")]]
    assert console.file.getvalue() == whole


@pytest.mark.parametrize(
    ("width", "term", "terminal"), [(99, "xterm", True), (200, "dumb", True), (200, "xterm", False)]
)
def test_where_there_is_no_room_one_stands_below_the_other(run, width, term, terminal):
    console = screen(width, term, terminal)
    compare(session_of(Expert(run)), "Что?", console=console)
    assert console.file.getvalue() == "[base] Это клей�[2J.\n\n[tuned] Это пластик.\n\n"


def test_on_a_wide_terminal_they_stand_beside_each_other(run):
    console = screen(100)
    ballot = compare(session_of(Expert(run)), "Что?", console=console)
    shown = console.file.getvalue().splitlines()[-2]  # what stands there at the end; then the cursor comes back
    assert " ".join(shown.split()) == "Это клей�[2J. Это пластик."
    assert ballot.comparison.answers == ("Это клей\x1b[2J.", "Это пластик.")


def test_what_was_said_stays_when_the_second_is_stopped(run):
    console = screen(120)
    with pytest.raises(KeyboardInterrupt):
        compare(session_of(Expert(run, fails=Voice.TUNED)), "Что?", console=console)
    assert "Это клей�[2J." in console.file.getvalue().splitlines()[-2]


def test_one_voice_needs_no_columns_and_no_vote():
    console = screen(120)
    ballot = compare(session_of(Expert(None)), "Что?", blind=True, console=console)
    assert console.file.getvalue() == "[base] Это клей�[2J.\n\n"
    assert ballot.path is None
    assert not ballot.comparison.blind


def test_a_vote_is_typed_at_the_next_prompt(terminal, run, capsys):
    terminal.take("/compare Что?")
    err = capsys.readouterr().err
    assert "seed: 7; base: 3 tokens in 1.2 s; tuned: 3 tokens in 1.2 s" in err
    assert "1, 2 or = at the next prompt" in err
    terminal.take("2")
    assert "votes: tuned 1, base 0, no difference 0" in capsys.readouterr().err
    (vote,) = read_jsonl(run.path / "votes.jsonl")
    assert (vote["run"], vote["vote"], vote["blind"], vote["question"]) == ("mine", "tuned", False, "Что?")
    assert terminal.session.history == []


def test_any_other_line_is_just_the_next_one(terminal, run, capsys):
    terminal.take("/compare Что?")
    terminal.take("/seed 8")
    terminal.take("1")
    assert terminal.session.asked() == ["1"]
    assert not (run.path / "votes.jsonl").exists()


@pytest.mark.parametrize(("drawn", "order"), [(0, ["base", "tuned"]), (1, ["tuned", "base"])])
def test_blind_tells_who_was_who_after_the_vote(terminal, run, monkeypatch, capsys, drawn, order):
    monkeypatch.setattr(side_by_side.secrets, "randbits", lambda _bits: drawn)
    terminal.take("/blind")
    terminal.take("/compare Что?")
    out, err = capsys.readouterr()
    assert out.startswith("[1] ")
    assert "\n[2] " in out
    assert "base" not in out + err
    assert "tuned" not in out + err.replace("until you vote", "")
    terminal.take("1")
    err = capsys.readouterr().err
    assert f"1: {order[0]}, 2: {order[1]}" in err
    assert "3 tokens in" in err
    (vote,) = read_jsonl(run.path / "votes.jsonl")
    assert (vote["order"], vote["vote"], vote["blind"]) == (order, order[0], True)
    terminal.take("/blind")
    terminal.take("/compare Что?")
    assert capsys.readouterr().out.startswith("[base] ")


def test_there_is_no_vote_on_half_an_answer_or_through_a_pipe(run, capsys):
    terminal = Terminal(session_of(Expert(run, fails=Voice.TUNED)))
    terminal._interactive = True
    with pytest.raises(KeyboardInterrupt):
        terminal.take("/compare Что?")
    assert terminal._ballot is None
    piped = Terminal(session_of(Expert(run)))
    piped.take("/compare Что?")
    assert piped._ballot is None
    out, err = capsys.readouterr()
    assert out.endswith("[base] Это клей�[2J.\n\n[tuned] Это пластик.\n\n")
    assert err == ""
