"""Questions to be answered: one per line of a text file, or JSON Lines with a reference answer."""

from dataclasses import dataclass
from pathlib import Path

from znatok.data.formats import read_text
from znatok.data.load import read_pairs
from znatok.data.schema import shown_path
from znatok.errors import DataError


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and the answer it is compared with where there is one."""

    id: str
    text: str
    reference: str | None = None


def read_questions(path: Path) -> tuple[Question, ...]:
    """Read a question file: ``.jsonl`` holds pairs, anything else a question a line.

    Raises:
        DataError: the file can't be read, or holds no question.
    """
    if path.suffix == ".jsonl":
        return tuple(Question(f"{path.stem}-{p.line}", p.prompt, p.response) for p in read_pairs(path).pairs)
    lines = [(number, line.strip()) for number, line in enumerate(read_text(path).split("\n"), 1)]
    found = tuple(Question(f"{path.stem}-{number}", line) for number, line in lines if line)
    if not found:
        raise DataError("{path}: no question in it; write one per line", path=shown_path(path))
    return found
