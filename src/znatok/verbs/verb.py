"""What a verb is, and what several of them share."""

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from znatok.config import Parser
from znatok.errors import _
from znatok.logs import printable

DTYPES = ("auto", "float32", "bfloat16", "int8")


@dataclass(frozen=True)
class Verb:
    """A word after ``znatok``: what it is for, the flags it knows, and what obeys them.

    ``obey`` takes the parsed flags and the words they were parsed from, for who asks what was really said; it returns
    the exit code.
    """

    text: str
    parser: Callable[[], Parser]
    obey: Callable[[Namespace, list[str]], int]

    def __call__(self, words: list[str]) -> int:
        """Parse the words and obey."""
        return self.obey(self.parser().parse_args(words), words)


def show(value: Any, lines: Sequence[str], *, as_json: bool) -> None:
    """Print a result for people, or as one JSON document; its letters are escaped where the stream can't carry them."""
    unicode = (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")
    print(unseen_escaped(json.dumps(value, ensure_ascii=not unicode, indent=1)) if as_json else "\n".join(lines))


def unseen_escaped(document: str) -> str:
    """Escape what could drive a terminal in a JSON document; it says the same then."""
    return "".join(c if printable(c) == c else json.dumps(c)[1:-1] for c in document)


def json_flag(parser: Any) -> None:
    """Add ``--json`` to a verb that ends with a result."""
    parser.add_argument("--json", action="store_true", help=_("print one JSON document"))


def run_argument(parser: Any) -> None:
    """Add the run directory a verb works on."""
    parser.add_argument("run", nargs="?", metavar="run", help=_("run directory; by default the newest"))


def dtype_flag(parser: Any) -> None:
    """Add ``--dtype`` to a verb that takes its model from a run."""
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help=_("number format"))
