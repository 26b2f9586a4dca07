"""Passages that may hold the answer: BM25 over dictionary forms, by the bm25s library.

Any file will do: JSON Lines of facts or of pairs, Markdown or plain text by paragraphs. Every passage keeps the line it
stands in, so that an answer can be looked up. A lexicon of the field makes «пла» and «полилактид» PLA, «дюза» a nozzle:
people ask in other words than books answer in.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from znatok.data.formats import read_text
from znatok.data.lines import JsonLines
from znatok.data.schema import shown_path
from znatok.errors import DataError
from znatok.language import Word, normalise, words_of
from znatok.lexicon import Lexicon, lexicon_near, load_lexicon

TEXT_KEYS = ("claim_ru", "claim", "text", "response")  # the first one a record has is its passage
LEFT_OUT = "superseded"  # the role of a fact that another one replaces


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a file, and where it stands: «facts.jsonl:12»."""

    text: str
    source: str


class Knowledge:
    """Passages that can be searched, with the words of a field where a lexicon gives them."""

    def __init__(self, passages: Sequence[Passage], lexicon: Lexicon | None = None) -> None:
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)
        self.passages = tuple(passages)
        self._lexicon = lexicon
        self._index = bm25s.BM25()
        self._index.index([terms(passage.text, lexicon) for passage in passages], show_progress=False)

    def search(self, question: str, count: int = 4) -> list[Passage]:
        """Return the passages nearest to a question, best first; fewer where fewer share a word with it."""
        wanted = terms(question, self._lexicon)
        count = min(count, len(self.passages))
        known: Any = self._index.vocab_dict
        if not any(term in known for term in wanted):
            return []
        places, scores = self._index.retrieve([wanted], k=count, show_progress=False)
        return [self.passages[int(i)] for i, score in zip(places[0], scores[0], strict=True) if score > 0]


@dataclass(frozen=True, slots=True)
class Informed:
    """A question with the passages that were put before it; none where none is near."""

    text: str
    passages: tuple[Passage, ...]

    @property
    def sources(self) -> str:
        """Return where the passages stand, as an answer cites them: «[1] facts.jsonl:12»."""
        return "; ".join(f"[{i}] {passage.source}" for i, passage in enumerate(self.passages, 1))


def inform(
    question: str, knowledge: Knowledge, form: str, count: int = 4, fits: Callable[[str], bool] = lambda _text: True
) -> Informed:
    """Put the passages nearest to a question before it.

    Args:
        question: what is asked.
        knowledge: where to look.
        form: ``prompts.knowledge`` of the language, with {passages} and {question}.
        count: passages at most.
        fits: whether the model can see a text this long; the farthest passages are left out until it can.
    """
    found = tuple(knowledge.search(question, count))
    while found:
        listed = "\n".join(f"[{i}] {passage.text}" for i, passage in enumerate(found, 1))
        text = form.format(passages=listed, question=question)
        if fits(text):
            return Informed(text, found)
        found = found[:-1]
    return Informed(question, ())


def terms(text: str, lexicon: Lexicon | None = None) -> list[str]:
    """Return the dictionary forms of a text's words, one for each word: of several the shortest, then the first.

    What a lexicon knows by several names is found under one more term of its own, marked by «@».
    """
    if lexicon is None:
        return [_form(word) for word in words_of(normalise(text))]
    found = []
    for sentence in lexicon.read(text):
        found += [_form(word) for word in sentence.words]
        found += [f"@{name}" for name in lexicon.concepts(sentence.words)]
    return found


def _form(word: Word) -> str:
    return min(word.forms - {"=" + word.text.lower()}, key=lambda form: (len(form), form))


def open_knowledge(path: Path) -> Knowledge:
    """Read a file of passages with the words of the lexicon beside it, if there is one; DataError as for the file."""
    words = lexicon_near(path)
    return read_knowledge(path, load_lexicon(words) if words else None)


def read_knowledge(path: Path, lexicon: Lexicon | None = None) -> Knowledge:
    """Read a file of passages.

    Args:
        path: the file.
        lexicon: the words of its field.

    Raises:
        DataError: the file can't be read, or holds no text.
    """
    passages = _records(path) if path.suffix == ".jsonl" else _paragraphs(path)
    if not any(terms(passage.text, lexicon) for passage in passages):
        raise DataError("{path}: no text in it; expected facts, pairs or paragraphs", path=shown_path(path))
    return Knowledge(passages, lexicon)


def _records(path: Path) -> list[Passage]:
    passages = []
    for number, record in JsonLines(path).objects():
        found = next((record[key] for key in TEXT_KEYS if key in record), None)
        if not isinstance(found, str) or not found.strip():
            raise DataError(
                "{path}:{line}: no text; expected one of the keys {keys}",
                path=shown_path(path), line=number, keys=", ".join(TEXT_KEYS),
            )  # fmt: skip
        if record.get("role") != LEFT_OUT:
            passages.append(Passage(found.strip(), f"{path.name}:{number}"))
    return passages


def _paragraphs(path: Path) -> list[Passage]:
    passages, lines, start = [], list[str](), 0
    for number, line in enumerate([*read_text(path).split("\n"), ""], 1):
        if line.strip():
            start = start if lines else number
            lines.append(line.strip())
        elif lines:
            passages.append(Passage(" ".join(lines), f"{path.name}:{start}"))
            lines = []
    return passages
