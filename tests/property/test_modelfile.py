"""Modelfiles for Ollama: whatever a token or a system message is, it is refused or it stays what it was."""

from hypothesis import assume, example, given
from hypothesis import strategies as st

from znatok.errors import ModelError
from znatok.export.ollama import modelfile, rendered
from znatok.tokens.chat import ChatFormat, Message, Role

SAID = [Message(Role.USER, "a {{ b }}"), Message(Role.ASSISTANT, 'c "d"'), Message(Role.USER, "{% e %}")]
# What could end a quotation, a tag of Go's templates or one of Jinja's, or begin another line of a Modelfile
signs = st.sampled_from(['"', '"""', "\n", "\r", "{", "}", "{{", "}}", "-", "{%", "%}", "{#", " ", "\\n", "\nFROM x\n"])
texts = st.lists(signs | st.text(max_size=5), max_size=8).map("".join)


class Spelled:
    """Stands for a tokenizer that begins and ends with tokens spelled like this."""

    eos_token_id, bos_token_id = 2, 1

    def __init__(self, begins, ends):
        self.vocabulary = {"a": 0, begins: 1, ends: 2}

    def get_vocab(self):
        return self.vocabulary


@given(texts, texts, texts)
@example("<s>", "</s>", "Ты знаток.")
def test_a_modelfile_says_what_the_plain_format_says_or_is_refused(begins, ends, system):
    assume(begins != ends)
    try:
        text = modelfile(ChatFormat("plain", "", Spelled(f"<{begins}", f"<{ends}"), 2), system, "model.gguf")
        found = rendered(text, SAID)
    except ModelError:
        return
    question, answer, last = (message.text for message in SAID)
    opening = f"{system.strip()}\n\n" if system.strip() else ""
    said = f"### User:\n{question}\n\n### Assistant:\n{answer}<{ends}\n\n### User:\n{last}\n\n### Assistant:\n"
    assert found == f"<{begins}{opening}{said}"
