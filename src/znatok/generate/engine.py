"""Answers from a model: streamed or in batches, and the same either way.

A text depends on the engine, the prompt, the seed, the sampling options and the thread count, and on nothing else: not
on what else is asked at the same time, nor on what was asked before. What an engine must do for that is to say tokens
in :meth:`TokenEngine.tokens`; how they become text, and when a text ends, is the same for all of them and stands here.
"""

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from znatok.config import SampleOptions
from znatok.errors import UsageError
from znatok.generate.text import StopCutter, TextStream, spelled
from znatok.tokens.chat import ChatFormat, Message, looks_like_control

DEFAULT_SAMPLE = SampleOptions()
UNUSED = re.compile(r"[<\[]unused_?\d+[>\]]")  # Gemma's and BERT's spare tokens: nobody trained them


class TooLong(UsageError):
    """A dialogue that takes more tokens than the model sees."""


class Stop(StrEnum):
    """Why an answer ended."""

    END = "end"  # the model said so
    WORDS = "words"  # a string that whoever asked wants no more than
    LENGTH = "length"  # max_new_tokens
    INTERRUPTED = "interrupted"  # the reader


@dataclass(frozen=True, slots=True)
class Request:
    """A dialogue to be continued, and how.

    Attributes:
        messages: the dialogue.
        sample: how the answer is drawn.
        seed: the same.
        likeliest: None, or how likely each token was is told as well, and so many of the likeliest in its place; only
            torch does it.
    """

    messages: tuple[Message, ...]
    sample: SampleOptions = DEFAULT_SAMPLE
    seed: int = 42
    likeliest: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said; ``tokens`` counts the end token, ``seconds`` runs from the request's start."""

    text: str
    tokens: int
    stop: Stop
    seconds: float


class Speech:
    """One answer in the making: tokens in, text out; the pieces joined are the answer.

    White space at either end is no part of an answer, so it is held back until text follows it.

    Attributes:
        text: what was said so far.
        tokens: how many were taken, the end token included.
        stop: why it ended; None while it goes on.
    """

    def __init__(self, chat: ChatFormat, stops: Sequence[str] = ()) -> None:
        """Begin an answer that ends before any of the strings ``stops``, none of them empty."""
        self.text = ""
        self.tokens = 0
        self.stop: Stop | None = None
        self._stream = TextStream(chat.tokenizer)
        self._cutter = StopCutter(stops)
        self._space = ""

    def take(self, token: int, stop: Stop | None) -> str:
        """Take the next token, and why the engine ended with it if it did; return the text that is now certain."""
        self.tokens += 1
        piece = "" if stop is Stop.END else self._stream.add(token)
        if stop is not None:
            piece += _whole(self._stream.flush(), stop)
        piece = self._cutter.add(piece)
        if stop is not None:
            piece += self._cutter.flush()
        self.stop = Stop.WORDS if self._cutter.found else stop
        return self._without_end(piece)

    def _without_end(self, piece: str) -> str:
        whole = self._space + piece if self.text else piece.lstrip()
        said = whole.rstrip()
        self._space = whole[len(said) :]
        self.text += said
        return said


class Engine(Protocol):
    """Anything that answers; ``last`` is what the last stream came to, None until it has ended."""

    name: str
    last: Answer | None

    def fits(self, request: Request) -> bool:
        """Tell whether the model sees the whole dialogue and an answer of full length."""
        ...

    def stream(self, request: Request) -> Iterator[str]:
        """Yield the answer in pieces of whole characters."""
        ...

    def answers(self, requests: Sequence[Request], done: Callable[[int, Answer], None] | None = None) -> list[Answer]:
        """Answer many requests; ``done`` hears of each as it ends."""
        ...


