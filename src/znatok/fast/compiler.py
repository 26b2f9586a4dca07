"""The C++ kernels as a shared library: compiled once per machine, kept in the user's cache, loaded with ctypes.

Nothing is compiled where there is no GNU compiler on Linux: the kernels share torch's OpenMP threads, and only GNU's
runtime, which torch's Linux wheels bring along, makes that certain. The eager twins in ``eager.py`` do the work then.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from znatok.errors import _
from znatok.files import cache_home, prune, replacing, sha256

SOURCE = Path(__file__).with_name("kernels.cpp")
COMPILE = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffast-math",
    "-fopenmp",
    "-fPIC",
    "-fvisibility=hidden",
    "-mprefer-vector-width=512",
)
LINK = (
    "-shared",
    "-fopenmp",
)  # apart from COMPILE: linked with -ffast-math, a library changes its host's rounding mode
SECONDS = 120
KEPT = 4  # libraries: of the newest versions of znatok, torch and the compiler


class Built(NamedTuple):
    """The library, or None and why there is none."""

    library: ctypes.CDLL | None
    reason: str


@functools.cache
def build() -> Built:
    """Return the compiled kernels, compiling them if this machine has not yet; never raises.

    ``ZNATOK_KERNELS=eager`` in the environment does without.
    """
    if os.environ.get("ZNATOK_KERNELS") == "eager":
        return Built(None, _("ZNATOK_KERNELS=eager"))
    if not sys.platform.startswith("linux"):
        return Built(None, _("they are compiled on Linux only"))
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        return Built(None, _("no C++ compiler found (g++)"))
    try:
        return Built(ctypes.CDLL(str(_cached(compiler))), _("compiled for this machine"))
    except (OSError, subprocess.SubprocessError) as error:
        lines = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        return Built(None, _("the compiler failed: {why}", why=lines[0][:200] if lines else type(error).__name__))


def _cached(compiler: str) -> Path:
    """Return the library's path, compiled from this very source by this very compiler for this very processor."""
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, check=True, timeout=SECONDS
    ).stdout
    if "clang" in version:
        raise OSError(_("{compiler} is not GNU's", compiler=compiler))
    facts = (
        SOURCE.read_text(encoding="utf-8"),
        version,
        *COMPILE,
        *LINK,
        platform.machine(),
        _cpu(),
        torch.__version__,
    )
    digest = hashlib.sha256("\0".join(facts).encode()).hexdigest()[:24]
    folder = cache_home() / "kernels"
    return next(filter(_whole, folder.glob(f"{digest}-*.so")), None) or _compiled(compiler, folder, digest)


def _compiled(compiler: str, folder: Path, digest: str) -> Path:
    """Compile the library; its name ends with its own hash."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        compiled, linked = Path(scratch) / "kernels.o", Path(scratch) / "kernels.so"
        for words in (
            [compiler, *COMPILE, "-c", str(SOURCE), "-o", str(compiled)],
            [compiler, *LINK, str(compiled), "-o", str(linked)],
        ):
            subprocess.run(words, capture_output=True, text=True, check=True, timeout=SECONDS)
        path = folder / f"{digest}-{sha256(linked)[:24]}.so"
        with replacing(path) as temporary:
            shutil.copyfile(linked, temporary)
    prune(folder, KEPT)
    return path


def _whole(path: Path) -> bool:
    """Tell whether a library is the one that was compiled: to load one that is cut short can kill the process."""
    return path.stem.endswith(f"-{sha256(path)[:24]}")


def _cpu() -> str:
    return repr(sorted(torch.cpu.get_capabilities().items()))
