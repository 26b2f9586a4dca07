"""A dialogue with an expert: what was said, who answers next and how; no terminal, no browser."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from znatok.config import SampleOptions
from znatok.cost import computed
from znatok.errors import DataError, UsageError
from znatok.expert import Expert, Voice
from znatok.files import write_json
from znatok.generate.engine import Answer, Request
from znatok.lexicon import language_of, of_language
from znatok.retrieve import Knowledge, inform
from znatok.tokens.chat import Message, Role, dialogue


@dataclass
class ChatSession:
    """What was said, and how the next answer will be drawn."""

    expert: Expert
    sample: SampleOptions
    seed: int
    system: str
    voice: Voice
    history: list[Message] = field(default_factory=list)
    knowledge: Knowledge | None = None
    sources: str = ""  # of the last answer
    answer: Answer | None = None  # the last one in figures; None where nothing was generated or it was broken off

    def request(self, question: str) -> Request:
        """Return the request for the next answer: the system message, the dialogue so far, the question.

        With knowledge the passages nearest to the question stand before it; the dialogue keeps the bare question.
        """
        self.sources = ""
        if self.knowledge is not None:
            form = of_language(language_of(question))["prompts"]["knowledge"]
            with self.expert.speaking(self.voice) as engine:
                informed = inform(question, self.knowledge, form, fits=lambda text: engine.fits(self._asking(text)))
            question, self.sources = informed.text, informed.sources
        return self._asking(question)

    def asked(self) -> list[str]:
        """Return the questions of the dialogue."""
        return [message.text for message in self.history if message.role is Role.USER]

    def _asking(self, text: str) -> Request:
        return Request(tuple(dialogue(text, self.system, self.history)), self.sample, self.seed)

    def reply(self, question: str, voice: Voice | None = None) -> Iterator[str]:
        """Yield the answer in pieces; the exchange joins the dialogue, an answer cut short as far as it got.

        What a print costs is computed, not guessed: the model is not asked.
        """
        said = self.sources = ""
        self.answer = None
        try:
            if lines := computed([*self.asked(), question]):
                said = "\n".join(lines)
                yield said
                return
            with self.expert.speaking(voice or self.voice) as engine:
                for piece in engine.stream(self.request(question)):
                    said += piece
                    yield piece
                self.answer = engine.last
        finally:
            if said:
                self.history += [Message(Role.USER, question), Message(Role.ASSISTANT, said.strip())]

    def last_to_json(self) -> dict[str, Any]:
        """Return the last exchange: what was asked and answered, by whom, and the answer in figures.

        What was computed instead of generated has no tokens and no reason to stop.
        """
        question, said = self.history[-2:] if self.history else (None, None)
        spoken = self.answer
        return {
            "question": question.text if question else "",
            "answer": said.text if said else "",
            "voice": str(self.voice),
            "seed": self.seed,
            "tokens": spoken.tokens if spoken else 0,
            "stop": str(spoken.stop) if spoken else None,
            "seconds": round(spoken.seconds, 3) if spoken else 0.0,
            "sources": self.sources,
        }

    def undo(self) -> str:
        """Take the last exchange back; return its question.

        Raises:
            UsageError: nothing was said.
        """
        if not self.history:
            raise UsageError("nothing was said yet")
        question = self.history[-2].text
        del self.history[-2:]
        return question

    def save(self, path: Path) -> None:
        """Write the dialogue and its settings as JSON."""
        turns = [{"role": str(message.role), "content": message.text} for message in self.history]
        write_json(path, {"system": self.system, "seed": self.seed, "voice": str(self.voice), "messages": turns})

    def load(self, path: Path) -> None:
        """Go on with a dialogue that :meth:`save` wrote: its messages, system message and seed; the voice stays.

        Raises:
            DataError: the file can't be read or is no such dialogue. Nothing is changed then.
        """
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            turns = [Message(Role(turn["role"]), turn["content"]) for turn in stored["messages"]]
            system, seed = stored["system"], stored["seed"]
        except OSError as error:
            raise DataError("{path}: can't be read: {why}", path=path, why=error.strerror) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError("{path}: no dialogue that /save wrote", path=path) from error
        roles = [Role.USER, Role.ASSISTANT] * (len(turns) // 2)
        plain = isinstance(system, str) and type(seed) is int and 0 <= seed < 2**63
        if not plain or [turn.role for turn in turns] != roles or not all(isinstance(t.text, str) for t in turns):
            raise DataError("{path}: no dialogue that /save wrote", path=path)
        self.history, self.system, self.seed = turns, system, seed
