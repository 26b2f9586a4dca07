"""Is it known or recited? Runs of words that an answer shares with the answers it was trained on."""

import re
from collections.abc import Iterable

from znatok.language import normalise

RUN = 12  # words in a row that nobody repeats by chance
_WORDS = re.compile(r"\w+")


def runs(texts: Iterable[str], length: int = RUN) -> frozenset[tuple[str, ...]]:
    """Return every run of so many words of the texts, in small letters, whatever stands between the words."""
    return frozenset(run for text in texts for run in _runs(text, length))


def recited(text: str, known: frozenset[tuple[str, ...]], length: int = RUN) -> bool:
    """Tell whether a text repeats one of the runs."""
    return any(run in known for run in _runs(text, length))


def _runs(text: str, length: int) -> Iterable[tuple[str, ...]]:
    words = _WORDS.findall(normalise(text).lower())
    return zip(*(words[start:] for start in range(length)), strict=False)
