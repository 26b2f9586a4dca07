"""What is typed: with the comforts of readline, kept for the next conversation, or written in an editor."""

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from znatok.errors import DataError, SystemFault, UsageError
from znatok.files import home

HISTORY_LINES = 1000


@contextlib.contextmanager
def typed_lines(remember: Callable[[], bool]) -> Iterator[None]:
    """Give typed lines the comforts of readline, where the platform has it, and keep them for the next conversation.

    Args:
        remember: tells whether lines are kept; asked at the start and again at the end.
    """
    try:
        import readline
    except ImportError:
        yield
        return
    if os.environ.get("TERM", "dumb") != "dumb":  # Python switches it off: a pasted text would be sent line by line
        readline.parse_and_bind("set enable-bracketed-paste on")
    path = history_file()
    if remember():
        with contextlib.suppress(OSError):
            readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        if remember():
            with contextlib.suppress(OSError):  # what was typed is a comfort: a full disk must not hide the goodbye
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                path.touch(mode=0o600)
                path.chmod(0o600)  # one that was there before may have been open to others
                readline.write_history_file(path)


def history_file() -> Path:
    """Return where typed lines are kept, readable to nobody else."""
    state = os.environ.get("XDG_STATE_HOME") or home() / ".local" / "state"
    return Path(state) / "znatok" / "history"


def written(text: str) -> str:
    """Return what is written in the user's editor, which begins with ``text``.

    Raises:
        UsageError: no editor is named, or it ended with an error.
        SystemFault: it can't be started.
        DataError: it wrote no UTF-8.
    """
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor:
        raise UsageError("/edit: neither VISUAL nor EDITOR names an editor; set one: export EDITOR=nano")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "question.txt"
        path.write_text(text, encoding="utf-8")
        before = signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is the editor's until it ends
        try:
            code = subprocess.run([*shlex.split(editor), path], check=False).returncode
        except (OSError, ValueError) as error:
            raise SystemFault(
                "/edit: {editor} can't be started ({why}); set EDITOR to an editor you have",
                editor=editor, why=getattr(error, "strerror", None) or error,
            ) from error  # fmt: skip
        finally:
            signal.signal(signal.SIGINT, before)
        if code:
            raise UsageError("/edit: {editor} ended with {code}, so nothing was asked", editor=editor, code=code)
        try:
            return path.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError("{path}: not UTF-8 at byte {at}; convert it first", path=path, at=error.start) from error
