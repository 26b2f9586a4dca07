"""znatok: a small open model becomes an expert of your field, and the numbers say whether it did.

The names below are the public interface; each is imported at its first use, so that ``import znatok`` costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "ChatFormat": "znatok.tokens.chat",
    "Expert": "znatok.expert",
    "Run": "znatok.runs",
    "SampleOptions": "znatok.config",
    "TrainConfig": "znatok.config",
    "ZnatokError": "znatok.errors",
    "compare": "znatok.eval.compare",
    "open_expert": "znatok.expert",
    "plan": "znatok.train.run",
    "read_pairs": "znatok.data.load",
    "train": "znatok.train.run",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    """Import a public name from the module it lives in (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'znatok' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
