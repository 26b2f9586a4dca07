"""Answers with a Hugging Face model in this process.

Three things make a text depend on its own request only, where ``transformers.generate`` does not (it draws from the
global generator, and a batch changes the rounding of every row in it):

* each request has a generator of its own;
* a decoding step always computes the same number of rows, so a batch changes no row's rounding (see ``rows``);
* attention looks at one row at a time, over that row's own keys.

Shapes: R rows (``slots``), V vocabulary.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from znatok.errors import ModelError
from znatok.fast.kernels import rows_apart
from znatok.generate.engine import Request, Stop, TokenEngine, sayable
from znatok.generate.rows import INT8_SLOTS, ROW_ATTENTION, SLOTS, RowCache
from znatok.generate.sampling import Chances, chances, draw
from znatok.model.backbone import build_backbone, is_rounded, obstacle
from znatok.tokens.chat import ChatFormat


@dataclass(slots=True)
class _Row:
    """A request being answered."""

    key: Hashable
    request: Request
    generator: torch.Generator
    limit: int
    said: list[int] = field(default_factory=list)


Layers = Callable[[Tensor, Tensor, RowCache, list[int] | None], Tensor]
"""(ids (R, T), positions likewise, cache, number of keys of each row in a step or None for a prompt) -> hidden states
(R, D) of each row's last token, after the final norm."""


class TorchEngine(TokenEngine):
    """Answers with a Hugging Face model in this process: exact, any architecture znatok loads.

    A model in int8 is computed by the fast engine where it can, any other by transformers' own layers.
    """

    name = "torch"

    def __init__(self, model: Any, chat: ChatFormat, most: int | None = None) -> None:
        """Answer with a model, PEFT's wrapper around it or not, that sees ``most`` tokens if fewer than it could."""
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
        context = self._model.config.max_position_embeddings
        super().__init__(chat, min(context, most or context))
        self._depth = self._model.config.num_hidden_layers
        rounded = is_rounded(self._model)
        self._slots = INT8_SLOTS if rounded else SLOTS
        self._fast = rounded and not obstacle(self._model)
        self._device = self._model.get_input_embeddings().weight.device
        self._banned_V = self._banned_tokens()

    def tokens(self, requests: Sequence[Request]) -> Iterator[tuple[int, int, Stop | None]]:
        """Yield (request, token, why it ended or None); rows that end make room for the next ones."""
        waiting = deque(enumerate(requests))
        together = self.together()
        while waiting or together.size:
            for _slot in range(together.room):
                if waiting:
                    yield together.join(*waiting.popleft())
            if together.size:
                yield from together.step()

    def together(self) -> "Together":
        """Return a place where requests are answered together, with the adapters on or off as they are now."""
        return Together(self)

    @torch.inference_mode()
    def _read_prompt(
        self, key: Hashable, request: Request, cache: RowCache, slot: int, layers: Layers
    ) -> tuple[_Row, Tensor]:
        ids, limit = self._prompt(request)
        row = _Row(key, request, torch.Generator().manual_seed(request.seed), limit)
        cache.filling = (slot, len(ids) + limit)
        try:
            logits = self._logits(layers(torch.tensor([ids]), torch.arange(len(ids))[None], cache, None))
        finally:
            cache.filling = None
        cache.lengths[slot] = len(ids)
        return row, logits[0]

    @torch.inference_mode()
    def _step(self, rows: Sequence[_Row | None], cache: RowCache, layers: Layers) -> Tensor:
        """Compute the logits (R, V) that follow each row's last token."""
        tokens = [row.said[-1] if row else 0 for row in rows]
        positions = [cache.lengths[slot] if row else 0 for slot, row in enumerate(rows)]
        cache.lengths = [n + 1 if row else 0 for n, row in zip(cache.lengths, rows, strict=True)]
        ids, places = torch.tensor(tokens)[:, None], torch.tensor(positions)[:, None]
        return self._logits(layers(ids, places, cache, cache.lengths))

    def _logits(self, hidden_RD: Tensor) -> Tensor:
        """Return the logits (R, V).

        The head is called here and on a matrix: given the model's own three-dimensional slice of the last position,
        torch copies the whole head (0.5 GB for Qwen2.5) before it multiplies.
        """
        head = self._model.get_output_embeddings()
        logits: Tensor = head(hidden_RD.to(head.weight.dtype).contiguous())
        return logits.cpu()  # drawing takes microseconds, and is the same on every device

    def _model_layers(self, ids: Tensor, positions: Tensor, cache: RowCache, rows: list[int] | None) -> Tensor:
        """Compute by transformers' own layers."""
        config = self._model.config
        before, training = config._attn_implementation, self._model.training
        config._attn_implementation = ROW_ATTENTION
        if training:
            self._model.eval()
        try:
            hidden: Tensor = self._model.model(
                input_ids=ids.to(self._device),
                position_ids=positions.to(self._device),
                cache=cache,
                use_cache=True,
                rows=rows,
            ).last_hidden_state[:, -1]
        finally:
            config._attn_implementation = before
            if training:
                self._model.train()
        return hidden

    @torch.inference_mode()
    def _take(self, row: _Row, logits_V: Tensor) -> tuple[int, Stop | None, Chances | None]:
        """Draw a row's next token; tell why it ends with it, if it does, and how likely it was, if that was asked.

        Raises:
            ModelError: the logits are no numbers.
        """
        scores_V = logits_V.float().masked_fill(self._banned_V, -torch.inf)
        if not scores_V.amax().isfinite():  # NaN is the largest of all, and argmax would say its place as a token
            raise ModelError(
                "what the model computed are no numbers: its weights or the adapter's are damaged, or too large for "
                "{dtype}; another --dtype tells which",
                dtype=str(logits_V.dtype).removeprefix("torch."),
            )
        token = draw(scores_V, row.request.sample, row.said, row.generator)
        row.said.append(token)
        likeliest = row.request.likeliest
        told = None if likeliest is None else chances(logits_V, token, likeliest)
        return token, self._stop(token, len(row.said), row.limit), told

    def _banned_tokens(self) -> Tensor:
        """Return a mask (V,) of what must never be said: control tokens that end nothing, and padding rows."""
        size = self._model.get_output_embeddings().weight.shape[0]
        banned_V = torch.ones(size, dtype=torch.bool)
        banned_V[[number for number in sayable(self._chat) if number < size]] = False
        return banned_V


