"""The input embedding of a GGUF file, of which only the rows are read that a question is about.

The choice of a chat format asks how many rows point where the end token's row points. Reading 150 000 rows for that
takes two seconds, half of what a user waits for a fast chat to start; a few columns of each row already exclude almost
all of them, without a doubt.

Shapes: V vocabulary, D width, S columns looked at first, B rows at once.
"""

import mmap
from collections.abc import Iterator

import torch
from gguf.constants import GGML_QUANT_SIZES
from torch import Tensor

from znatok.model import dequant
from znatok.model.gguf_header import Header
from znatok.model.gguf_header import Tensor as Stored

COLUMNS = 256
TWIN = 0.999  # cosine above which ``untrained_twins`` calls two rows twins; a test compares
SLACK = 1e-4  # far above what float32 and the base's own number format round away


class FileEmbedding:
    """What ``choose_format`` does with an embedding, done on a file."""

    def __init__(self, header: Header, *, tied: bool) -> None:
        self._path = header.path
        names = ("token_embd.weight", "output.weight") if tied else ("token_embd.weight",)
        stored = [header.tensors[name] for name in names if name in header.tensors]
        self._stored: Stored = max(stored, key=lambda tensor: tensor.nbytes)  # the finer of two, as the loader takes it
        self.shape = self._stored.shape
        self._token = 0

    def __getitem__(self, token: int) -> Tensor:
        """Return one row, shape (D,)."""
        self._token = token
        return self._rows(torch.tensor([token]))[0]

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield, in blocks of at most ``size``, the rows that may be twins of the one asked for; all others are none.

        With u the wanted row and v another, both of length 1, cos(u, v) > TWIN means |u - v|² < 2 - 2 TWIN. Over some
        of the columns that is no more, and the distance from u to the line through v is no more than that to v.
        """
        wanted_D = self[self._token]
        wanted_D = wanted_D / wanted_D.abs().max()
        wanted_D /= wanted_D.norm()
        near_S = wanted_D[: self._head]
        allowed = (2 - 2 * TWIN) + SLACK
        found = []
        for first in range(0, self.shape[0], size):
            rows = torch.arange(first, min(first + size, self.shape[0]))
            heads_BS = self._rows(rows, whole=False)
            heads_BS = heads_BS / heads_BS.abs().amax(1, keepdim=True).clamp_min(1e-38)
            along_B = heads_BS @ near_S / heads_BS.norm(dim=1).clamp_min(1e-12)
            found.append(rows[near_S.square().sum() - along_B.square() <= allowed])
        for rows in torch.cat(found).split(size):
            yield self._rows(rows)

    @property
    def _head(self) -> int:
        """Columns looked at first: whole blocks."""
        block = int(GGML_QUANT_SIZES[self._stored.kind][0])
        return min(self.shape[1], max(block, COLUMNS // block * block))

    def _rows(self, rows: Tensor, *, whole: bool = True) -> Tensor:
        """Return rows by number, float32, shape (B, D) or (B, S)."""
        block, size = GGML_QUANT_SIZES[self._stored.kind]
        columns = self.shape[1] if whole else self._head
        with self._path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
            raw = torch.frombuffer(mapped, dtype=torch.uint8, offset=self._stored.start, count=self._stored.nbytes)
            chosen = raw.view(self.shape[0], -1, size)[rows, : columns // block]
            del raw  # a mapping that a tensor still looks at can't be closed
        return dequant.dequantise(chosen.reshape(-1, size), self._stored.kind).view(len(rows), columns)
