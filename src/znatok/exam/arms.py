"""Who is asked and how: the base model bare, well prompted, with passages; the tuned one bare and with passages.

A tuned model that beats the bare base alone may have learnt a tone; one that beats the base with a good prompt has
learnt something, and whether it beats a base that may look things up is what its owner wants to know.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from znatok import __version__
from znatok.errors import SystemFault
from znatok.expert import Expert, Voice
from znatok.generate.engine import Answer, Request


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of asking: in which voice, with the good prompt instead of the trained one, with passages or without."""

    name: str
    voice: Voice
    prompted: bool = False
    informed: bool = False

    @property
    def bare(self) -> bool:
        """Tell whether nothing is added to the question and the trained system message."""
        return not (self.prompted or self.informed)


ARMS = (
    Arm("base", Voice.BASE),
    Arm("prompted", Voice.BASE, prompted=True),
    Arm("base+retrieval", Voice.BASE, informed=True),
    Arm("tuned", Voice.TUNED),
    Arm("tuned+retrieval", Voice.TUNED, informed=True),
)


class Store:
    """What was measured before, by what decides it, a line each; a run cut short goes on where it stopped.

    A key holds everything a result depends on, weights and versions included, so an entry is never about another
    model. ``path`` None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, Any] = {}
        if path is not None and path.is_file():
            for line in path.read_bytes().split(b"\n"):  # no other line ends: an answer may hold U+2028
                try:
                    key, value = json.loads(line)
                except ValueError:
                    continue  # a line cut short by a crash is asked again
                self.known[key] = value

    def put(self, key: str, value: Any) -> None:
        """Keep a result, on disk at once."""
        self.known[key] = value
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, value], ensure_ascii=False) + "\n")
        except OSError as error:
            raise SystemFault("{path}: can't be written: {why}", path=self.path, why=error.strerror) from error


def fingerprint(*parts: Any) -> str:
    """Return a key for everything a result depends on."""
    text = json.dumps(
        [__version__, torch.__version__, torch.get_num_threads(), *parts], ensure_ascii=False, default=str
    )
    return hashlib.sha256(text.encode()).hexdigest()


def identity(expert: Expert, voice: Voice, adapter: str | None) -> tuple[Any, ...]:
    """Return what says which weights speak, in which tokens, and what computes them."""
    number_format = expert.loaded.format if expert.engine == "torch" else "gguf"
    tokenizer: Any = expert.chat.tokenizer
    tokens = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    spoken = adapter if voice is Voice.TUNED else None
    return expert.base_sha256, tokens, spoken, expert.engine, number_format, expert.chat.name


def ask(
    expert: Expert,
    voice: Voice,
    requests: Sequence[Request],
    who: tuple[Any, ...],
    store: Store,
    done: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Return text, tokens and stop of each answer; only what the store does not hold is asked."""
    keys = [fingerprint(who, [asdict(m) for m in r.messages], r.sample.described(), r.seed) for r in requests]
    missing = [i for i, key in enumerate(keys) if key not in store.known]
    ended = len(keys) - len(missing)

    def keep(index: int, answer: Answer) -> None:
        nonlocal ended
        ended += 1
        row = {"text": answer.text, "tokens": answer.tokens, "stop": str(answer.stop)}
        store.put(keys[missing[index]], row)
        done(ended)

    if missing:
        with expert.speaking(voice) as engine:
            engine.answers([requests[i] for i in missing], done=keep)
    return [store.known[key] for key in keys]
