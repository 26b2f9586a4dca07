"""Text that arrives token by token."""

from znatok.tokens.chat import Tokenizer

CONTEXT = 8  # tokens kept when decoding restarts: some tokenizers decode a token by what stands before it


class TextStream:
    """Turns tokens into text piece by piece, never splitting a character.

    A Cyrillic letter is two bytes and a token may end between them: such an ending decodes to U+FFFD and is held back
    until the next token completes it. The pieces joined are the decoding of the whole.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0  # tokens before this one no longer influence how the next decode
        self._said = ""

    def add(self, token: int) -> str:
        """Take the next token; return the text that is now certain."""
        self._ids.append(token)
        text = self._decode()
        if text.endswith("�") or not text.startswith(self._said):
            return ""
        piece = text[len(self._said) :]
        self._said = text
        if len(self._ids) - self._start > 32:  # keep decoding linear: restart from a certain point, with context
            self._start = len(self._ids) - CONTEXT
            self._said = self._decode()
        return piece

    def flush(self) -> str:
        """Return what was held back, as it is."""
        text = self._decode()
        piece = text[len(self._said) :] if text.startswith(self._said) else ""
        self._said = text
        return piece

    def _decode(self) -> str:
        return self._tokenizer.decode(
            self._ids[self._start :], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
