"""The kernels of this machine: compiled where they can be, eager elsewhere."""

from types import ModuleType
from typing import Any

from znatok.fast import compiled, eager
from znatok.fast.compiler import build


def rows_apart() -> bool:
    """Tell whether the kernels compute each row by itself: the compiled ones do, torch's products know the others."""
    return kernels() is compiled


def kernels() -> Any:
    """Return the module whose functions do the element-wise work: ``compiled`` or its reference, ``eager``."""
    chosen: ModuleType = eager if build().library is None else compiled
    return chosen
