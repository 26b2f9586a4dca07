import io
import json
import os
import sys

import pytest
import torch

import tiny
from znatok.chat import Terminal, _Goodbye, answer_file, ask
from znatok.config import LoraOptions, ModelOptions, SampleOptions
from znatok.errors import DataError, ModelError, SystemFault, UsageError
from znatok.expert import Voice, open_expert
from znatok.files import write_json
from znatok.generate.torch_engine import TorchEngine
from znatok.keyboard import typed_lines
from znatok.logs import printable
from znatok.model.adapters import inject, save_adapter
from znatok.retrieve import Knowledge, Passage
from znatok.runs import Run
from znatok.session import ChatSession
from znatok.tokens.chat import Message, Role


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base and a run whose adapter changes what it says."""
    folder = tmp_path_factory.mktemp("expert")
    base = tiny.save_tiny(folder / "base", initializer_range=0.3)
    tuned = inject(tiny.tiny_model(initializer_range=0.3), LoraOptions(), seed=1)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(len(name)))
    save_adapter(tuned, folder / "run", "base")
    write_json(folder / "run" / "manifest.json", {"base": {"name": str(base)}, "chat": {"system": "Ты знаток."}})
    return folder


@pytest.fixture(scope="module")
def expert(folder):
    return open_expert(ModelOptions(model_name="", dtype="float32"), Run(folder / "run"), "")


@pytest.fixture
def session(expert):
    return ChatSession(expert, SampleOptions(temperature=0.8, max_new_tokens=12), 42, expert.system, Voice.TUNED)


def spoken(session, question):
    """Return what the session's voice answers, whatever the dialogue did with it."""
    with session.expert.speaking(session.voice) as engine:
        return engine.answers([session.request(question)])[0].text


@pytest.fixture
def terminal(session):
    terminal = Terminal(session)
    terminal._interactive = True  # as if both ends were a terminal
    return terminal


def lines(monkeypatch, *given):
    """Type lines, then Ctrl-D; an exception class is what happens instead of a line."""
    waiting = iter(given)

    def typed(_prompt=""):
        line = next(waiting, EOFError)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", typed)


# Answers and the dialogue


def test_an_answer_is_printed_and_the_exchange_remembered(terminal, session, capsys):
    terminal.take("Что такое PLA?")
    out = capsys.readouterr().out
    question, answer = session.history
    assert question == Message(Role.USER, "Что такое PLA?")
    assert answer.role is Role.ASSISTANT
    assert out.strip() == printable(answer.text) != ""
    assert out.endswith("\n")


def test_the_next_question_is_asked_in_the_light_of_the_dialogue(session):
    list(session.reply("Что такое PLA?"))
    request = session.request("А ABS?")
    assert [m.role for m in request.messages] == ["system", "user", "assistant", "user"]
    assert request.messages[0].text == "Ты знаток."
    in_dialogue = "".join(session.reply("А ABS?"))
    session.history.clear()
    assert in_dialogue != "".join(session.reply("А ABS?"))


def test_the_same_seed_gives_the_same_answer(session):
    first = "".join(session.reply("Что такое PLA?"))
    session.history.clear()
    assert "".join(session.reply("Что такое PLA?")) == first
    session.history.clear()
    session.seed = 43
    assert "".join(session.reply("Что такое PLA?")) != first


class Interrupting(io.StringIO):
    """A screen at which the reader loses patience after some pieces."""

    def __init__(self, pieces):
        super().__init__()
        self.left = pieces

    def write(self, text):
        if self.left == 0:
            self.left = -1
            raise KeyboardInterrupt
        self.left -= 1
        return super().write(text)


def test_an_interrupted_answer_is_kept_as_far_as_it_got(terminal, session, monkeypatch, capsys):
    whole = spoken(session, "Что такое PLA?")
    monkeypatch.setattr(sys, "stdout", Interrupting(6))
    terminal.take("Что такое PLA?")
    assert "(stopped)" in capsys.readouterr().err
    question, answer = session.history
    assert question.text == "Что такое PLA?"
    assert whole.startswith(answer.text)
    assert 0 < len(answer.text) < len(whole)
    monkeypatch.undo()
    terminal.take("А дальше?")
    assert len(session.history) == 4


