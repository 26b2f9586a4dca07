import unicodedata
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

import tiny
from znatok.data.schema import Pair
from znatok.errors import DataError
from znatok.generate.text import TextStream, spelled
from znatok.tokens.chat import ChatFormat, Message, Role, dialogue
from znatok.tokens.encode import EncodeRule, encode_pairs

CONTROL = {0, 1, 2}
SYSTEM = "Ты знаток."

# Text with what could go wrong in it: pieces of control tokens, private-use marks, every plane of Unicode
pieces = st.sampled_from(
    [*tiny.CONTROL, "<|im_", "end|>", "start|>", "<|", "|>", "<", "im_end", "\U000f0000", "\U000f0001", "\n", " ", "é"]
)
texts = st.lists(pieces | st.text(max_size=8) | st.sampled_from("ёщъ🦔👨‍👩‍👧́й"), max_size=12).map("".join)
words = st.text(alphabet="абвё АБ.!?\n,🦔é-1", min_size=1, max_size=120).filter(str.strip)
few = settings(max_examples=60, deadline=None)


@cache
def chat(name):
    return ChatFormat(name, "", tiny.tiny_tokenizer(), 2 if name == "chatml" else 0)


@cache
def byte_tokens():
    """A tokenizer like Gemma's: bytes are tokens of their own, spaces are written as ▁."""
    end = "<eos>"
    names = [end, *(f"<0x{n:02X}>" for n in range(256)), "▁", "П", "р", "и", "▁т"]
    backend = Tokenizer(models.BPE({n: i for i, n in enumerate(names)}, [], byte_fallback=True, unk_token=end))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end)


@given(words, st.booleans())
@example("Привет", True)
@few
def test_spelled_tokens_are_the_bytes_of_a_text(text, gemma):
    text = unicodedata.normalize("NFC", text)
    tokenizer = byte_tokens() if gemma else tiny.tiny_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(spelled(tokenizer, token) for token in ids) == text.encode()


@pytest.mark.parametrize("tokenizer", [byte_tokens(), tiny.tiny_tokenizer()], ids=["bytes", "bpe"])
def test_every_token_is_spelled(tokenizer):
    found = [spelled(tokenizer, token) for token in range(len(tokenizer))]
    assert {bytes([byte]) for byte in range(256)} <= set(found)
    assert tokenizer.eos_token.encode() in found


def streamed(tokenizer, ids):
    stream = TextStream(tokenizer)
    return [*(stream.add(token) for token in ids), stream.flush()]


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


# Prompts and answers


@given(texts, texts, texts, st.sampled_from(["chatml", "plain"]))
@example("<|im_end|>", "<|im_start|>", "<|endoftext|>", "chatml")
@few
def test_no_text_adds_or_removes_a_control_token(system, question, answer, name):
    form = chat(name)
    history = [Message(Role.USER, question), Message(Role.ASSISTANT, answer)]
    ids = form.prompt_ids([Message(Role.SYSTEM, system), *history, Message(Role.USER, question)])
    calm = [Message(role, "x") for role in (Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.USER)]
    assert [i for i in ids if i in CONTROL] == [i for i in form.prompt_ids(calm) if i in CONTROL]
    assert not CONTROL & set(form.text_ids(system + question + answer))
    assert [i for i in form.answer_ids(answer) if i in CONTROL] == [form.end_id]


@given(texts, st.sampled_from(["chatml", "plain"]))
@few
def test_an_answer_decodes_to_itself_without_the_white_space_around_it(text, name):
    form = chat(name)
    *ids, end = form.answer_ids(text)
    kept = text.strip().replace("\U000f0000", "").replace("\U000f0001", "")
    assert end == form.end_id
    assert decoded(form.tokenizer, ids) == unicodedata.normalize("NFC", kept)


@given(words, words, st.integers(min_value=16, max_value=200), st.sampled_from(["chatml", "plain"]))
@few
def test_an_example_is_its_prompt_and_an_answer_with_its_end_within_the_limit(question, answer, limit, name):
    form = chat(name)
    pair = Pair(question, answer)
    prompt = form.prompt_ids(dialogue(question, SYSTEM))
    try:
        encoded = encode_pairs([pair], form, EncodeRule(SYSTEM, limit))
    except DataError:
        assert len(prompt) + min(8, len(form.answer_ids(answer))) > limit
        return
    (made,) = encoded.examples
    trained = list(made.ids[made.answer_start :])
    whole = form.answer_ids(answer)
    assert list(made.ids[: made.answer_start]) == prompt
    assert len(made.ids) <= limit
    assert made.answer_tokens == len(trained) > 1
    assert [i for i in trained if i in CONTROL] == [form.end_id] == trained[-1:]
    assert (trained == whole) == (encoded.notes == ()) == (len(prompt) + len(whole) <= limit)
    assert unicodedata.normalize("NFC", answer.strip()).startswith(decoded(form.tokenizer, trained[:-1]))


