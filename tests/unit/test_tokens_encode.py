import pytest

from znatok.data.schema import Pair
from znatok.errors import DataError
from znatok.tokens.chat import ChatFormat, dialogue
from znatok.tokens.encode import LEAST_ANSWER, EncodeRule, encode_pairs

SYSTEM = "Ты знаток."
SENTENCES = "Первое предложение. Второе предложение! Третье предложение? Четвёртое предложение…"


@pytest.fixture(params=["chatml", "plain"])
def chat(request, tokenizer):
    return ChatFormat(request.param, "", tokenizer, 2 if request.param == "chatml" else 0)


def encode(chat, prompt, response, max_length=512, overlong="shorten", line=7):
    return encode_pairs([Pair(prompt, response, line=line)], chat, EncodeRule(SYSTEM, max_length, overlong))


def answer_text(chat, encoded):
    (example,) = encoded.examples
    answer = example.ids[example.answer_start :]
    assert answer[-1] == chat.end_id
    assert chat.end_id not in answer[:-1]
    return chat.tokenizer.decode(answer[:-1])


def limit_for(chat, prompt, response):
    """The length at which the answer just fits."""
    return len(chat.prompt_ids(dialogue(prompt, SYSTEM))) + len(chat.answer_ids(response))


def test_what_is_trained_is_the_answer_and_its_end_token_exactly(chat):
    encoded = encode(chat, "Что такое PLA?", "Пластик.")
    (example,) = encoded.examples
    assert list(example.ids[: example.answer_start]) == chat.prompt_ids(dialogue("Что такое PLA?", SYSTEM))
    assert list(example.ids[example.answer_start :]) == [*chat.text_ids("Пластик."), chat.end_id]
    assert example.answer_tokens == len(chat.text_ids("Пластик.")) + 1
    assert encoded.notes == ()


@pytest.mark.parametrize("response", ["\nПластик.", "  Пластик.\n\n", "\tПластик."])
def test_white_space_around_an_answer_is_not_trained(chat, response):
    assert encode(chat, "Что?", response).examples[0].ids == encode(chat, "Что?", "Пластик.").examples[0].ids


def test_pairs_stay_in_their_order(chat):
    pairs = [Pair(f"Вопрос {n}?", f"Ответ {n}.") for n in range(5)]
    assert [e.pair for e in encode_pairs(pairs, chat, EncodeRule("", 512)).examples] == pairs
    assert encode_pairs([], chat, EncodeRule("", 512)).examples == ()


@pytest.mark.parametrize("text", ["<|im_end|>", "Токен <|im_start|>system\nи <|endoftext|>.", "<<|im_end|>|im_end|>"])
def test_control_tokens_in_the_texts_of_a_batch_are_plain_text(chat, text):
    """Training tokenises whole batches at once, before it asks for each text."""
    pairs = [Pair("Что?", "Да."), Pair(text, f"Это {text}"), Pair(f"Что такое {text}?", text)]
    harmless, *attacked = encode_pairs(pairs, chat, EncodeRule(text, 512)).examples
    control = set(range(3))
    wanted = [i for i in harmless.ids if i in control]
    assert [[i for i in example.ids if i in control] for example in attacked] == [wanted, wanted]
    for example, pair in zip(attacked, pairs[1:], strict=True):
        assert chat.tokenizer.decode(example.ids[example.answer_start : -1]) == pair.response


def test_an_answer_that_just_fits_is_not_touched(chat):
    limit = limit_for(chat, "Что?", SENTENCES)
    encoded = encode(chat, "Что?", SENTENCES, limit)
    assert answer_text(chat, encoded) == SENTENCES
    assert len(encoded.examples[0].ids) == limit
    assert encoded.notes == ()


@pytest.mark.parametrize("kept", ["Первое предложение.", "Первое предложение. Второе предложение!"])
def test_a_longer_answer_ends_with_the_last_sentence_that_fits(chat, kept):
    limit = limit_for(chat, "Что?", kept)
    for spare in range(3):
        encoded = encode(chat, "Что?", SENTENCES, limit + spare)
        assert answer_text(chat, encoded) == kept
        (note,) = encoded.notes
        before, after = len(chat.answer_ids(SENTENCES)), len(chat.answer_ids(kept))
        assert (
            note == f"line 7: the answer was shortened from {before} to {after} tokens (--max_length {limit + spare})"
        )


def test_a_line_end_ends_a_sentence_too(chat):
    text = "Список:\n- первый пункт\n- второй пункт"
    limit = limit_for(chat, "Что?", "Список:\n- первый пункт") + 2
    assert answer_text(chat, encode(chat, "Что?", text, limit)) == "Список:\n- первый пункт"


def test_numbers_are_not_cut_at_their_point(chat):
    text = "Сопло диаметром 0.4 миллиметра и слой 0.2 миллиметра на столе"
    shortened = answer_text(chat, encode(chat, "Что?", text, limit_for(chat, "Что?", "Сопло диаметром 0.4") + 1))
    assert shortened == "Сопло диаметром 0.4"


def test_without_a_whole_sentence_the_answer_ends_with_a_word(chat):
    text = "Очень длинное предложение без всякого конца которое не помещается"
    limit = limit_for(chat, "Что?", "Очень длинное предложение") + 1
    assert answer_text(chat, encode(chat, "Что?", text, limit)) == "Очень длинное предложение"


@pytest.mark.parametrize("spare", range(6))
def test_a_single_endless_word_is_cut_between_letters(chat, spare):
    word = "щёфъю🦔" * 40
    limit = limit_for(chat, "Что?", "щёфъю🦔") + spare
    encoded = encode(chat, "Что?", word, limit)
    text = answer_text(chat, encoded)
    assert len(text) >= 6
    assert word.startswith(text)
    assert limit - 3 <= len(encoded.examples[0].ids) <= limit


def test_one_answer_too_long_can_be_refused(chat):
    limit = limit_for(chat, "Что?", SENTENCES)
    assert encode(chat, "Что?", SENTENCES, limit, "refuse").notes == ()
    with pytest.raises(DataError, match=rf"line 7: prompt and answer take more than --max_length {limit - 1} tokens"):
        encode(chat, "Что?", SENTENCES, limit - 1, "refuse")


@pytest.mark.parametrize("overlong", ["shorten", "refuse"])
def test_a_question_that_leaves_no_room_is_refused_with_its_length(chat, overlong):
    question = len(chat.prompt_ids(dialogue("Что?", SYSTEM)))
    for limit in (16, question, question + LEAST_ANSWER - 1):
        with pytest.raises(DataError, match=f"line 7: the question takes {question} tokens of {limit}: shorten it"):
            encode(chat, "Что?", SENTENCES, limit, overlong)


def test_a_short_answer_needs_no_more_room_than_it_takes(chat):
    limit = limit_for(chat, "Что?", "Да")
    assert answer_text(chat, encode(chat, "Что?", "Да", limit)) == "Да"
    with pytest.raises(DataError, match="the question takes"):
        encode(chat, "Что?", "Да", limit - 1)
