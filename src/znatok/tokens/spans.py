"""An example as people see it: what is trained, what steers, what is text."""

from znatok.tokens.chat import ChatFormat
from znatok.tokens.encode import Example


def spans(chat: ChatFormat, example: Example) -> list[tuple[str, str]]:
    """Cut an example into runs of text with one of rich's styles each; split letters stay whole in a run."""
    names = {number: token for token, number in chat.tokenizer.get_vocab().items()}
    runs: list[tuple[str, list[int]]] = []
    for position, token in enumerate(example.ids):
        control = token in chat.stop_ids or (names[token].startswith("<|") and names[token].endswith("|>"))
        style = "green underline" if position >= example.answer_start else "dim" if control else ""
        if runs and runs[-1][0] == style:
            runs[-1][1].append(token)
        else:
            runs.append((style, [token]))
    return [(chat.tokenizer.decode(ids), style) for style, ids in runs]