@given(texts)
@few
def test_the_template_we_export_renders_any_system_message_as_we_do(system):
    for name in ("chatml", "plain"):
        form = chat(name)
        system = "".join(c for c in system if c not in "\U000f0000\U000f0001")
        if any(token in system for token in tiny.CONTROL):
            continue  # other programs do read these in a template as what they say
        ids = form.tokenizer.apply_chat_template(
            [{"role": "user", "content": "Что?"}],
            chat_template=form.jinja(system),
            add_generation_prompt=True,
            return_dict=False,
        )
        assert ids == form.prompt_ids(dialogue("Что?", system))


# Streams

any_ids = st.lists(st.integers(min_value=0, max_value=499), max_size=90)


def byte_ids(text):
    """Spell a text byte by byte with the tiny tokenizer, so that every letter is split."""
    vocabulary, table = chat("chatml").tokenizer.get_vocab(), bytes_to_letters()
    return [vocabulary[table[b]] for b in text.encode()]


@cache
def bytes_to_letters():
    """GPT-2's spelling of the 256 bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


@given(any_ids)
@settings(max_examples=200, deadline=None)
def test_streamed_pieces_are_the_decoding_of_the_whole_for_any_tokens(ids):
    tokenizer = chat("chatml").tokenizer
    assert "".join(streamed(tokenizer, ids)) == decoded(tokenizer, ids)


@given(st.text(alphabet="ёПр 🦔👨‍👩‍👧é1€\n", max_size=60))
@settings(max_examples=100, deadline=None)
def test_a_letter_split_over_tokens_is_never_shown_in_part(text):
    tokenizer = chat("chatml").tokenizer
    parts = streamed(tokenizer, byte_ids(text))
    assert "".join(parts) == text
    assert not any("�" in part for part in parts)


@given(st.text(max_size=60).filter(lambda t: "�" not in t))
@few
def test_ordinary_text_streams_without_replacement_characters(text):
    form = chat("chatml")
    text = unicodedata.normalize("NFC", text.replace("\U000f0000", "").replace("\U000f0001", ""))
    for ids in (form.text_ids(text), byte_ids(text)):
        parts = streamed(form.tokenizer, ids)
        assert "".join(parts) == text
        assert not any("�" in part for part in parts)


@given(st.text(alphabet="Приёт 🦔漢字", max_size=80))
@settings(max_examples=100, deadline=None)
def test_letters_made_of_byte_tokens_are_never_shown_in_part(text):
    tokenizer = byte_tokens()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    parts = streamed(tokenizer, ids)
    assert "".join(parts) == text
    assert not any("�" in part for part in parts)


@given(st.lists(st.integers(min_value=0, max_value=261), max_size=60))
@settings(max_examples=200, deadline=None)
def test_a_wrong_byte_token_never_silences_what_follows(ids):
    tokenizer = byte_tokens()
    ids = [*ids, *tokenizer("▁Приёт", add_special_tokens=False)["input_ids"]]
    assert "".join(streamed(tokenizer, ids)).endswith(" Приёт")


@pytest.mark.parametrize("repeat", [1, 50])
def test_a_literal_replacement_character_is_shown_at_last(repeat):
    form = chat("chatml")
    text = "a�" * repeat
    assert "".join(streamed(form.tokenizer, form.text_ids(text))) == text


def test_long_answers_are_not_decoded_from_the_start_each_time():
    class Counting:
        def __init__(self):
            self.tokens = 0

        def decode(self, ids, **options):
            self.tokens += len(ids)
            return chat("chatml").tokenizer.decode(ids, **options)

    counting = Counting()
    ids = chat("chatml").text_ids("Полилактид: простой в печати пластик. " * 100)
    assert "".join(streamed(counting, ids)) == decoded(chat("chatml").tokenizer, ids)
    assert counting.tokens < 60 * len(ids)


def test_control_tokens_are_not_shown():
    tokenizer = chat("chatml").tokenizer
    ids = [1, *chat("chatml").text_ids("Да"), 2]
    assert "".join(streamed(tokenizer, ids)) == "Да"
