"""A dialogue in the terminal.

Answers go to stdout, everything else to stderr. With a terminal on both sides it is a conversation; with questions
piped in, each line is answered and nothing but the answers is printed.
"""

import contextlib
import difflib
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from znatok.config import SampleOptions
from znatok.data.questions import read_questions
from znatok.errors import DataError, SystemFault, UsageError, ZnatokError, _
from znatok.expert import Voice
from znatok.generate.engine import Stop
from znatok.keyboard import typed_lines, written
from znatok.lexicon import language_of
from znatok.logs import printable, say, warn
from znatok.runs import find
from znatok.session import ChatSession
from znatok.side_by_side import MARKS, Ballot, compare
from znatok.tokens.chat import Role

MULTILINE = '"""'
OPTIONS = tuple(spec.name for spec in fields(SampleOptions))
CONTINUE = {"ru": "Продолжай с того места, где остановился.", "en": "Go on from where you stopped."}
GOODBYES = {"exit", "quit", "выход", "!exit"}  # what people type who come from other tools


class Terminal:
    """The loop that reads lines and obeys commands."""

    def __init__(self, session: ChatSession, *, remember: bool = True) -> None:
        self.session = session
        self._interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self._remember = remember and self._interactive
        self._interrupted = False
        self._last_question = ""
        self._figures = self._blind = False
        self._ballot: Ballot | None = None
        self._commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/help": (self._help, _("this list")),
            "/exit": (self._exit, _("leave (also Ctrl-D)")),
            "/clear": (self._clear, _("begin a new dialogue")),
            "/base": (lambda _: self._speak(Voice.BASE), _("let the base model answer")),
            "/tuned": (lambda _: self._speak(Voice.TUNED), _("let the tuned model answer")),
            "/compare": (self._compare, _("both answer: the question given, or the last one")),
            "/blind": (self._switch_blind, _("hide in /compare who is who until you vote, or no longer")),
            "/seed": (self._seed, _("N: set the seed of the answers")),
            "/system": (self._system, _("TEXT: set the system message; begins a new dialogue")),
            "/set": (
                self._set,
                _("OPTION VALUE: one of {names}; nohistory: don't keep what is typed", names=", ".join(OPTIONS)),
            ),
            "/edit": (self._edit, _("write the next question in your editor; it begins with TEXT")),
            "/retry": (self._retry, _("answer the last question again, with the next seed")),
            "/undo": (self._undo, _("take the last exchange back")),
            "/continue": (self._continue, _("let an answer go on that reached its limit")),
            "/adapter": (self._adapter, _("RUN: let another run on this base answer; off: the base")),
            "/stats": (self._stats, _("say after each answer how long it took, or stop saying it")),
            "/show": (self._show, _("what answers, and how")),
            "/save": (self._save, _("FILE: write the dialogue as JSON")),
            "/load": (self._load, _("FILE: go on with a saved dialogue")),
        }

    def run(self) -> int:
        """Talk until the user leaves; return the exit code."""
        if self._interactive:
            say(_("Ask away; /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves."), style="dim")
        try:
            with typed_lines(lambda: self._remember) if self._interactive else contextlib.nullcontext():
                while True:
                    self._turn()
        except _Goodbye as goodbye:
            return goodbye.exit_code

    def _turn(self) -> None:
        """Read a line and obey it; an error or Ctrl-C ends a pipe but not a conversation."""
        try:
            if line := self._read_line():
                self.take(line)
        except ZnatokError as error:
            if not self._interactive:
                raise
            warn(str(error))
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            say(_("\n(stopped)"), style="dim")

    def _read_line(self) -> str:
        """Return the next line; a second Ctrl-C in a row at the prompt leaves."""
        try:
            line = input(">>> " if self._interactive else "").strip()
            if line.startswith(MULTILINE) and self._interactive:
                line = self._read_lines(line.removeprefix(MULTILINE))
        except EOFError:
            raise _Goodbye from None
        except KeyboardInterrupt:
            if self._interrupted or not self._interactive:
                raise _Goodbye(130) from None
            self._interrupted = True
            say(_("\nCtrl-D or /exit leaves; Ctrl-C once more leaves too"), style="dim")
            return ""
        except UnicodeDecodeError as error:
            raise DataError("standard input is not UTF-8 at byte {at}; convert it first", at=error.start) from error
        self._interrupted = False
        return line

    def _read_lines(self, line: str) -> str:
        """Return a text of several lines; it ends where three quotation marks close it."""
        lines = [line]
        while MULTILINE not in lines[-1]:
            lines.append(input("... "))
        lines[-1] = lines[-1].partition(MULTILINE)[0]
        return "\n".join(lines).strip()

    def take(self, line: str) -> None:
        """Obey a command or answer a question; a mistyped command never reaches the model."""
        ballot, self._ballot = self._ballot, None
        if ballot is not None and line in MARKS:
            for text in ballot.cast(line):
                say(text, style="dim")
            return
        if line.lower() in GOODBYES:
            raise _Goodbye
        if not line.startswith("/"):
            self._answer(line)
            return
        word, _space, rest = line.partition(" ")
        name = {"/?": "/help", "/bye": "/exit", "/quit": "/exit"}.get(word.lower(), word.lower())
        if name not in self._commands:
            close = difflib.get_close_matches(name, self._commands, n=1)
            hint = _(", did you mean {word}?", word=close[0]) if close else ""
            raise UsageError("{word}: no such command{hint} (/help lists them)", word=word, hint=hint)
        self._commands[name][0](rest.strip())

    def _answer(self, question: str) -> None:
        self._last_question = question
        pieces = self.session.reply(question)
        try:
            for piece in pieces:
                print(printable(piece), end="", flush=True)
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            say(_("\n(stopped)"), style="dim")
        finally:
            pieces.close()  # type: ignore[attr-defined]  # a generator: lets reply() keep what was said
        print(flush=True)
        cite(self.session.sources)
        if self._interactive:
            self._comment()

    def _comment(self) -> None:
        """Say that an answer was cut short, and its figures where they are wanted."""
        answer = self.session.answer
        if answer is None:
            return
        if answer.stop is Stop.LENGTH:
            limit = self.session.sample.max_new_tokens
            say(_("(cut at {limit} tokens; /continue lets it go on)", limit=limit), style="dim")
        if self._figures:
            rate = answer.tokens / max(answer.seconds, 1e-9)
            say(
                _(
                    "{tokens} tokens in {seconds:.1f} s, {rate:.1f} a second, ended by {stop}",
                    tokens=answer.tokens, seconds=answer.seconds, rate=rate, stop=answer.stop,
                ),
                style="dim",
            )  # fmt: skip

    def _help(self, _rest: str) -> None:
        for name, (_function, text) in self._commands.items():
            say(f"{name:10} {text}")

    def _exit(self, _rest: str) -> None:
        raise _Goodbye

    def _clear(self, _rest: str) -> None:
        self.session.history.clear()
        say(_("new dialogue"), style="dim")

    def _speak(self, voice: Voice) -> None:
        if voice not in self.session.expert.voices:
            raise UsageError("no adapter is loaded: name a trained run with --model_dir")
        self.session.voice = voice
        say(_("now speaking: {voice}", voice=voice), style="dim")

    def _compare(self, rest: str) -> None:
        question = rest or self._last_question
        if not question:
            raise UsageError("/compare: ask something first, or give the question after the command")
        self._last_question = question
        session = self.session
        if not rest and session.history and session.history[-2].text == question:  # both see what stood before it
            session = replace(session, history=session.history[:-2])
        ballot = compare(session, question, blind=self._blind)
        cite(session.sources)
        if not self._interactive:
            return
        if not ballot.comparison.blind:
            say(ballot.figures, style="dim")
        if ballot.path is not None:
            self._ballot = ballot
            say(_("which one is better? 1, 2 or = at the next prompt is your vote"), style="dim")

    def _switch_blind(self, _rest: str) -> None:
        self._blind = not self._blind
        told = _("/compare hides who is who until you vote") if self._blind else _("/compare says who is who")
        say(told, style="dim")

    def _seed(self, rest: str) -> None:
        if not rest.isdecimal() or len(rest) > 18:  # a generator's seed has 64 bits
            raise UsageError("/seed {value}: expected a whole number of at most 18 digits", value=rest)
        self.session.seed = int(rest)
        say(_("seed: {seed}", seed=self.session.seed), style="dim")

    def _system(self, rest: str) -> None:
        self.session.system = rest
        self._clear("")

    def _set(self, rest: str) -> None:
        if rest == "nohistory":
            self._remember = False
            say(_("what is typed in this dialogue will not be kept"), style="dim")
            return
        name, _space, value = rest.partition(" ")
        now = getattr(self.session.sample, name, None) if not name.startswith("_") else None
        if not isinstance(now, (int, float)):
            raise UsageError("/set {name}: no such option; see /help", name=name)
        changed: dict[str, Any]
        try:
            changed = {name: type(now)(value)}
        except ValueError as error:
            raise UsageError("/set {name} {value}: expected a number", name=name, value=value) from error
        self.session.sample = replace(self.session.sample, **changed)
        say(f"{name} = {changed[name]}", style="dim")

    def _edit(self, rest: str) -> None:
        if not self._interactive:
            raise UsageError("/edit: only at a terminal; in a pipe write the question itself")
        question = written(rest)
        if not question:
            say(_("nothing was written"), style="dim")
            return
        say(printable(question), style="dim")
        self._answer(question)

    def _retry(self, _rest: str) -> None:
        question, session = self._last_question, self.session
        if not question:
            raise UsageError("nothing was said yet")
        kept = session.history[-2:] if session.history and session.history[-2].text == question else []
        del session.history[len(session.history) - len(kept) :]
        before = len(session.history)
        self._seed(str((session.seed + 1) % 10**18))
        try:
            self._answer(question)
        finally:
            if len(session.history) == before:  # refused, or stopped before it began
                session.history += kept

    def _undo(self, _rest: str) -> None:
        question = self.session.undo()
        self._last_question = self._last_asked()
        say(_("taken back: {question}", question=printable(question)), style="dim")

    def _last_asked(self) -> str:
        return next(reversed(self.session.asked()), "")

    def _continue(self, _rest: str) -> None:
        if self.session.answer is None or self.session.answer.stop is not Stop.LENGTH:
            raise UsageError("/continue: the last answer was not cut at its limit")
        self._answer(CONTINUE.get(language_of(self._last_question), CONTINUE["en"]))

    def _adapter(self, rest: str) -> None:
        if not rest:
            raise UsageError("/adapter: name a run, or off")
        if rest == "off":
            self._speak(Voice.BASE)
            return
        session = self.session
        trained = session.system == session.expert.system
        session.expert = session.expert.with_run(find(rest))
        if trained:  # and not one of the user's own
            session.system = session.expert.system
        self._speak(Voice.TUNED)

    def _stats(self, _rest: str) -> None:
        self._figures = not self._figures
        self._comment()

    def _show(self, _rest: str) -> None:
        session = self.session
        expert = session.expert
        adapter = expert.run.path if expert.run else _("no adapter")
        say(f"{expert.base_name}, {adapter}, {session.voice}, {expert.engine}, {expert.chat.name}")
        say(", ".join(f"{name} {value}" for name, value in asdict(session.sample).items()) + f", seed {session.seed}")
        say(_("system message: {text}", text=printable(session.system) or "—"))

    def _load(self, rest: str) -> None:
        if not rest:
            raise UsageError("/load: name a file")
        self.session.load(Path(rest))
        self._last_question = self._last_asked()
        for message in self.session.history:
            say(f"{'>>> ' if message.role is Role.USER else ''}{printable(message.text)}", style="dim")

    def _save(self, rest: str) -> None:
        if not rest:
            raise UsageError("/save: name a file")
        try:
            self.session.save(Path(rest))
        except OSError as error:
            raise SystemFault("{path}: can't be written ({why})", path=rest, why=error.strerror) from error
        say(_("saved: {path}", path=rest), style="dim")


class _Goodbye(Exception):
    """The user left."""

    def __init__(self, exit_code: int = 0) -> None:
        super().__init__()
        self.exit_code = exit_code


def cite(sources: str) -> None:
    """Say where the passages of an answer stand, if any stood before its question."""
    if sources:
        say(_("sources: {sources}", sources=sources), style="dim")


def ask(session: ChatSession, question: str) -> None:
    """Answer one question on stdout."""
    if not question.strip():
        raise DataError("the question is empty")
    for piece in session.reply(question):
        print(printable(piece), end="", flush=True)
    print(flush=True)
    cite(session.sources)


def answer_file(session: ChatSession, path: str) -> None:
    """Answer every question of a file on stdout, each one in a dialogue of its own."""
    questions = read_questions(Path(path))
    requests, sources = [], []
    for question in questions:
        requests.append(session.request(question.text))
        sources.append(session.sources)
    with session.expert.speaking(session.voice) as engine:
        answers = engine.answers(requests)
    for question, answer, places in zip(questions, answers, sources, strict=True):
        print(f"{printable(question.text)}\n{printable(answer.text)}\n", flush=True)
        cite(places)