def test_a_pipe_is_ended_by_an_interrupt(terminal, monkeypatch):
    terminal._interactive = False
    monkeypatch.setattr(sys, "stdout", Interrupting(2))
    with pytest.raises(KeyboardInterrupt):
        terminal.take("Что такое PLA?")


def test_a_comparison_can_be_interrupted_too(terminal, session, monkeypatch, capsys):
    lines(monkeypatch, "/compare Что такое PLA?", "/seed 5")
    monkeypatch.setattr(sys, "stdout", Interrupting(0))
    assert terminal.run() == 0
    assert "(stopped)" in capsys.readouterr().err
    assert session.seed == 5
    assert session.history == []


def test_control_characters_of_an_answer_do_not_reach_the_terminal(terminal, session, capsys, monkeypatch):
    monkeypatch.setattr(ChatSession, "reply", lambda *_: (piece for piece in ["a\x1b[2Jb", "\r\x07"]))
    terminal.take("Что?")
    assert capsys.readouterr().out == "a�[2Jb��\n"


# The loop


def test_a_conversation_ends_with_ctrl_d_and_survives_errors(terminal, session, monkeypatch, capsys):
    lines(monkeypatch, "", "  ", "/sed 3", "/seed 7", "/seed x", "Что такое PLA? " * 200, "  Что?  ")
    assert terminal.run() == 0
    err = capsys.readouterr().err
    assert "/sed: no such command, did you mean /seed?" in err
    assert "/seed x: expected a whole number" in err
    assert "shorten the question or /clear" in err
    assert session.seed == 7
    assert session.history[0] == Message(Role.USER, "Что?")


def test_one_ctrl_c_at_the_prompt_warns_and_two_in_a_row_leave(terminal, monkeypatch, capsys):
    lines(monkeypatch, KeyboardInterrupt, "/seed 1", KeyboardInterrupt, "", KeyboardInterrupt, KeyboardInterrupt)
    assert terminal.run() == 130
    assert capsys.readouterr().err.count("Ctrl-C once more leaves too") == 3


def test_bytes_that_are_no_text_do_not_end_a_conversation(terminal, session, monkeypatch, capsys):
    lines(monkeypatch, UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "/seed 9")
    assert terminal.run() == 0
    assert "not UTF-8 at byte 0" in capsys.readouterr().err
    assert session.seed == 9


@pytest.mark.parametrize("word", ["exit", "quit", "выход", "Выход", "/exit", "/EXIT", "/quit", "/bye"])
def test_many_words_say_goodbye(terminal, session, word):
    with pytest.raises(_Goodbye) as caught:
        terminal.take(word)
    assert caught.value.exit_code == 0
    assert session.history == []


def test_a_pipe_ends_with_the_first_error(session, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Что такое PLA?\n\n/seed x\nЧто такое ABS?\n"))
    terminal = Terminal(session)
    with pytest.raises(UsageError, match="/seed x"):
        terminal.run()
    assert len(session.history) == 2
    out, err = capsys.readouterr()
    assert out.strip() == printable(session.history[1].text)
    assert err == ""


def test_a_pipe_is_answered_line_by_line_and_nothing_else_is_printed(session, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Что такое PLA?\nА ABS?"))
    assert Terminal(session).run() == 0
    out, err = capsys.readouterr()
    said = [printable(message.text) for message in session.history if message.role is Role.ASSISTANT]
    assert " ".join(out.split()) == " ".join(" ".join(said).split())
    assert err == ""


# Commands: none of them reaches the model


@pytest.fixture
def obey(terminal, session, capsys, monkeypatch):
    """Obey a command without a model; return what was printed to stdout and stderr."""

    def function(line):
        with monkeypatch.context() as patch:
            patch.setattr(TorchEngine, "tokens", lambda *_: pytest.fail("the model was asked"))
            terminal.take(line)
        return capsys.readouterr()

    return function


def test_help_lists_every_command(obey, terminal):
    out, err = obey("/help")
    assert out == ""
    assert [line.split()[0] for line in err.splitlines()] == list(terminal._commands)
    assert obey("/?").err == err


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("/hlep", ", did you mean /help?"),
        ("/cleaar", ", did you mean /clear?"),
        ("/Compar x", ", did you mean /compare?"),
        ("/zzz", ""),
        ("/", ""),
        ("/etc/passwd что это?", ""),
    ],
)
def test_a_mistyped_command_is_corrected_and_never_asked(terminal, session, typed, hint):
    with pytest.raises(UsageError) as caught:
        terminal.take(typed)
    assert str(caught.value) == f"{typed.split()[0]}: no such command{hint} (/help lists them)"
    assert session.history == []


