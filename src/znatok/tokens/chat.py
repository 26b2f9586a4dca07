r"""The one place that knows how a dialogue becomes token ids.

Training, chat, comparison and every later export render through :class:`ChatFormat`; a golden test renders one dialogue
through each of them. Control tokens enter only as ids written here: text from users and data is tokenised with special
tokens switched off, so no text can ever become one.

Two formats exist:

``chatml``  ``<|im_start|>role\n…<|im_end|>``: instruct models that were trained with it (Qwen2.5-Instruct, SmolLM2).
``plain``   headed sections closed by the model's own end-of-text token: base models. Qwen2.5's base never trained
            ``<|im_end|>`` (its embedding is one of about 280 identical rows, QwenLM/Qwen3#1064), and an adapter that
            leaves the embedding alone can't teach it to stop there.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import groupby
from typing import Any, Protocol

import torch

from znatok.errors import ModelError, _

IDENTICAL_ROWS = 8
"""So many rows in the same direction as the end token's: nobody trained it."""


CHATML_JINJA = (
    "{% if messages[0].role != 'system' and SYSTEM %}<|im_start|>system\n{{ SYSTEM }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN_JINJA = (
    "{{ BOS }}{% if messages[0].role != 'system' %}{{ SYSTEM }}{% endif %}"
    "{% for message in messages %}{% set text = message.content | trim %}"
    "{% if message.role == 'system' %}{{ text }}"
    "{% elif message.role == 'user' %}{% if not loop.first or SYSTEM %}{{ '\\n\\n' }}{% endif %}### User:\n{{ text }}"
    "{% else %}{{ '\\n\\n' }}### Assistant:\n{{ text }}{{ END }}{% endif %}{% endfor %}"  # a line feed after %} is lost
    "{% if add_generation_prompt %}{{ '\\n\\n' }}### Assistant:\n{% endif %}"
)


class Role(StrEnum):
    """Who speaks."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a dialogue."""

    role: Role
    text: str


