"""Generation against transformers' own, and against itself in other company."""

import itertools

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

import tiny
from znatok.config import LoraOptions, SampleOptions
from znatok.errors import UsageError
from znatok.generate.engine import Answer, Request, Stop, sayable
from znatok.generate.rows import SLOTS, RowCache, row_attention
from znatok.generate.torch_engine import TorchEngine
from znatok.model.adapters import base_only, inject
from znatok.tokens.chat import ChatFormat, Message, Role, dialogue

SYSTEM = "Ты знаток."
SPREAD = {"initializer_range": 0.3}  # random weights of this size say many different things
NEW = 14


@pytest.fixture(scope="module")
def chat():
    return ChatFormat("chatml", "", tiny.tiny_tokenizer(), 2)


def sliding():
    return tiny.tiny_model(use_sliding_window=True, sliding_window=8, max_window_layers=1, **SPREAD)


SHAPE = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    **SPREAD,
}


def llama():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **SHAPE)).eval()


def gemma():
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    config = Gemma3TextConfig(
        num_hidden_layers=3, head_dim=16, sliding_window=8, layer_types=layers, query_pre_attn_scalar=16, **SHAPE
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Gemma3ForCausalLM(config).eval()
    model.model.embed_tokens.weight.data += 0.5 * torch.randn(512, 32, generator=torch.Generator().manual_seed(1))
    return model


MODELS = {"qwen2": lambda: tiny.tiny_model(**SPREAD), "qwen2 sliding": sliding, "llama": llama, "gemma3": gemma}


def request(question, seed=42, **sample):
    options = {"temperature": 0.0, "max_new_tokens": NEW} | sample
    return Request(tuple(dialogue(question, SYSTEM)), SampleOptions(**options), seed)


def requests(**sample):
    return [request(question, seed, **sample) for seed, (question, _answer) in enumerate(tiny.PAIRS)]


def tokens(engine, asked):
    """What is said, as tokens."""
    said = [[] for _ in asked]
    for index, token, _stop in engine.tokens(asked):
        said[index].append(token)
    return said


# Against transformers


@pytest.mark.parametrize("name", MODELS)
def test_greedy_answers_are_transformers_own_token_by_token(name, chat):
    model = MODELS[name]()
    engine = TorchEngine(model, chat)
    asked = requests(max_new_tokens=30)[:4]
    for request_, said in zip(asked, tokens(engine, asked), strict=True):
        ids = torch.tensor([chat.prompt_ids(request_.messages)])
        wanted = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=30,
            eos_token_id=sorted(chat.stop_ids),
            pad_token_id=0,
            suppress_tokens=engine._banned_V.nonzero()[:, 0].tolist(),
        )
        assert said == wanted[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_the_usual_attention(name, chat):
    """A prompt longer than the sliding window, then steps with every row in use and a few idle ones."""
    model = MODELS[name]()
    engine, cache = TorchEngine(model, chat), RowCache(model.config.num_hidden_layers)
    rows, texts = [None] * SLOTS, []
    for slot, request_ in zip((0, 2, 3, 7), requests(), strict=False):
        row, logits_V = engine._read_prompt(slot, request_, cache, slot, engine._model_layers)
        rows[slot], ids = row, chat.prompt_ids(request_.messages)
        texts.append((slot, ids))
        torch.testing.assert_close(logits_V, usual(model, ids), rtol=1e-4, atol=1e-4)
    for token in (300, 77, 401):
        for slot, ids in texts:
            ids.append(token + slot)
            rows[slot].said.append(token + slot)
        logits_RV = engine._step(rows, cache, engine._model_layers)
        for slot, ids in texts:
            torch.testing.assert_close(logits_RV[slot], usual(model, ids), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def usual(model, ids):
    assert model.config._attn_implementation == "sdpa"
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


def test_the_model_is_left_as_it_was(chat):
    model = tiny.tiny_model().train()
    engine = TorchEngine(model, chat)
    pieces = engine.stream(request("Что?", temperature=1.0))
    next(pieces)
    assert model.config._attn_implementation == "sdpa"  # even between two pieces
    assert model.training
    pieces.close()
    engine.answers(requests()[:2])
    assert model.config._attn_implementation == "sdpa"
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


# Alone and in company


@pytest.fixture(scope="module", params=itertools.product([torch.float32, torch.bfloat16], [0.0, 0.9]), ids=str)
def company(request, chat):
    """An engine, ten requests, and what it answers to each of them alone."""
    dtype, temperature = request.param
    engine = TorchEngine(tiny.tiny_model(**SPREAD).to(dtype), chat)
    asked = requests(temperature=temperature, top_p=0.95, repetition_penalty=1.1)
    return engine, asked, [tokens(engine, [one])[0] for one in asked]


def test_there_is_something_to_tell_apart(company):
    _engine, _asked, alone = company
    assert len({tuple(said) for said in alone}) == len(alone)


def test_a_batch_larger_than_the_slots_changes_no_answer(company):
    engine, asked, alone = company
    assert len(asked) > SLOTS
    assert tokens(engine, asked) == alone


def test_the_order_changes_no_answer(company):
    engine, asked, alone = company
    assert tokens(engine, asked[::-1]) == alone[::-1]


@pytest.mark.parametrize("before", [1, 3, SLOTS - 1])
def test_the_slot_changes_no_answer(company, before):
    engine, asked, alone = company
    others = [request(f"Другой вопрос {n}?", max_new_tokens=NEW + n) for n in range(before)]
    assert tokens(engine, [*others, asked[0]])[-1] == alone[0]


def test_other_lengths_change_no_answer(company):
    """Rows that end early make room, and a longer limit only goes on."""
    engine, asked, alone = company
    limits = [1, 30, 2, 5, 9, 1, 1, 3, 12, 4]
    mixed = [
        Request(one.messages, SampleOptions(**{**vars(one.sample), "max_new_tokens": n}), one.seed)
        for one, n in zip(asked, limits, strict=True)
    ]
    for said, full, limit in zip(tokens(engine, mixed), alone, limits, strict=True):
        shared = min(limit, len(full))
        assert said[:shared] == full[:shared]


def test_streamed_and_batched_answers_are_the_same_text(company):
    engine, asked, alone = company
    answers = engine.answers(asked)
    for one, answer, said in zip(asked, answers, alone, strict=True):
        assert "".join(engine.stream(one)).strip() == answer.text
        assert answer.tokens == len(said)
        assert answer.stop == (Stop.END if said[-1] in {0, 2} else Stop.LENGTH)
        assert answer.seconds > 0


def test_the_seed_decides_the_answer(company):
    engine, asked, alone = company
    again = [Request(asked[0].messages, asked[0].sample, seed) for seed in (0, 0, 1, 2, 2**63 - 1)]
    said = tokens(engine, again)
    assert said[0] == said[1] == alone[0]
    greedy = asked[0].sample.temperature == 0
    assert len({tuple(one) for one in said}) == (1 if greedy else 4)


def test_the_global_generator_is_neither_read_nor_moved(chat):
    engine = TorchEngine(tiny.tiny_model(**SPREAD), chat)
    asked = requests(temperature=1.0)[:1]
    before = torch.random.get_rng_state()
    first = tokens(engine, asked)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert tokens(engine, asked) == first


# Limits


def test_one_new_token(chat):
    engine = TorchEngine(tiny.tiny_model(**SPREAD), chat)
    (answer,) = engine.answers([request("Что?", max_new_tokens=1)])
    assert answer.tokens == 1
    assert engine.answers([]) == []


def test_each_answer_is_reported_as_it_ends(chat):
    engine = TorchEngine(tiny.tiny_model(**SPREAD), chat)
    heard = {}
    asked = [request(question, max_new_tokens=n) for n, (question, _) in zip((9, 1, 5), tiny.PAIRS, strict=False)]
    answers = engine.answers(asked, lambda index, answer: heard.update({index: answer}))
    assert [*heard] == [1, 2, 0]
    assert [heard[index] for index in range(3)] == answers
    assert all(isinstance(answer, Answer) for answer in answers)


def test_a_dialogue_longer_than_the_context_is_refused_with_its_length(chat):
    engine = TorchEngine(tiny.tiny_model(max_position_embeddings=40), chat)
    length = len(chat.prompt_ids(dialogue("Что такое PLA? " * 9, SYSTEM)))
    with pytest.raises(UsageError, match=f"the dialogue takes {length} tokens and the model sees 40"):
        engine.answers([request("Что такое PLA? " * 9)])


@pytest.mark.parametrize("window", [None, 64])
def test_a_prompt_that_fills_a_large_context_takes_memory_in_proportion(window):
    """One mask for all of it took the square: 5 GB for the 32 768 tokens that Gemma sees."""
    tokens, heads = 8192, 2
    q, k, v = (torch.randn(1, heads, tokens, 8, generator=torch.Generator().manual_seed(n)) for n in range(3))
    module = torch.nn.Identity()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        out, _ = row_attention(module, q, k, v, None, scaling=0.3, sliding_window=window)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < tokens * tokens / 4  # bytes; a mask alone would be four times that
    far = tokens - 1
    first = far + 1 - window if window else 0
    alone = torch.nn.functional.scaled_dot_product_attention(q[:, :, far:], k[:, :, first:], v[:, :, first:], scale=0.3)
    torch.testing.assert_close(out[:, far], alone[:, :, 0])


@pytest.mark.parametrize("tokens", [9, 16, 17, 61])
def test_a_window_is_seen_in_blocks_as_in_one_piece(tokens):
    window = 8
    q, k, v = (torch.randn(1, 2, tokens, 8, generator=torch.Generator().manual_seed(n)) for n in range(3))
    out, _ = row_attention(torch.nn.Identity(), q, k, v, None, scaling=0.3, sliding_window=window)
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril().triu(1 - window)
    whole = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(out, whole.transpose(1, 2))


def test_spare_tokens_of_a_vocabulary_are_never_said():
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.add_tokens(["<unused0>", "<unused99>", "[unused7]", "<unused>", "unused1"])
    said = {tokenizer.convert_ids_to_tokens(number) for number in sayable(ChatFormat("chatml", "", tokenizer, 2))}
    assert not said & {"<unused0>", "<unused99>", "[unused7]"}
    assert {"<unused>", "unused1"} < said


def test_an_answer_ends_where_the_context_does(chat):
    prompt = chat.prompt_ids(dialogue("Что?", SYSTEM))
    engine = TorchEngine(tiny.tiny_model(max_position_embeddings=len(prompt) + 3, **SPREAD), chat)
    (answer,) = engine.answers([request("Что?")])
    assert (answer.tokens, answer.stop) == (3, Stop.LENGTH)


def test_a_request_that_is_refused_leaves_the_engine_usable(chat):
    engine = TorchEngine(tiny.tiny_model(max_position_embeddings=60, **SPREAD), chat)
    wanted = engine.answers([request("Что?")])[0].text
    with pytest.raises(UsageError):
        engine.answers([request("Что?"), request("очень длинный вопрос " * 30)])
    assert engine.answers([request("Что?")])[0].text == wanted


# What may be said, and what is shown


def forced(model, *favourites):
    """Make a model that wants nothing but these tokens, the first most."""

    def prefer(_module, _inputs, logits):
        logits = torch.full_like(logits, -1e4)
        for place, token in enumerate(favourites):
            logits[..., token] = 100.0 - place
        return logits

    model.get_output_embeddings().register_forward_hook(prefer)
    return model


@pytest.mark.parametrize("temperature", [0.0, 5.0])
@pytest.mark.parametrize("banned", [1, 505, 511])
def test_control_tokens_and_padding_rows_are_never_said(chat, banned, temperature):
    engine = TorchEngine(forced(tiny.tiny_model(), banned, 300), chat)
    (said,) = tokens(engine, [request("Что?", temperature=temperature)])
    assert said == [300] * NEW


def test_every_end_token_may_be_said_and_ends_the_answer(chat):
    for end in (0, 2):
        (answer,) = TorchEngine(forced(tiny.tiny_model(), end), chat).answers([request("Что?")])
        assert answer == Answer("", 1, Stop.END, answer.seconds)


def letters(chat, *texts):
    """The ids of texts spelled byte by byte."""
    vocabulary = chat.tokenizer.get_vocab()
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return [[vocabulary[c] for c in spelled.pre_tokenize_str(text)[0][0]] for text in texts]


def scripted(model, ids):
    """Make a model that says these tokens one after another."""
    count = itertools.count()

    def prefer(_module, _inputs, logits):
        logits = torch.full_like(logits, -1e4)
        logits[..., ids[next(count) % len(ids)]] = 100.0
        return logits

    model.get_output_embeddings().register_forward_hook(prefer)
    return model


@pytest.mark.parametrize("limit", range(1, 9))
def test_half_a_character_at_the_limit_is_not_shown(chat, limit):
    (ids,) = letters(chat, "щ🦔ё")
    whole = ids[:limit]
    while whole and chat.tokenizer.decode(whole).endswith("�"):
        whole.pop()
    asked = request("Что?", max_new_tokens=limit)
    assert TorchEngine(scripted(tiny.tiny_model(), ids), chat).answers([asked])[0].text == chat.tokenizer.decode(whole)
    assert "".join(TorchEngine(scripted(tiny.tiny_model(), ids), chat).stream(asked)) == chat.tokenizer.decode(whole)


def test_white_space_around_an_answer_is_not_shown(chat):
    (ids,) = letters(chat, "\n\n  Да\n")
    asked = request("Что?", max_new_tokens=len(ids))
    assert "".join(TorchEngine(scripted(tiny.tiny_model(), ids), chat).stream(asked)) == "Да"
    assert TorchEngine(scripted(tiny.tiny_model(), ids), chat).answers([asked])[0].text == "Да"


def test_an_answer_that_is_given_up_is_no_burden(chat):
    engine = TorchEngine(tiny.tiny_model(**SPREAD), chat)
    whole = "".join(engine.stream(request("Что?")))
    pieces = engine.stream(request("Что?"))
    next(pieces)
    pieces.close()
    assert "".join(engine.stream(request("Что?"))) == whole


def test_a_dialogue_with_history_is_continued(chat):
    engine = TorchEngine(tiny.tiny_model(**SPREAD), chat)
    history = [Message(Role.USER, "Что такое PLA?"), Message(Role.ASSISTANT, "Пластик.")]
    long = Request(tuple(dialogue("А ABS?", SYSTEM, history)), SampleOptions(temperature=0, max_new_tokens=NEW))
    short = Request(tuple(dialogue("А ABS?", SYSTEM)), SampleOptions(temperature=0, max_new_tokens=NEW))
    assert tokens(engine, [long]) != tokens(engine, [short])


# Adapters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_with_the_adapter_off_the_base_speaks_to_the_bit(chat, dtype):
    asked = requests(temperature=0.8)[:3]
    bare = tiny.tiny_model(**SPREAD).to(dtype)
    ids = torch.tensor([chat.prompt_ids(asked[0].messages)])
    with torch.no_grad():
        wanted_logits = bare(input_ids=ids).logits
    wanted = tokens(TorchEngine(bare, chat), asked)
    model = inject(tiny.tiny_model(**SPREAD).to(dtype), LoraOptions(), seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(len(name)))
    engine = TorchEngine(model, chat)
    tuned = tokens(engine, asked)
    with base_only(model):
        assert torch.equal(model(input_ids=ids).logits, wanted_logits)
        assert tokens(engine, asked) == wanted
    assert tuned != wanted
    assert tokens(engine, asked) == tuned
    assert not torch.equal(model(input_ids=ids).logits, wanted_logits)