def test_seed(obey, session):
    obey("/seed 7")
    assert session.seed == 7
    obey("/SEED  123456789012345678 ")
    assert session.seed == 123456789012345678


@pytest.mark.parametrize("value", ["", "-1", "1.5", "x", "9" * 19, "9" * 5000, "²"])
def test_a_wrong_seed_is_refused_before_it_meets_the_generator(terminal, session, value):
    with pytest.raises(UsageError, match=r"/seed .*: expected a whole number"):
        terminal.take(f"/seed {value}")
    assert session.seed == 42


def test_the_largest_seed_can_be_used(terminal, session):
    terminal.take("/seed " + "9" * 18)
    terminal.take("Что?")
    assert session.history


def test_system_begins_a_new_dialogue(obey, session):
    session.history.append(Message(Role.USER, "x"))
    obey("/system Отвечай стихами.")
    assert session.system == "Отвечай стихами."
    assert session.history == []
    obey("/system")
    assert session.request("Что?").messages == (Message(Role.USER, "Что?"),)


def test_set(obey, session):
    for line in ("/set temperature 0", "/set top_k 5", "/set max_new_tokens 3", "/set  top_p 1e-1 "):
        obey(line)
    assert session.sample == SampleOptions(temperature=0, top_k=5, max_new_tokens=3, top_p=0.1)
    obey("/set temperature 0.25")
    assert session.sample.temperature == 0.25


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set", "/set : no such option"),
        ("/set temperatuer 1", "/set temperatuer: no such option"),
        ("/set __class__ 1", "/set __class__: no such option"),
        ("/set temperature", "/set temperature : expected a number"),
        ("/set temperature warm", "/set temperature warm: expected a number"),
        ("/set top_k 1.5", "/set top_k 1.5: expected a number"),
        ("/set temperature 9", "--temperature 9.0: expected a number in [0, 5]"),
        ("/set temperature nan", "--temperature nan: expected a number in [0, 5]"),
    ],
)
def test_a_wrong_option_is_refused_and_changes_nothing(terminal, session, line, message):
    before = session.sample
    with pytest.raises(UsageError) as caught:
        terminal.take(line)
    assert message in str(caught.value)
    assert session.sample == before


def test_clear_forgets_the_dialogue(obey, session):
    session.history.append(Message(Role.USER, "x"))
    assert "new dialogue" in obey("/clear").err
    assert session.history == []


def test_save_writes_the_dialogue(obey, session, tmp_path):
    session.history += [Message(Role.USER, "Что?"), Message(Role.ASSISTANT, "То.")]
    path = tmp_path / "мой диалог.json"
    assert str(path) in obey(f"/save {path}").err
    saved = json.loads(path.read_text(encoding="utf-8"))
    turns = [{"role": "user", "content": "Что?"}, {"role": "assistant", "content": "То."}]
    assert saved == {"system": "Ты знаток.", "seed": 42, "voice": "tuned", "messages": turns}


def test_a_dialogue_that_cannot_be_saved_is_an_error_of_ours(terminal, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemFault, match="can't be written"):
        terminal.take(f"/save {tmp_path}/file/x.json")
    with pytest.raises(SystemFault, match="can't be written"):
        terminal.take(f"/save {tmp_path}")
    with pytest.raises(UsageError, match="/save: name a file"):
        terminal.take("/save")


def test_base_and_tuned_change_who_speaks(obey, session):
    tuned = spoken(session, "Что?")
    assert "now speaking: base" in obey("/base").err
    base = "".join(session.reply("Что?")).strip()
    session.history.clear()
    obey("/tuned")
    assert "".join(session.reply("Что?")).strip() == tuned != base


