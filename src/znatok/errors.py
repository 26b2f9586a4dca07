"""Every error znatok raises on purpose.

::

    ZnatokError                     exit code
    ├── UsageError      (ValueError)    2   a flag, an option or a combination of them
    ├── DataError       (ValueError)    3   a data file or a record in it
    ├── ModelError      (ValueError)    4   a model, tokenizer or adapter: missing, damaged, incompatible
    ├── SystemFault     (RuntimeError)  5   a dependency, device, memory, disk, or a busy run directory
    ├── GateError       (AssertionError)6   an evaluation gate the user asked for was not passed
    ├── TrainingError   (ArithmeticError) 1 training itself went wrong: non-finite loss, nothing learned
    └── Interrupted     (Exception)   130   stopped by the user (143 by SIGTERM) after a saved checkpoint

A message is a template and its fields: ``DataError("{path}:{line}: not JSON: {why}", path=..., ...)``.
The template is the key of the message catalogue, so an error is translated where it is shown and nowhere else.
A message names place, value, expectation and remedy, in that order, on one line.
"""

import errno
import gettext
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import ClassVar

LOCALE_DIR = Path(__file__).parent / "locale"


@cache
def catalogue(language: str | None = None) -> gettext.NullTranslations:
    """Return the message catalogue of ``language``, or of the environment's locale when None."""
    wanted = language or os.environ.get("ZNATOK_LANG")
    return gettext.translation("znatok", LOCALE_DIR, [wanted] if wanted else None, fallback=True)


def speak(language: str) -> None:
    """Say everything in this language from now on, in this process and those it starts."""
    os.environ["ZNATOK_LANG"] = language
    catalogue.cache_clear()


def own_language() -> str:
    """Return the language of the messages where it is one of the reports' own: ``ru``, otherwise ``en``."""
    return "ru" if catalogue().info().get("language", "").startswith("ru") else "en"


def _(template: str, /, **fields: object) -> str:
    """Translate ``template`` to the user's language, then fill in ``fields``."""
    translated = catalogue().gettext(template)
    return translated.format(**fields) if fields else translated


class ZnatokError(Exception):
    """Root of the tree; holds the untranslated template and its fields."""

    exit_code: ClassVar[int] = 1

    def __init__(self, template: str, /, **fields: object) -> None:
        super().__init__(template, fields)
        self.template = template
        self.fields = fields

    def __str__(self) -> str:
        return _(self.template, **self.fields)

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (type(self), self.template, self.fields)


def _restore(kind: type[ZnatokError], template: str, fields: dict[str, object]) -> ZnatokError:
    return kind(template, **fields)


class UsageError(ZnatokError, ValueError):
    """A flag, an option, or a combination of them that can't work."""

    exit_code = 2


class DataError(ZnatokError, ValueError):
    """A data file or one of its records; ``path`` and ``line`` are fields where they are known."""

    exit_code = 3


class ModelError(ZnatokError, ValueError):
    """A model, tokenizer or adapter that is missing, damaged or does not fit."""

    exit_code = 4


class SystemFault(ZnatokError, RuntimeError):
    """The machine: a missing dependency, no memory or disk, a directory held by another process."""

    exit_code = 5


class GateError(ZnatokError, AssertionError):
    """An evaluation gate the user asked for was not passed."""

    exit_code = 6


class TrainingError(ZnatokError, ArithmeticError):
    """Training went wrong: a loss that is not a number, an adapter that learned nothing."""


class Interrupted(ZnatokError):
    """Stopped by a signal after everything worth keeping was saved."""

    exit_code = 130

    def __init__(self, template: str, /, exit_code: int = 130, **fields: object) -> None:
        super().__init__(template, **fields)
        self.exit_code = exit_code  # type: ignore[misc]  # 143 when the signal was SIGTERM

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (type(self), self.template, {**self.fields, "exit_code": self.exit_code})


# What the machine does to anybody

NO_MEMORY = ("allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
"""What torch's errors say when memory runs out, on the CPU and on CUDA; only CUDA's is of a class of its own."""

MACHINE = {
    getattr(errno, name)
    for name in (
        "EACCES",
        "EDQUOT",
        "EFBIG",
        "EIO",
        "EISDIR",
        "ELOOP",
        "ENAMETOOLONG",
        "ENOSPC",
        "ENOTDIR",
        "EPERM",
        "EROFS",
    )
    if hasattr(errno, name)
}
"""System errors that a disk, its rights or a name bring about, whatever the program."""


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out: Python's own, the system's, or torch's."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    told = isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    return isinstance(error, MemoryError) or told


@contextmanager
def as_faults() -> Iterator[None]:
    """Turn what the machine does to any program into a SystemFault: memory, disks, rights, and libraries too old.

    Raises:
        SystemFault: instead of MemoryError, torch's likes of it, an OSError of :data:`MACHINE`, or an ImportError.
    """
    try:
        yield
    except ZnatokError:
        raise
    except (MemoryError, RuntimeError, OSError, ImportError) as error:
        fault = _fault(error)
        if fault is None:
            raise
        raise fault from error


def _fault(error: BaseException) -> SystemFault | None:
    """Return what the user is told; None for a bug of ours."""
    why = (str(error).splitlines() or [type(error).__name__])[0][:200]
    if out_of_memory(error):
        return SystemFault(
            "memory ran out ({why}): take a smaller model or --dtype int8, or end other programs; training takes less"
            " with --low_memory or a lower --max_length, and goes on with --resume",
            why=why,
        )
    if isinstance(error, OSError) and error.errno in MACHINE:
        return SystemFault(
            "{path}: can't be read or written ({why}); make room or give rights there, or name another place",
            path=error.filename or _("a file"), why=error.strerror,
        )  # fmt: skip
    if isinstance(error, ImportError) and (error.name or "").split(".")[0] != "znatok":
        return SystemFault(
            "{why}: a library is missing, or of a version znatok can't use; mend it with: pip install --upgrade znatok",
            why=why,
        )
    return None
