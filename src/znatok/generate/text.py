"""Text that arrives token by token."""

import re
from collections.abc import Sequence

from transformers.convert_slow_tokenizer import bytes_to_unicode

from znatok.tokens.chat import Tokenizer

CONTEXT = 8  # tokens kept when decoding restarts: some tokenizers decode a token by what stands before it

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # how tokenizers without a letter for each byte write one
LETTERS = {letter: byte for byte, letter in bytes_to_unicode().items()}  # how GPT-2 and its heirs write all


class TextStream:
    """Turns tokens into text piece by piece, never splitting a character.

    A Cyrillic letter is two bytes and a token may end between them: such an ending decodes to U+FFFD and is held back
    until the next token completes it. The pieces joined are the decoding of the whole.

    One exception: where bytes are tokens of their own (Gemma), a wrong byte makes those before it wrong too. What was
    said stays said then, and what follows them is still told.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0  # tokens before this one no longer influence how the next decode
        self._said = ""

    def add(self, token: int) -> str:
        """Take the next token; return the text that is now certain."""
        self._ids.append(token)
        text = self._decode(self._start)
        if text.endswith("�"):
            return ""
        piece = self._news(text)
        if len(self._ids) - self._start > 32:  # keep decoding linear: restart from a certain point, with context
            self._restart(text)
        return piece

    def flush(self) -> str:
        """Return what was held back, as it is."""
        return self._news(self._decode(self._start))

    def _news(self, text: str) -> str:
        """Return what ``text`` adds to what was said, and take it as said."""
        said, self._said = self._said, text
        return text[len(said) :] if text.startswith(said) else text.rpartition("�")[2]

    def _restart(self, text: str) -> None:
        """Decode from a later token on, unless that one continues a letter."""
        start = len(self._ids) - CONTEXT
        tail = self._decode(start)
        if tail and text.endswith(tail):
            self._start, self._said = start, tail

    def _decode(self, start: int) -> str:
        return self._tokenizer.decode(self._ids[start:], skip_special_tokens=True, clean_up_tokenization_spaces=False)


def spelled(tokenizer: Tokenizer, token: int) -> bytes:
    """Return what a token stands for, in UTF-8: alone it may be a part of a character, or nothing, as a row of padding.

    Some tokenizers decode a token otherwise at the beginning of a text, so it is decoded behind another one.
    """
    before = tokenizer("a", add_special_tokens=False)["input_ids"]
    text, told = (tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in ([*before, token], before))
    if "�" not in text:
        return text[len(told) :].encode()
    name = tokenizer.convert_ids_to_tokens(token)
    if byte := BYTE.fullmatch(name):
        return bytes([int(byte[1], 16)])
    return bytes(LETTERS[letter] for letter in name) if LETTERS.keys() >= set(name) else name.encode()


class StopCutter:
    """Ends a text before the first of several strings, and never lets the beginning of one through.

    The first is the one that is complete first, and of those that end together the longest: so that what is said does
    not depend on the pieces in which the text arrives.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Watch for ``stops``; none of them may be empty."""
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def add(self, piece: str) -> str:
        """Take the next piece of text; return what can be said of it. Once :attr:`found`, nothing more is."""
        if self.found:
            return ""
        text = self._held + piece
        places = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            _end, start = min(places)
            return text[:start]
        sure = len(text) - self._possible(text)
        self._held = text[sure:]
        return text[:sure]

    def flush(self) -> str:
        """Return what was held back: no more text comes that could complete a stop string."""
        held, self._held = self._held, ""
        return held

    def _possible(self, text: str) -> int:
        """Return the length of the longest end of a text that some stop string begins with."""
        return max(
            (n for stop in self._stops for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n])),
            default=0,
        )
