"""Answers from a model: streamed or in batches, and the same either way.

A text depends on the prompt, the seed, the sampling options and the thread count, and on nothing else. Three things
make that true where ``transformers.generate`` does not (it draws from the global generator, and a batch changes the
rounding of every row in it):

* each request has a generator of its own;
* a decoding step always computes the same number of rows, so a batch changes no row's rounding (see ``rows``);
* attention looks at one row at a time, over that row's own keys.

Shapes: R rows (``rows.SLOTS``), V vocabulary.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import torch
from torch import Tensor

from znatok.config import SampleOptions
from znatok.errors import UsageError
from znatok.generate.rows import ROW_ATTENTION, SLOTS, RowCache
from znatok.generate.sampling import draw
from znatok.generate.text import TextStream
from znatok.tokens.chat import ChatFormat, Message, looks_like_control

DEFAULT_SAMPLE = SampleOptions()


class Stop(StrEnum):
    """Why an answer ended."""

    END = "end"  # the model said so
    LENGTH = "length"  # max_new_tokens
    INTERRUPTED = "interrupted"  # the reader


@dataclass(frozen=True, slots=True)
class Request:
    """A dialogue to be continued, and how."""

    messages: tuple[Message, ...]
    sample: SampleOptions = DEFAULT_SAMPLE
    seed: int = 42


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said; ``tokens`` counts the end token, ``seconds`` runs from the request's start."""

    text: str
    tokens: int
    stop: Stop
    seconds: float


class Engine(Protocol):
    """Anything that answers."""

    name: str

    def stream(self, request: Request) -> Iterator[str]:
        """Yield the answer in pieces of whole characters."""
        ...

    def answers(self, requests: Sequence[Request], done: Callable[[int, Answer], None] | None = None) -> list[Answer]:
        """Answer many requests; ``done`` hears of each as it ends."""
        ...


@dataclass(slots=True)
class _Row:
    """A request being answered."""

    index: int
    request: Request
    generator: torch.Generator
    started: float
    limit: int
    said: list[int] = field(default_factory=list)


