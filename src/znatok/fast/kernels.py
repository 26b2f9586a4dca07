"""The kernels of this machine: compiled where they can be, eager elsewhere."""

from types import ModuleType
from typing import Any

from znatok.fast import compiled, eager
from znatok.fast.compiler import build


def kernels() -> Any:
    """Return the module whose functions do the element-wise work: ``compiled`` or its reference, ``eager``."""
    chosen: ModuleType = eager if build().library is None else compiled
    return chosen