class Tokenizer(Protocol):
    """What znatok needs of a Hugging Face tokenizer."""

    eos_token_id: int | None
    bos_token_id: int | None

    def __call__(self, text: str | list[str], **kwargs: Any) -> Any:
        """Encode one text, or many at once."""
        ...

    def __len__(self) -> int:
        """Return the number of tokens, added ones included."""
        ...

    def decode(self, ids: Sequence[int], **kwargs: Any) -> str:
        """Decode."""
        ...

    def convert_ids_to_tokens(self, ids: int) -> str:
        """Return the vocabulary's name of a token."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """Return token → id."""
        ...


@dataclass(frozen=True)
class ChatFormat:
    """A format bound to a tokenizer.

    Attributes:
        name: ``chatml`` or ``plain``.
        reason: why this one was chosen, for people.
        tokenizer: the model's tokenizer.
        end_id: the token that ends an answer; trained, and part of every answer's loss.
    """

    name: str
    reason: str
    tokenizer: Tokenizer
    end_id: int

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Return every id at which an answer is over."""
        ids = {self.end_id}
        if self.tokenizer.eos_token_id is not None:
            ids.add(self.tokenizer.eos_token_id)
        vocabulary = self.tokenizer.get_vocab()
        ids |= {vocabulary[t] for t in ("<|endoftext|>", "<|im_end|>", "<end_of_turn>") if t in vocabulary}
        return frozenset(ids)

    def text_ids(self, text: str) -> list[int]:
        """Tokenise text in which nothing is a control token."""
        if (learned := self._learned.get(text)) is not None:
            return list(learned)
        ids: list[int] = []
        for part in self._inside_control.split(_neutral(text)):
            ids += self.tokenizer(part, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return list(self._shared(ids))

    def learn_texts(self, dialogues: Iterable[Sequence[Message]], answers: Iterable[str]) -> None:
        """Tokenise the texts of many prompts and answers at once; asked for one by one next, they are at hand.

        A call of the tokenizer costs more than the text it is given. What was learned before is forgotten.
        """
        texts = {run for messages in dialogues for run in self._runs(self._prompt(messages)) if isinstance(run, str)}
        texts |= {text.strip() for text in answers}
        whole = [text for text in texts if self._inside_control.split(_neutral(text)) == [text]]
        found = self.tokenizer(whole, add_special_tokens=False, split_special_tokens=True)["input_ids"] if whole else []
        self._learned.clear()
        self._learned.update(zip(whole, map(self._shared, found), strict=True))

    @cached_property
    def _learned(self) -> dict[str, tuple[int, ...]]:
        return {}

    def _shared(self, ids: Iterable[int]) -> tuple[int, ...]:
        """Return ids as numbers that all examples share: a hundred thousand of them would fill memory otherwise."""
        numbers = self._numbers
        return tuple(numbers[i] if i < len(numbers) else i for i in ids)

    @cached_property
    def _numbers(self) -> list[int]:
        return list(range(len(self.tokenizer)))

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Render a dialogue up to the point where the assistant is to speak.

        Args:
            messages: the dialogue, its last message the user's. Texts are stripped of white space at both ends.

        Returns:
            Token ids; the answer's ids can be appended as they are.
        """
        ids: list[int] = []
        for run in self._runs(self._prompt(messages)):
            ids += self.text_ids(run) if isinstance(run, str) else run
        return ids

    def answer_ids(self, text: str) -> list[int]:
        """Render an answer: its tokens and the end token, exactly what is trained."""
        return [*self.text_ids(text.strip()), self.end_id]

    def jinja(self, system: str) -> str:
        """Return this format as a chat template for other programs, with our system message as its default.

        A test compares what it renders with :meth:`prompt_ids`.
        """
        template = CHATML_JINJA if self.name == "chatml" else PLAIN_JINJA
        names = {number: token for token, number in self.tokenizer.get_vocab().items()}
        bos = "".join(names[number] for number in self.bos if isinstance(number, int))
        quoted = {"SYSTEM": system.strip(), "END": names[self.end_id], "BOS": bos}
        # all at once: a system message may hold the word END
        return re.sub("SYSTEM|END|BOS", lambda found: json.dumps(quoted[found[0]], ensure_ascii=False), template)

    def _prompt(self, messages: Sequence[Message]) -> list[str | int]:
        pieces: list[str | int] = list(self.bos)
        for position, message in enumerate(messages):
            pieces += self._turn(message.role, message.text.strip(), first=position == 0)
        return [*pieces, *self._opening]

    def _runs(self, pieces: Sequence[str | int]) -> Iterator[str | list[int]]:
        """Yield each run of text as a whole, as any program that renders a template to one string tokenises it."""
        for is_text, run in groupby(pieces, lambda piece: isinstance(piece, str)):
            parts = list(run)
            yield "".join(map(str, parts)) if is_text else [int(number) for number in parts]

    def _turn(self, role: Role, text: str, *, first: bool) -> list[str | int]:
        if self.name == "chatml":
            return [self._im_start, f"{role}\n{text}", self.end_id, "\n"]
        if role is Role.SYSTEM:
            return [text]
        if role is Role.USER:
            return [("" if first else "\n\n") + f"### User:\n{text}"]
        return [f"\n\n### Assistant:\n{text}", self.end_id]

    @cached_property
    def _inside_control(self) -> re.Pattern[str]:
        """Match between the first two characters of each control token, where text is cut so that none is seen.

        ``split_special_tokens`` alone leaves those that the tokenizer doesn't call special: Qwen's ``<|fim_prefix|>``.
        """
        tails = [re.escape(token[1:]) for token in sorted(self.tokenizer.get_vocab()) if looks_like_control(token)]
        return re.compile(f"(?<=<)(?={'|'.join(tails)})" if tails else "(?!)")

    @cached_property
    def _opening(self) -> tuple[str | int, ...]:
        return (self._im_start, "assistant\n") if self.name == "chatml" else ("\n\n### Assistant:\n",)

    @cached_property
    def bos(self) -> tuple[int, ...]:
        """Return the ids a dialogue begins with; most models have none."""
        # Gemma needs its <bos>; Qwen has none and SmolLM2's is <|im_start|> itself, which ChatML writes anyway.
        bos = self.tokenizer.bos_token_id
        return (bos,) if self.name == "plain" and bos is not None and bos != self.end_id else ()

    @cached_property
    def _im_start(self) -> int:
        return self.tokenizer.get_vocab()["<|im_start|>"]


def looks_like_control(token: str) -> bool:
    """Tell whether a token is written like ``<|im_end|>``: such tokens steer a model and are no text."""
    return len(token) > 4 and token.startswith("<|") and token.endswith("|>")


def _neutral(text: str) -> str:
    # transformers marks sanitised control tokens with two private-use characters; in user text they mean nothing.
    # Half a surrogate pair, from a command line that is not UTF-8, is no character and no tokenizer takes it.
    return re.sub("[\ud800-\udfff]", "\ufffd", text.replace("\U000f0000", "").replace("\U000f0001", ""))


def dialogue(question: str, system: str = "", history: Sequence[Message] = ()) -> list[Message]:
    """Return the messages of a question, with the system message first when there is one."""
    opening = [Message(Role.SYSTEM, system)] if system.strip() else []
    return [*opening, *history, Message(Role.USER, question)]


def choose_format(tokenizer: Tokenizer, embedding_VD: torch.Tensor, name: str = "auto") -> ChatFormat:
    """Choose the format whose end token the model has really trained.

    Args:
        tokenizer: the model's tokenizer.
        embedding_VD: input embedding, shape (vocabulary, width), any float dtype.
        name: ``auto``, or a format a run was trained with.

    Raises:
        ModelError: there is no usable end token.
    """
    vocabulary = tokenizer.get_vocab()
    im_start, im_end = vocabulary.get("<|im_start|>"), vocabulary.get("<|im_end|>")
    has_chatml = im_start is not None and im_end is not None
    if name == "chatml" or (name == "auto" and has_chatml):
        if im_end is None or im_start is None:
            raise ModelError("the tokenizer has no <|im_start|> and <|im_end|>: this model can't use the chatml format")
        twins = untrained_twins(embedding_VD, im_end)
        if name == "chatml" or twins < IDENTICAL_ROWS:
            return ChatFormat("chatml", _("<|im_end|> is trained in this model"), tokenizer, im_end)
        reason = _("<|im_end|> is one of {n} identical embedding rows, never trained: base model", n=twins + 1)
    elif has_chatml:
        reason = _("the run was trained with it")
    else:
        reason = _("the tokenizer has no ChatML tokens")
    end = tokenizer.eos_token_id
    if has_chatml and (end == im_end or end is None):
        end = vocabulary.get("<|endoftext|>")
    if end is None:
        raise ModelError("the tokenizer names no end-of-text token: answers of this model could never stop")
    return ChatFormat("plain", reason, tokenizer, end)


def untrained_twins(embedding_VD: torch.Tensor, token: int, threshold: float = 0.999) -> int:
    """Count the other rows of the embedding that point where this token's row points."""
    row_D = embedding_VD[token].float()
    if not row_D.any():
        return embedding_VD.shape[0] - 1
    row_D = row_D / row_D.abs().max()  # untrained rows may be so small that their squares vanish
    row_D /= row_D.norm()
    twins = 0
    for block_BD in embedding_VD.split(16_384):  # a float32 copy of the whole table would cost a gigabyte
        rows_BD = block_BD.float()
        rows_BD = rows_BD / rows_BD.norm(p=torch.inf, dim=1, keepdim=True).clamp_min(1e-38)
        cosine_B = rows_BD @ row_D / rows_BD.norm(dim=1).clamp_min(1e-12)
        twins += int((cosine_B > threshold).sum())
    return twins - 1
