"""Where messages go: answers and tables to stdout, everything about the work to stderr.

Nothing here runs at import; entry points call :func:`setup` once.
"""

import os
import resource
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

JOINERS = "\u00ad\u200c\u200d"  # soft hyphen and what holds an emoji together: not printable to Python, harmless

_console: Console | None = None


def setup(*, quiet: bool = False) -> None:
    """Configure stderr for an entry point and silence the libraries' chatter (not their errors)."""
    global _console  # one process, one stderr
    _console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True, emoji=False)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault(
        "HF_HUB_DISABLE_PROGRESS_BARS", "0" if sys.stderr is not None and sys.stderr.isatty() else "1"
    )
    warnings.filterwarnings("ignore", module="transformers|peft|accelerate")


def console() -> Console:
    """Return the stderr console; it obeys NO_COLOR, TERM=dumb and pipes (rich does that)."""
    if _console is None:
        setup()
    assert _console is not None
    return _console


def without_colour() -> None:
    """Say everything without colours from now on, in this process and those it starts."""
    os.environ["NO_COLOR"] = "1"
    console().no_color = True


def say(text: str, *, style: str = "") -> None:
    """Print one line about the work to stderr; markup in ``text`` is shown, not obeyed."""
    console().print(printable(text), style=style, markup=False)


@contextmanager
def silence() -> Iterator[None]:
    """Say nothing while the block runs; what is said of an error that ends it is heard."""
    global _console
    before = console()
    _console = Console(stderr=True, quiet=True)
    try:
        yield
    finally:
        _console = before


def warn(text: str) -> None:
    """Print a warning line to stderr."""
    say(text, style="yellow")


def printable(text: str) -> str:
    """Return ``text`` without control characters, so that no data can drive the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" or c in JOINERS or _is_space(c) else "�" for c in text)


def _is_space(character: str) -> bool:
    """Tell spaces of any width, such as the one in «100 °C», from separators of lines."""
    return unicodedata.category(character) == "Zs"


def peak_rss_bytes() -> int:
    """Return the largest resident size this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