class TokenEngine(ABC):
    """An engine that says tokens; what is the same for all of those."""

    name: str
    last: Answer | None = None
    """What the last stream came to, once it has ended; None while one runs, and after one that was broken off."""

    def __init__(self, chat: ChatFormat, context: int) -> None:
        self._chat = chat
        self._context = context  # tokens the model sees, prompt and answer together
        self._spelled: dict[int, bytes] = {}

    @abstractmethod
    def tokens(self, requests: Sequence[Request]) -> Iterator[tuple[int, int, Stop | None]]:
        """Yield (request, token, why it ended or None) in the order tokens are drawn.

        Raises:
            TooLong: a dialogue is longer than the model's context.
        """

    def prompt_ids(self, request: Request) -> list[int]:
        """Return what the model reads before it answers a request."""
        return self._chat.prompt_ids(request.messages)

    def fits(self, request: Request) -> bool:
        """Tell whether the model sees the whole dialogue and an answer of full length."""
        return len(self.prompt_ids(request)) + request.sample.max_new_tokens <= self._context

    def spelled(self, token: int) -> bytes:
        """Return what a token stands for, in UTF-8; alone it may be a part of a character."""
        if token not in self._spelled:
            self._spelled[token] = spelled(self._chat.tokenizer, token)
        return self._spelled[token]

    def speech(self, stops: Sequence[str] = ()) -> Speech:
        """Return what turns the tokens of one answer into text, up to any of the strings ``stops``."""
        return Speech(self._chat, stops)

    def stream(self, request: Request) -> Iterator[str]:
        """Yield the answer to one request in pieces of whole characters."""
        speech = self.speech()
        started = time.perf_counter()
        self.last = None
        for _, token, stop in self.tokens([request]):
            if piece := speech.take(token, stop):
                yield piece
            if stop is not None:
                self.last = Answer(speech.text, speech.tokens, stop, time.perf_counter() - started)

    def answers(self, requests: Sequence[Request], done: Callable[[int, Answer], None] | None = None) -> list[Answer]:
        """Answer every request.

        Raises:
            TooLong: a dialogue is longer than the model's context.
        """
        said: list[list[int]] = [[] for _ in requests]
        finished: list[Answer | None] = [None] * len(requests)
        started = time.perf_counter()
        for index, token, stop in self.tokens(requests):
            said[index].append(token)
            if stop is not None:
                words = said[index][:-1] if stop is Stop.END else said[index]
                text = self._chat.tokenizer.decode(words, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                answer = Answer(_whole(text, stop).strip(), len(said[index]), stop, time.perf_counter() - started)
                finished[index] = answer
                if done is not None:
                    done(index, answer)
        return [answer for answer in finished if answer is not None]

    def _prompt(self, request: Request) -> tuple[list[int], int]:
        """Return a request's prompt as ids, and how many tokens may follow it."""
        ids = self.prompt_ids(request)
        if len(ids) >= self._context:
            raise TooLong(
                "the dialogue takes {n} tokens and the model sees {limit}: shorten the question or /clear the dialogue",
                n=len(ids),
                limit=self._context,
            )
        return ids, min(request.sample.max_new_tokens, self._context - len(ids))

    def _stop(self, token: int, said: int, limit: int) -> Stop | None:
        """Tell whether the answer ends with this token, its ``said``-th."""
        return Stop.END if token in self._chat.stop_ids else Stop.LENGTH if said >= limit else None


def sayable(chat: ChatFormat) -> set[int]:
    """Return the ids that may be said: all text, and what ends an answer; no other control token, and no spare one."""
    vocabulary = chat.tokenizer.get_vocab()
    special: Sequence[int] = getattr(chat.tokenizer, "all_special_ids", [])
    control = {number for token, number in vocabulary.items() if looks_like_control(token) or UNUSED.fullmatch(token)}
    return (set(vocabulary.values()) - {*special, *control}) | chat.stop_ids


def _whole(text: str, stop: Stop) -> str:
    """Drop the half of a character that a length limit left at the end."""
    return text.rstrip("�") if stop is Stop.LENGTH else text
