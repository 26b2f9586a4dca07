"""What a model holds likely, asked without letting it speak: choices and minimal pairs.

No decoding, no reading of answers, so no error of either. Losses are compared within one model only: tuning moves all
of them, and a difference between two statements of one model is what knowledge shows in.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from znatok.data.schema import Pair
from znatok.exam.items import ChoiceItem, PairItem
from znatok.model.score import answer_losses, group_losses
from znatok.tokens.chat import ChatFormat, dialogue
from znatok.tokens.encode import Example

TOGETHER = 16  # groups between two reports of progress

Done = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a model makes of one choice.

    Attributes:
        right: the right option is the likeliest one, loss per byte (languages take different numbers of tokens).
        right_whole: the same by the loss of the whole option.
        probability: of the right option among all, by the whole option.
        confidence: of the likeliest option.
        brier: sum of squared errors of those probabilities, 0 to 2.
        losses: of each option in nats, which all of this follows from.
    """

    right: bool
    right_whole: bool
    probability: float
    confidence: float
    brier: float
    losses: tuple[float, ...]


def choose(model: Any, chat: ChatFormat, system: str, items: Sequence[ChoiceItem], done: Done) -> list[Chosen]:
    """Hold every option as the answer to its question and compare how likely they are."""
    groups = [[_answer(chat, system, item.question, option) for option in item.options] for item in items]
    return [
        weighed(item, [loss for loss, _tokens in losses])
        for item, losses in zip(items, _losses(model, groups, done), strict=True)
    ]


def weighed(item: ChoiceItem, losses: Sequence[float]) -> Chosen:
    """Return what the losses of its options make of a choice."""
    per_byte = [loss / len(option.encode()) for loss, option in zip(losses, item.options, strict=True)]
    share = shares(losses)
    return Chosen(
        right=min(range(len(losses)), key=per_byte.__getitem__) == item.answer,
        right_whole=min(range(len(losses)), key=losses.__getitem__) == item.answer,
        probability=share[item.answer],
        confidence=max(share),
        brier=sum((one - (i == item.answer)) ** 2 for i, one in enumerate(share)),
        losses=tuple(losses),
    )


def shares(losses: Sequence[float]) -> list[float]:
    """Return the probability of each option among all, by the losses of the whole options."""
    least = min(losses)
    weights = [math.exp(least - loss) for loss in losses]
    return [weight / sum(weights) for weight in weights]


@dataclass(frozen=True, slots=True)
class Preferred:
    """What a model makes of one minimal pair: by how many nats it prefers the true statement, as an answer and bare."""

    margin: float
    margin_bare: float


def prefer(model: Any, chat: ChatFormat, system: str, items: Sequence[PairItem], done: Done) -> list[Preferred]:
    """Compare how likely the true and the false statement are: as an answer to the question, and without any frame."""
    asked = [[_answer(chat, system, item.question, text) for text in (item.true, item.false)] for item in items]
    bare = [[_bare(chat, text) for text in (item.true, item.false)] for item in items]
    framed = _losses(model, asked, done)
    plain = [answer_losses(model, group) for group in bare]
    return [
        Preferred(answers[1][0] - answers[0][0], texts[1][0] - texts[0][0])
        for answers, texts in zip(framed, plain, strict=True)
    ]


def _losses(model: Any, groups: Sequence[Sequence[Example]], done: Done) -> list[list[tuple[float, int]]]:
    found: list[list[tuple[float, int]]] = []
    for start in range(0, len(groups), TOGETHER):
        found += group_losses(model, groups[start : start + TOGETHER])
        done(len(found))
    return found


def _answer(chat: ChatFormat, system: str, question: str, answer: str) -> Example:
    prompt = chat.prompt_ids(dialogue(question, system))
    return _example([*prompt, *chat.answer_ids(answer)], len(prompt))


def _bare(chat: ChatFormat, text: str) -> Example:
    return _example(chat.text_ids(text), 1)


def _example(ids: Sequence[int], answer_start: int) -> Example:
    return Example(tuple(ids), answer_start, Pair("", ""))