def test_compare_asks_both_and_leaves_the_dialogue_alone(terminal, session, capsys):
    with pytest.raises(UsageError, match="ask something first"):
        terminal.take("/compare")
    terminal.take("/compare Что такое PLA?")
    out = capsys.readouterr().out
    both = {}
    for session.voice in Voice:
        both[session.voice] = spoken(session, "Что такое PLA?")
    assert both[Voice.BASE] != both[Voice.TUNED]
    assert out == "".join(f"[{voice}] {printable(text)}\n\n" for voice, text in both.items())
    assert session.history == []
    terminal.take("/compare")
    assert capsys.readouterr().out == out  # the last question once more


def test_compare_asks_the_last_question_again_without_its_answer(terminal, session, capsys):
    """Both were shown the answer that the tuned one had given before."""
    terminal.take("Что такое PLA?")
    terminal.take("А ABS?")
    said, answer = list(session.history), session.history[-1].text
    capsys.readouterr()
    terminal.take("/compare")
    out = capsys.readouterr().out
    assert f"[tuned] {printable(answer)}\n" in out
    terminal.take("/compare")
    assert capsys.readouterr().out == out
    assert session.history == said
    terminal.take("/compare А PETG?")  # another question is asked in the light of the whole dialogue
    assert f"[tuned] {printable(spoken(session, 'А PETG?'))}\n" in capsys.readouterr().out


def test_a_dialogue_that_grew_too_long_is_refused_and_clear_makes_room(terminal, session):
    def talk_on():
        for turn in range(40):
            terminal.take(f"Что такое PLA и чем он лучше других пластиков? {turn}")

    with pytest.raises(UsageError, match="and the model sees 512: shorten the question or /clear the dialogue"):
        talk_on()
    assert len(session.history) > 4
    assert session.history[0].text.endswith("? 0")  # what was said before is all there
    terminal.take("/clear")
    terminal.take("Что?")
    assert len(session.history) == 2


def test_a_hundred_thousand_characters_are_refused_with_their_tokens(terminal, session):
    with pytest.raises(UsageError, match=r"the dialogue takes \d{5,} tokens and the model sees 512"):
        terminal.take("q" * 100_000)
    assert session.history == []


def test_another_run_brings_its_system_message_unless_it_is_the_users_own(folder, capsys):
    run = Run(folder / "run")
    expert = open_expert(ModelOptions(model_name=str(folder / "base"), dtype="float32"), None, "Общее.")
    session = ChatSession(expert, SampleOptions(max_new_tokens=2), 42, expert.system, Voice.BASE)
    terminal = Terminal(session)
    terminal.take(f"/adapter {run.path}")
    assert (session.system, session.voice) == ("Ты знаток.", Voice.TUNED)
    terminal.take("/system Иначе.")
    terminal.take(f"/adapter {run.path}")
    assert session.system == "Иначе."


def test_without_an_adapter_only_the_base_speaks(tiny_dir, capsys):
    expert = open_expert(ModelOptions(model_name=str(tiny_dir), dtype="float32"), None, "")
    session = ChatSession(expert, SampleOptions(max_new_tokens=2), 42, "", Voice.BASE)
    terminal = Terminal(session)
    with pytest.raises(UsageError, match="no adapter is loaded"):
        terminal.take("/tuned")
    assert session.voice is Voice.BASE
    capsys.readouterr()
    terminal.take("/compare Что?")
    assert capsys.readouterr().out.startswith("[base] ")


# One question, and a file of them


def test_ask_answers_one_question(session, capsys):
    ask(session, "Что такое PLA?")
    assert capsys.readouterr().out.strip() == printable(session.history[1].text)
    with pytest.raises(DataError, match="the question is empty"):
        ask(session, " \n")


def test_each_question_of_a_file_is_a_dialogue_of_its_own(session, tmp_path, capsys):
    path = tmp_path / "q.txt"
    path.write_text("Что такое PLA?\n\nЧто\x1b[2J такое ABS?\n", encoding="utf-8")
    wanted = printable(spoken(session, "Что такое PLA?"))
    answer_file(session, str(path))
    out = capsys.readouterr().out
    assert out.startswith(f"Что такое PLA?\n{wanted}\n\nЧто�[2J такое ABS?\n")
    assert session.history == []


