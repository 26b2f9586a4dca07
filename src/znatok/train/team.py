"""Training by several processes: each computes its part of every batch, and all take the same step.

An adapter is small, so all that the processes have to tell each other is a sum of gradients in every step. They are
started by ``torchrun`` or ``accelerate launch``, whose variables :func:`join` reads and then takes out of the
environment: the Trainer and accelerate are to see one process and wrap nothing. Their DistributedDataParallel waits
for the model's ``forward``, which the fast engine never calls.

The first process keeps the run. Each other one keeps the same books in a folder of its own that goes when it ends, so
that best adapter, early stopping and signals are decided alike everywhere by the same code.
"""

import datetime
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from znatok.errors import SystemFault, TrainingError, UsageError

PATIENCE = datetime.timedelta(hours=6)
"""For the others to reach the same point; the slowest may be rounding a model or validating. One that ends is noticed
at once."""
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

GONE = re.compile("gloo|nccl|connection", re.IGNORECASE)
"""In what torch says where another process is gone; gloo's errors have no class of their own."""

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """The processes that train together, as one of them sees it; by default it is alone.

    Attributes:
        rank: which one this is, counted from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Tell whether this process speaks and writes for all."""
        return self.rank == 0

    def part(self, items: Sequence[T]) -> list[T]:
        """Return the share of this process; all shares together are the whole."""
        return list(items[self.rank :: self.size])

    def total(self, *numbers: float) -> list[float]:
        """Return the sum of each number over all processes; all get the same, to the bit."""
        if self.size == 1:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64, device=_device())
        self._reduce(sums)
        return [float(number) for number in sums]

    def each(self, number: float) -> list[float]:
        """Return the number of every process, by rank."""
        return self.total(*(number if rank == self.rank else 0.0 for rank in range(self.size)))

    def add_up(self, parameters: Sequence[Tensor]) -> None:
        """Replace each gradient by its sum over all processes, all of them in one message."""
        if self.size == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([gradient.reshape(-1).float() for gradient in gradients])
        self._reduce(flat)
        for parameter, summed in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = summed.view_as(parameter).to(parameter.dtype)

    def refuse_apart(self, parameters: Sequence[Tensor]) -> None:
        """Raise TrainingError unless all processes hold the same weights."""
        own = float(sum(p.detach().double().abs().sum() for p in parameters))
        shares = self.each(own)
        if len(set(shares)) > 1:
            raise TrainingError(
                "the processes hold different adapters at the end ({shares}); use the same versions on every machine",
                shares=", ".join(f"{share:.6g}" for share in shares),
            )

    def _reduce(self, numbers: Tensor) -> None:
        try:
            dist.all_reduce(numbers)
        except RuntimeError as error:
            raise self._left() from error

    @contextmanager
    def losses_told(self) -> Iterator[None]:
        """Raise SystemFault where torch says, in a step or a layer, that another process is gone."""
        try:
            yield
        except RuntimeError as error:
            if self.size > 1 and (isinstance(error, dist.DistError) or GONE.search(str(error))):
                raise self._left() from error
            raise

    def _left(self) -> SystemFault:
        return SystemFault(
            "process {rank} of {size}: another one ended or can't be reached; see what it said, then go on with"
            " --resume",
            rank=self.rank, size=self.size,
        )  # fmt: skip


ALONE = Team()


@contextmanager
def join() -> Iterator[Team]:
    """Lend the team this process was started in: what ``torchrun`` says, or it is alone.

    Raises:
        UsageError: the variables are there in part.
        SystemFault: the others can't be reached.
    """
    said = {name: os.environ.get(name, "") for name in VARIABLES}
    if said["WORLD_SIZE"] in {"", "1"}:
        yield ALONE
        return
    if missing := [name for name, value in said.items() if not value]:
        raise UsageError(
            "WORLD_SIZE={size} without {name}: start it with torchrun", size=said["WORLD_SIZE"], name=missing[0]
        )
    team = Team(int(said["RANK"]), int(said["WORLD_SIZE"]))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(said["LOCAL_RANK"]))
    try:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        why = str(error).splitlines()[0][:200]
        raise SystemFault(
            "process {rank} of {size} can't reach the others: {why}", rank=team.rank, size=team.size, why=why
        ) from error
    for name in VARIABLES:
        del os.environ[name]
    try:
        yield team
    finally:
        os.environ.update(said)
        dist.destroy_process_group()


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
