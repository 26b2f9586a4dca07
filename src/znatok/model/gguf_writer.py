"""gguf's writer, made safe: closed whatever happens, and not silent about a full disk."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

import gguf
import numpy as np


class Loud(np.ndarray[Any, Any]):
    """An array that reports a full disk.

    numpy's own ``tofile``, which gguf calls, hands the bytes to a C stream and does not look whether they arrive: what
    still is in the stream's buffer when the disk is full would be missing from the file without a word.
    """

    def tofile(self, fid: IO[bytes], *_text: Any) -> None:  # type: ignore[override]  # gguf names no other argument
        """Write the bytes; OSError where they don't fit."""
        fid.write(np.ascontiguousarray(self).data)


def loud(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return an array as one that reports a full disk while gguf's writer writes it."""
    return array.view(Loud)


@contextmanager
def gguf_writer(path: Path, architecture: str) -> Iterator[gguf.GGUFWriter]:
    """Lend a writer of a file."""
    with closing(gguf.GGUFWriter(path, architecture)) as writer:
        yield writer