@pytest.fixture
def informed(session):
    """A session with two passages to look answers up in."""
    session.knowledge = Knowledge([Passage("Кайма держит углы.", "a.md:1"), Passage("Гироид прочен.", "a.md:2")])
    return session


def test_each_answer_to_a_file_of_questions_names_its_sources(informed, tmp_path, capsys):
    """Only «ask» and the dialogue did."""
    path = tmp_path / "q.txt"
    path.write_text("Зачем кайма?\nГде живёт жираф?\nПрочен ли гироид?\n", encoding="utf-8")
    answer_file(informed, str(path))
    assert capsys.readouterr().err == "sources: [1] a.md:1\nsources: [1] a.md:2\n"


def test_a_computed_cost_names_no_sources(informed):
    """Those of the answer before were named after it."""
    list(informed.reply("Зачем кайма?"))
    assert informed.sources == "[1] a.md:1"
    list(informed.reply("Посчитай стоимость печати детали 100 г"))
    assert informed.sources == ""


# Going back, going on, and remembering


def test_retry_answers_again_with_the_next_seed(terminal, session, capsys):
    terminal.take("Что такое PLA?")
    first = session.history[1].text
    terminal.take("/retry")
    assert session.seed == 43
    assert [message.role for message in session.history] == [Role.USER, Role.ASSISTANT]
    assert session.history[0].text == "Что такое PLA?"
    assert session.history[1].text != first
    capsys.readouterr()


def test_retry_asks_what_was_stopped_before_it_was_answered(terminal, session, monkeypatch, capsys):
    """It took the exchange before back, and asked that one again."""
    terminal.take("Что такое PLA?")
    said = list(session.history)
    with monkeypatch.context() as patch:
        patch.setattr(TorchEngine, "tokens", stopped)
        terminal.take("А ABS?")
    assert session.history == said
    terminal.take("/retry")
    assert session.history[:2] == said
    assert session.history[2] == Message(Role.USER, "А ABS?")
    assert session.seed == 43


def test_retry_that_says_nothing_leaves_the_answer_there_was(terminal, session, monkeypatch):
    """A dialogue lost its last exchange."""
    terminal.take("Что такое PLA?")
    said = list(session.history)
    with monkeypatch.context() as patch:
        patch.setattr(TorchEngine, "tokens", stopped)
        terminal.take("/retry")
    assert session.history == said
    session.system = "q" * 10_000
    with pytest.raises(UsageError, match="shorten the question"):
        terminal.take("/retry")
    assert session.history == said


def test_retry_after_load_asks_the_last_question_of_what_was_loaded(terminal, session, tmp_path):
    terminal.take("Что такое PLA?")
    terminal.take(f"/save {tmp_path / 'dialogue.json'}")
    terminal.take("/clear")
    terminal.take("А ABS?")
    terminal.take(f"/load {tmp_path / 'dialogue.json'}")
    terminal.take("/retry")
    assert session.asked() == ["Что такое PLA?"]


def stopped(*_):
    raise KeyboardInterrupt


@pytest.fixture
def editor(monkeypatch, tmp_path):
    """Name an editor that runs a line of Python on the file."""
    monkeypatch.delenv("VISUAL", raising=False)

    def name(line, variable="EDITOR"):
        script = tmp_path / f"{variable}.py"
        script.write_text(f"import pathlib, sys\nfile = pathlib.Path(sys.argv[1])\n{line}\n", encoding="utf-8")
        monkeypatch.setenv(variable, f"'{sys.executable}' '{script}'")

    return name


def test_a_question_is_written_in_the_users_editor(terminal, session, editor, capsys):
    editor("file.write_text(file.read_text('utf-8') + '\\nвторая\\n', 'utf-8')", "VISUAL")
    editor("sys.exit(1)")  # VISUAL goes before EDITOR
    terminal.take("/edit Первая")
    assert session.asked() == ["Первая\nвторая"]
    assert "Первая\nвторая" in capsys.readouterr().err


def test_an_editor_that_writes_nothing_asks_nothing(terminal, session, editor, capsys):
    editor("pass")
    terminal.take("/edit")
    assert "nothing was written" in capsys.readouterr().err
    assert session.history == []


