"""Questions and answers as token ids, and which of them are trained.

The mask is the answer and its end token, nothing else. Prompt and answer are tokenised apart and joined, so no merge
across the border can blur it, and the end token is never cut off: an answer that does not fit is shortened at the end
of a sentence or refused, and either is reported.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from znatok.data.schema import Pair
from znatok.errors import DataError, _
from znatok.tokens.chat import ChatFormat, dialogue

SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|\n+")
TOGETHER = 1000  # pairs tokenised at once
LEAST_ANSWER = 8  # tokens; less room than this is a question that does not fit, not an answer to be shortened


@dataclass(frozen=True, slots=True)
class Example:
    """One training example.

    Attributes:
        ids: prompt, answer and end token.
        answer_start: index of the first trained token; ``ids[answer_start:]`` is trained.
        pair: what it was made of.
    """

    ids: tuple[int, ...]
    answer_start: int
    pair: Pair

    @property
    def answer_tokens(self) -> int:
        """Return how many tokens are trained, the end token included."""
        return len(self.ids) - self.answer_start


@dataclass(frozen=True, slots=True)
class Encoded:
    """All examples of a set, and a note for every one that had to be changed."""

    examples: tuple[Example, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EncodeRule:
    """How pairs become examples: system message, length limit in tokens, and what to do beyond it."""

    system: str
    max_length: int
    overlong: str = "shorten"


def encode_pairs(pairs: Sequence[Pair], chat: ChatFormat, rule: EncodeRule) -> Encoded:
    """Encode pairs in their order.

    Raises:
        DataError: a question leaves no room for an answer, or an answer is too long and the rule is ``refuse``.
    """
    examples, notes = [], []
    for place, pair in enumerate(pairs):
        if place % TOGETHER == 0:
            few = pairs[place : place + TOGETHER]
            chat.learn_texts([dialogue(p.prompt, rule.system) for p in few], [p.response for p in few])
        prompt = chat.prompt_ids(dialogue(pair.prompt, rule.system))
        room = rule.max_length - len(prompt)
        answer = chat.answer_ids(pair.response)
        if room < min(LEAST_ANSWER, len(answer)):
            raise DataError(
                "line {line}: the question takes {n} tokens of {limit}: shorten it or raise --max_length",
                line=pair.line,
                n=len(prompt),
                limit=rule.max_length,
            )
        if len(answer) > room:
            shorter = _shorten(pair, chat, room, rule)
            notes.append(
                _(
                    "line {line}: the answer was shortened from {before} to {after} tokens (--max_length {limit})",
                    line=pair.line,
                    before=len(answer),
                    after=len(shorter),
                    limit=rule.max_length,
                )
            )
            answer = shorter
        examples.append(Example((*prompt, *answer), len(prompt), pair))
    return Encoded(tuple(examples), tuple(notes))


def _shorten(pair: Pair, chat: ChatFormat, room: int, rule: EncodeRule) -> list[int]:
    """Return the longest run of whole sentences that fits with its end token; of words where no sentence does."""
    if rule.overlong == "refuse":
        raise DataError(
            "line {line}: prompt and answer take more than --max_length {limit} tokens: "
            "raise it, split the answer, or use --overlong shorten",
            line=pair.line,
            limit=rule.max_length,
        )
    text = pair.response.strip()
    for borders in (SENTENCE_END, re.compile(r"\s+")):
        ends = [match.start() for match in borders.finditer(text)]
        for end in reversed(ends):
            ids = chat.answer_ids(text[:end])
            if len(ids) <= room and len(ids) > 1:
                return ids
    cut = chat.text_ids(text)[: room - 1]
    while len(cut) > 1 and chat.tokenizer.decode(cut).endswith("�"):  # never train half a letter
        cut.pop()
    return [*cut, chat.end_id]