class TorchEngine:
    """Answers with a Hugging Face model in this process: exact, any architecture znatok loads."""

    name = "torch"

    def __init__(self, model: Any, chat: ChatFormat) -> None:
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._chat = chat
        self._layers = self._model.config.num_hidden_layers
        self._context = self._model.config.max_position_embeddings
        self._device = self._model.get_input_embeddings().weight.device
        self._banned_V = self._banned_tokens()

    def stream(self, request: Request) -> Iterator[str]:
        """Yield the answer to one request in pieces of whole characters."""
        text, begun = TextStream(self._chat.tokenizer), False
        for _, token, stop in self._decode([request]):
            piece = "" if stop is Stop.END else text.add(token)
            if stop is not None:
                piece += _whole(text.flush(), stop)
            if not begun:
                piece = piece.lstrip()
            if piece:
                begun = True
                yield piece

    def answers(self, requests: Sequence[Request], done: Callable[[int, Answer], None] | None = None) -> list[Answer]:
        """Answer every request; rows that end make room for the next ones.

        Raises:
            UsageError: a dialogue is longer than the model's context.
        """
        said: list[list[int]] = [[] for _ in requests]
        finished: list[Answer | None] = [None] * len(requests)
        started = time.perf_counter()
        for index, token, stop in self._decode(requests):
            said[index].append(token)
            if stop is not None:
                words = said[index][:-1] if stop is Stop.END else said[index]
                text = self._chat.tokenizer.decode(words, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                answer = Answer(_whole(text, stop).strip(), len(said[index]), stop, time.perf_counter() - started)
                finished[index] = answer
                if done is not None:
                    done(index, answer)
        return [answer for answer in finished if answer is not None]

    def _decode(self, requests: Sequence[Request]) -> Iterator[tuple[int, int, Stop | None]]:
        """Yield (request, token, why it ended or None) in the order tokens are drawn."""
        waiting = deque(enumerate(requests))
        cache = RowCache(self._layers)
        rows: list[_Row | None] = [None] * SLOTS
        while waiting or any(rows):
            for slot in range(SLOTS):
                if rows[slot] is None and waiting:
                    index, request = waiting.popleft()
                    row, logits_V = self._read_prompt(index, request, cache, slot)
                    rows[slot] = row
                    yield from self._take(rows, slot, logits_V, cache)
            if not any(rows):
                continue
            logits_RV = self._step(rows, cache)
            for slot in range(SLOTS):
                if rows[slot] is not None:
                    yield from self._take(rows, slot, logits_RV[slot], cache)

    @torch.inference_mode()
    def _read_prompt(self, index: int, request: Request, cache: RowCache, slot: int) -> tuple[_Row, Tensor]:
        ids = self._chat.prompt_ids(request.messages)
        if len(ids) >= self._context:
            raise UsageError(
                "the dialogue takes {n} tokens and the model sees {limit}: shorten the question or /clear the dialogue",
                n=len(ids),
                limit=self._context,
            )
        limit = min(request.sample.max_new_tokens, self._context - len(ids))
        row = _Row(index, request, torch.Generator().manual_seed(request.seed), time.perf_counter(), limit)
        cache.filling = (slot, len(ids) + limit)
        try:
            logits = self._forward(torch.tensor([ids]), torch.arange(len(ids))[None], cache, None)
        finally:
            cache.filling = None
        cache.lengths[slot] = len(ids)
        return row, logits[0]

    @torch.inference_mode()
    def _step(self, rows: Sequence[_Row | None], cache: RowCache) -> Tensor:
        """Compute the logits (R, V) that follow each row's last token."""
        tokens = [row.said[-1] if row else 0 for row in rows]
        positions = [cache.lengths[slot] if row else 0 for slot, row in enumerate(rows)]
        cache.lengths = [n + 1 if row else 0 for n, row in zip(cache.lengths, rows, strict=True)]
        return self._forward(torch.tensor(tokens)[:, None], torch.tensor(positions)[:, None], cache, cache.lengths)

    def _forward(self, ids: Tensor, positions: Tensor, cache: RowCache, rows: list[int] | None) -> Tensor:
        """Return the logits after the last token of each row, shape (rows, V).

        The head is called here and on a matrix: given the model's own three-dimensional slice of the last position,
        torch copies the whole head (0.5 GB for Qwen2.5) before it multiplies.
        """
        config = self._model.config
        before, training = config._attn_implementation, self._model.training
        config._attn_implementation = ROW_ATTENTION
        if training:
            self._model.eval()
        try:
            hidden = self._model.model(
                input_ids=ids.to(self._device),
                position_ids=positions.to(self._device),
                past_key_values=cache,
                use_cache=True,
                rows=rows,
            ).last_hidden_state[:, -1]
            logits: Tensor = self._model.get_output_embeddings()(hidden.contiguous())
        finally:
            config._attn_implementation = before
            if training:
                self._model.train()
        return logits.cpu()  # drawing takes microseconds, and is the same on every device

    @torch.inference_mode()
    def _take(
        self, rows: list[_Row | None], slot: int, logits_V: Tensor, cache: RowCache
    ) -> Iterator[tuple[int, int, Stop | None]]:
        """Draw a row's next token; free the row when it ends."""
        row = rows[slot]
        assert row is not None
        scores_V = logits_V.float().masked_fill(self._banned_V, -torch.inf)
        token = draw(scores_V, row.request.sample, row.said, row.generator)
        row.said.append(token)
        stop = Stop.END if token in self._chat.stop_ids else Stop.LENGTH if len(row.said) >= row.limit else None
        if stop is not None:
            rows[slot] = None
            cache.drop(slot)
        yield row.index, token, stop

    def _banned_tokens(self) -> Tensor:
        """Return a mask (V,) of what must never be said: control tokens that end nothing, and padding rows."""
        size = self._model.get_output_embeddings().weight.shape[0]
        vocabulary = self._chat.tokenizer.get_vocab()
        special: Sequence[int] = getattr(self._chat.tokenizer, "all_special_ids", [])
        control = {number for token, number in vocabulary.items() if looks_like_control(token)}
        allowed = (set(vocabulary.values()) - {*special, *control}) | self._chat.stop_ids
        banned_V = torch.ones(size, dtype=torch.bool)
        banned_V[[number for number in allowed if number < size]] = False
        return banned_V


def _whole(text: str, stop: Stop) -> str:
    """Drop the half of a character that a length limit left at the end."""
    return text.rstrip("�") if stop is Stop.LENGTH else text