class Together:
    """Requests being answered together; they may join and leave between any two steps, and none feels it.

    A token comes as (key of its request, token, why the answer ended with it or None).
    """

    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine
        self._cache = RowCache(engine._depth, engine._slots)
        self._layers = _packed_layers(engine._model) if engine._fast else engine._model_layers
        self._rows: list[_Row | None] = [None] * engine._slots
        self.settled = engine._fast
        """Whether it keeps to the adapters it began with; else they have to be on or off as they were then."""
        self.chances: Chances | None = None
        """Of the token that came last, and the likeliest in its place; None where its request asks for none."""

    @property
    def size(self) -> int:
        """Return how many are being answered."""
        return len(self._rows) - self.room

    @property
    def room(self) -> int:
        """Return how many more may join."""
        return self._rows.count(None)

    def join(self, key: Hashable, request: Request) -> tuple[Any, int, Stop | None]:
        """Read a request's prompt and return its first token; there must be :attr:`room`.

        Raises:
            UsageError: the dialogue is longer than the model's context.
        """
        slot = self._rows.index(None)
        row, logits_V = self._engine._read_prompt(key, request, self._cache, slot, self._layers)
        self._rows[slot] = row
        return self._said(slot, logits_V)

    def step(self) -> Iterator[tuple[Any, int, Stop | None]]:
        """Yield the next token of everyone."""
        logits_RV = self._engine._step(self._rows, self._cache, self._layers)
        for slot, row in enumerate(self._rows):
            if row is not None:
                yield self._said(slot, logits_RV[slot])

    def leave(self, key: Hashable) -> None:
        """Forget a request, whether it is here or not."""
        for slot, row in enumerate(self._rows):
            if row is not None and row.key == key:
                self._free(slot)

    def _said(self, slot: int, logits_V: Tensor) -> tuple[Any, int, Stop | None]:
        row = self._rows[slot]
        assert row is not None
        token, stop, self.chances = self._engine._take(row, logits_V)
        if stop is not None:
            self._free(slot)
        return row.key, token, stop

    def _free(self, slot: int) -> None:
        self._rows[slot] = None
        self._cache.drop(slot)


def _packed_layers(model: Any) -> Layers:
    """Return what computes a rounded model by the fast engine; of a step, the rows in use."""
    backbone = build_backbone(model).answering(INT8_SLOTS)
    apart = rows_apart()

    def layers(ids: Tensor, positions: Tensor, cache: RowCache, rows: list[int] | None) -> Tensor:
        if rows is None:
            last = torch.tensor([ids.shape[1] - 1])
            return backbone.continued(ids.flatten(), positions.flatten(), cache.attend, last)
        cache.present = [slot for slot, length in enumerate(rows) if length or not apart]
        used = torch.tensor(cache.present)
        hidden = backbone.continued(ids[used].flatten(), positions[used].flatten(), cache.attend)
        return hidden.new_zeros(len(rows), hidden.shape[1]).index_copy_(0, used, hidden)

    return layers
