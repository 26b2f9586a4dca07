"""Feed a reader bytes that reach new branches of it, and let nothing out of it but its own errors.

``python tests/trust/fuzz.py READER [libFuzzer's flags] [CORPUS ...]``, with a reader of :data:`READERS`. A corpus is a
folder of files to begin with; what reaches something new is written to the first one. Needs atheris, which is a build
of libFuzzer (https://llvm.org/docs/LibFuzzer.html).
"""

import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["znatok"]):
    from znatok.config import TrainConfig
    from znatok.data.check import check_file
    from znatok.errors import ZnatokError
    from znatok.exam.items import read_items
    from znatok.model import gguf_config, gguf_header, gguf_tokenizer
    from znatok.retrieve import read_knowledge


def pairs(path: Path) -> None:
    """Read a data file, and make the report of ``znatok data check``."""
    for line in check_file(path).lines():
        if not line.isprintable():
            raise AssertionError(f"a terminal would obey {line!r}")


def items(path: Path) -> None:
    """Read keyed questions."""
    read_items([path])


def knowledge(path: Path) -> None:
    """Read what answers may be looked up in."""
    read_knowledge(path)


def options(path: Path) -> None:
    """Read the options of a run."""
    TrainConfig.from_toml(path)


def gguf(path: Path) -> None:
    """Read a model's header, its shape and its tokenizer: all that comes before tensors are mapped."""
    header = gguf_header.read_header(path)
    gguf_config.build(header, tied=True)
    gguf_tokenizer.build_tokenizer(header)


def broken(path: Path) -> None:
    """Fail at a certain byte, to see that this program would tell."""
    if b"!" in path.read_bytes():
        raise RecursionError("planted")


READERS = {
    "pairs": (pairs, ".jsonl"),
    "items": (items, ".jsonl"),
    "knowledge": (knowledge, ".jsonl"),
    "options": (options, ".toml"),
    "gguf": (gguf, ".gguf"),
    "broken": (broken, ".bin"),
}


def main() -> None:
    """Fuzz the reader that the first word names."""
    read, suffix = READERS[sys.argv[1]]
    memory = Path("/dev/shm")  # noqa: S108  # thousands of files a second are no work for a disk
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        path = Path(folder, f"fuzz{suffix}")

        def once(content: bytes) -> None:
            path.write_bytes(content)
            try:
                read(path)
            except ZnatokError as error:
                if "\n" in str(error) and read is not pairs:  # pairs lists its problems, a line for each
                    raise AssertionError(f"more than one line: {str(error)!r}") from error

        os.environ["ZNATOK_LANG"] = "en"
        atheris.Setup([sys.argv[0], *sys.argv[2:]], once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
