"""Votes on answers of two models to one question: kept beside the run, one JSON line each."""

import datetime
from dataclasses import asdict, dataclass
from pathlib import Path

from znatok.errors import SystemFault, _
from znatok.files import append_jsonl, read_jsonl

VOTES = "votes.jsonl"  # in the run's directory


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one question.

    Attributes:
        run: the run's name.
        question: what was asked.
        seed, temperature: how both answers were drawn.
        blind: whether the reader was not told who was who.
        order: «base» and «tuned» as they were shown, the left or first one first.
        answers: what they said, in that order.
    """

    run: str
    question: str
    seed: int
    temperature: float
    blind: bool
    order: tuple[str, ...]
    answers: tuple[str, ...]


def add_vote(path: Path, comparison: Comparison, vote: str) -> None:
    """Add a vote to a file of them.

    Args:
        path: the file; it is made where there is none.
        comparison: what was voted on.
        vote: «left», «right» or «equal».

    Raises:
        SystemFault: the file can't be written.
    """
    better = dict(zip(("left", "right"), comparison.order, strict=True)).get(vote, vote)
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    try:
        append_jsonl(path, {**asdict(comparison), "vote": better, "at": at})
    except OSError as error:
        raise SystemFault("{path}: can't be written ({why})", path=path, why=error.strerror) from error


def tally(path: Path) -> str:
    """Return how the votes of a file stand."""
    votes = [row["vote"] for row in read_jsonl(path)]
    counts = {name: votes.count(name) for name in ("tuned", "base", "equal")}
    return _("votes: tuned {tuned}, base {base}, no difference {equal}", **counts)
