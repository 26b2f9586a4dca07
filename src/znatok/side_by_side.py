"""One question to both voices in the terminal: their answers as they come, side by side where there is room."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from znatok.errors import _
from znatok.expert import Voice
from znatok.generate.engine import Answer
from znatok.logs import printable
from znatok.session import ChatSession
from znatok.votes import VOTES, Comparison, add_vote, tally

WIDE = 100  # columns of a terminal in which two texts stand beside each other
REFRESHES = 8  # a second
MARKS = {"1": "left", "2": "right", "=": "equal"}
"""What is typed to vote."""


@dataclass
class Column:
    """An answer as far as it got, under its heading."""

    voice: Voice
    title: str
    text: str = ""
    answer: Answer | None = None


@dataclass(frozen=True)
class Ballot:
    """What can be voted on once both have answered.

    Attributes:
        comparison: the answers.
        path: the file of votes; None where only one has answered.
        figures: seed, tokens and seconds.
    """

    comparison: Comparison
    path: Path | None
    figures: str

    def cast(self, mark: str) -> list[str]:
        """Keep a vote; return what is to be said of it: who was who where it was hidden, and how the votes stand.

        Raises:
            SystemFault: it can't be written.
        """
        assert self.path is not None
        add_vote(self.path, self.comparison, MARKS[mark])
        who = ", ".join(f"{place}: {name}" for place, name in enumerate(self.comparison.order, 1))
        return [*([who, self.figures] if self.comparison.blind else []), tally(self.path)]


def compare(session: ChatSession, question: str, *, blind: bool = False, console: Console | None = None) -> Ballot:
    """Show the answers of all voices to one question, same seed; the dialogue stays as it is.

    Args:
        session: the dialogue they see.
        question: what both are asked.
        blind: head them with numbers, in an order drawn anew, where there are two.
        console: where they are shown; standard output.
    """
    run, voices = session.expert.run, list(session.expert.voices)
    blind = blind and len(voices) > 1
    if blind and secrets.randbits(1):
        voices.reverse()
    columns = [Column(voice, str(place) if blind else str(voice)) for place, voice in enumerate(voices, 1)]
    console = console or Console(highlight=False, emoji=False)
    roomy = console.is_terminal and not console.is_dumb_terminal and console.width >= WIDE
    show = _beside if roomy and len(columns) > 1 else _below
    show(session, question, columns, console)
    figures = "; ".join(
        _("{name}: {tokens} tokens in {seconds:.1f} s", name=one.voice, tokens=said.tokens, seconds=said.seconds)
        for one in columns
        if (said := one.answer) is not None
    )
    comparison = Comparison(
        run.path.name if run else "", question, session.seed, session.sample.temperature, blind,
        tuple(str(one.voice) for one in columns), tuple(one.text for one in columns),
    )  # fmt: skip
    return Ballot(comparison, run.path / VOTES if run else None, f"{_('seed: {seed}', seed=session.seed)}; {figures}")


def _beside(session: ChatSession, question: str, columns: list[Column], console: Console) -> None:
    """Show two columns that grow; the whole of both is there at the end, or as far as they got."""

    def drawn() -> Table:
        grid = Table.grid(padding=(0, 2), expand=True)
        for _column in columns:
            grid.add_column(ratio=1)
        grid.add_row(*(Text(one.title, style="bold") for one in columns))
        grid.add_row(*(Text(printable(one.text)) for one in columns))
        return grid

    with Live(get_renderable=drawn, console=console, refresh_per_second=REFRESHES):
        for column in columns:
            _speak(session, question, column, lambda _piece: None)


def _below(session: ChatSession, question: str, columns: list[Column], console: Console) -> None:
    """Print one after the other, each as it comes."""
    for column in columns:
        print(f"[{column.title}] ", end="", flush=True, file=console.file)
        _speak(session, question, column, lambda piece: print(printable(piece), end="", flush=True, file=console.file))
        print("\n", flush=True, file=console.file)


def _speak(session: ChatSession, question: str, column: Column, shown: Callable[[str], None]) -> None:
    with session.expert.speaking(column.voice) as engine:
        for piece in engine.stream(session.request(question)):
            column.text += piece
            shown(piece)
        column.answer = engine.last