def test_an_editor_that_fails_is_an_error_with_a_remedy(terminal, session, editor, monkeypatch):
    editor("sys.exit(3)")
    with pytest.raises(UsageError, match="ended with 3, so nothing was asked"):
        terminal.take("/edit Что?")
    editor("file.write_bytes(b'\\xff')")
    with pytest.raises(DataError, match="not UTF-8 at byte 0"):
        terminal.take("/edit Что?")
    for name in ("/nowhere/vi", "'"):
        monkeypatch.setenv("EDITOR", name)
        with pytest.raises(SystemFault, match=r"can't be started .*; set EDITOR to an editor you have"):
            terminal.take("/edit Что?")
    monkeypatch.delenv("EDITOR")
    with pytest.raises(UsageError, match="export EDITOR=nano"):
        terminal.take("/edit Что?")
    terminal._interactive = False
    with pytest.raises(UsageError, match="only at a terminal"):
        terminal.take("/edit Что?")
    assert session.history == []


@pytest.mark.parametrize("typed", [(), ("/set nohistory",)], ids=["kept", "not kept"])
def test_typed_lines_are_kept_unless_nohistory_is_set(terminal, monkeypatch, tmp_path, typed):
    pytest.importorskip("readline")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    terminal._remember = True
    lines(monkeypatch, *typed)
    assert terminal.run() == 0
    assert (tmp_path / "znatok" / "history").is_file() is not bool(typed)


def test_undo_takes_one_exchange_back(terminal, session, capsys):
    terminal.take("Что такое PLA?")
    terminal.take("А ABS?")
    terminal.take("/undo")
    assert [message.text for message in session.history][::2] == ["Что такое PLA?"]
    assert "А ABS?" in capsys.readouterr().err
    terminal.take("/undo")
    assert session.history == []
    for command in ("/undo", "/retry"):
        with pytest.raises(UsageError, match="nothing was said yet"):
            terminal.take(command)


def test_a_cut_answer_goes_on(terminal, session, capsys):
    with pytest.raises(UsageError, match="was not cut"):
        terminal.take("/continue")
    session.sample = SampleOptions(temperature=0.0, max_new_tokens=1)
    terminal.take("Что такое PLA?")
    assert "(cut at 1 tokens; /continue lets it go on)" in capsys.readouterr().err
    assert session.answer is not None
    assert session.answer.tokens == 1
    session.sample = SampleOptions(temperature=0.0, max_new_tokens=12)  # one token may be half a letter
    terminal.take("/continue")
    assert len(session.history) == 4
    assert session.history[2].text.startswith("Продолжай")


def test_stats_are_said_when_they_are_wanted(terminal, session, capsys):
    terminal.take("Что такое PLA?")
    assert "a second" not in capsys.readouterr().err
    terminal.take("/stats")
    assert "a second, ended by" in capsys.readouterr().err
    terminal.take("А ABS?")
    assert "a second, ended by" in capsys.readouterr().err
    terminal.take("/stats")
    capsys.readouterr()
    terminal.take("А PETG?")
    assert "a second" not in capsys.readouterr().err


def test_show_says_what_answers(terminal, session, capsys):
    terminal.take("/show")
    err = capsys.readouterr().err
    for expected in ("tuned", "torch", "temperature 0.8", "seed 42", "Ты знаток."):
        assert expected in err


def test_a_saved_dialogue_goes_on(terminal, session, tmp_path, capsys):
    terminal.take("Что такое PLA?")
    path = tmp_path / "dialogue.json"
    terminal.take(f"/save {path}")
    before, session.seed = list(session.history), 7
    terminal.take("/system Иначе.")
    terminal.take(f"/load {path}")
    assert (session.history, session.system, session.seed) == (before, "Ты знаток.", 42)
    assert ">>> Что такое PLA?" in capsys.readouterr().err
    with pytest.raises(UsageError, match="name a file"):
        terminal.take("/load")


@pytest.mark.parametrize(
    "text",
    [
        "", "7", "[]", "{}", '{"messages": [], "system": 3, "seed": 1}', '{"messages": [], "system": "", "seed": true}',
        '{"messages": [], "system": "", "seed": -1}',
        '{"messages": [{"role": "user", "content": "a"}], "system": "", "seed": 1}',
        '{"system": "", "seed": 1, "messages":[{"role": "assistant", "content": ""}, {"role": "user", "content": ""}]}',
        '{"system": "", "seed": 1, "messages": [{"role": "user", "content": 5}, {"role": "assistant", "content": ""}]}',
        '{"messages": [{"role": "root", "content": "a"}], "system": "", "seed": 1}',
        "[" * 100_000 + "]" * 100_000,  # ended in a traceback, and the dialogue with it
    ],
    ids=range(12),
)  # fmt: skip
def test_what_is_no_dialogue_changes_nothing(terminal, session, tmp_path, text):
    list(session.reply("Что такое PLA?"))
    before = (list(session.history), session.system, session.seed)
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="no dialogue"):
        terminal.take(f"/load {path}")
    assert (session.history, session.system, session.seed) == before
    with pytest.raises(DataError, match="can't be read"):
        terminal.take(f"/load {tmp_path / 'nowhere'}")


def test_another_run_on_the_same_base_answers(terminal, session, expert, capsys):
    terminal.take("/adapter off")
    assert session.voice is Voice.BASE
    terminal.take(f"/adapter {expert.run.path}")
    assert session.voice is Voice.TUNED
    assert session.expert is not expert
    terminal.take("Что такое PLA?")
    assert session.history[1].text == spoken_of(expert, session)
    with pytest.raises(UsageError, match="name a run"):
        terminal.take("/adapter")
    now = session.expert
    with pytest.raises(ModelError, match="no such run"):
        terminal.take("/adapter nowhere")
    assert session.expert is now
    capsys.readouterr()


def spoken_of(expert, session):
    """Return what an expert's tuned voice answers to a dialogue's first question."""
    alone = ChatSession(expert, session.sample, session.seed, session.system, Voice.TUNED)
    return "".join(alone.reply(session.history[0].text)).strip()


def test_several_lines_are_one_message(terminal, session, monkeypatch, capsys):
    lines(monkeypatch, '"""Первая строка', "вторая", 'третья"""', "/exit")
    assert terminal.run() == 0
    assert session.history[0].text == "Первая строка\nвторая\nтретья"
    lines(monkeypatch, '"""в одну строку"""', "/exit")
    session.history.clear()
    assert Terminal.run(terminal) == 0
    assert session.history[0].text == "в одну строку"
    capsys.readouterr()


@pytest.mark.parametrize("state", ["taken", "taken/below", "x" * 300], ids=["a file", "below a file", "too long"])
def test_a_place_for_typed_lines_that_can_not_be_had_costs_only_them(tmp_path, monkeypatch, state):
    readline = pytest.importorskip("readline")
    (tmp_path / "taken").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / state))
    with typed_lines(lambda: True):
        readline.add_history("Что такое PLA?")
    readline.clear_history()
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_typed_lines_are_nobody_elses_whatever_the_umask(tmp_path, monkeypatch):
    pytest.importorskip("readline")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    before = os.umask(0)
    try:
        with typed_lines(lambda: True):
            pass
    finally:
        os.umask(before)
    kept = tmp_path / "znatok" / "history"
    assert (kept.stat().st_mode | kept.parent.stat().st_mode) & 0o077 == 0


def test_typed_lines_are_kept_for_their_owner_alone(tmp_path, monkeypatch):
    readline = pytest.importorskip("readline")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    readline.clear_history()
    with typed_lines(lambda: True):
        readline.add_history("Что такое PLA?")
    kept = tmp_path / "znatok" / "history"
    assert "PLA" in kept.read_text(encoding="utf-8", errors="replace")
    assert kept.stat().st_mode & 0o077 == 0
    readline.clear_history()
    with typed_lines(lambda: True):
        assert readline.get_current_history_length() == 1
    readline.clear_history()
    with typed_lines(lambda: False):
        assert readline.get_current_history_length() == 0
        readline.add_history("тайна")
    assert "тайна" not in kept.read_text(encoding="utf-8", errors="replace")
    readline.clear_history()
