"""Reading GGUF: the same model comes out that went in, and nothing comes out of a damaged file but a ModelError."""

import struct
import subprocess
import sys

import gguf as reference
import pytest
import torch
from transformers import AutoTokenizer

import gguf_files
from znatok.errors import ModelError
from znatok.model import gguf
from znatok.model.gguf_header import read_header

ARCHITECTURES = ("qwen2", "llama", "gemma3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(scope="module")
def tiny(folder):
    """Return {architecture: (model, file)} in float32."""
    made = {}
    for name in ARCHITECTURES:
        model = gguf_files.model(name)
        made[name] = model, gguf_files.write(folder / f"{name}.gguf", model)
    return made


def test_a_model_whose_file_holds_not_all_of_it_is_refused():
    """By an assert, once: under python -O it would have answered with what lay in memory."""
    with torch.device("meta"):
        hollow = gguf_files.model("qwen2")
    with pytest.raises(
        ModelError, match=r"^Qwen2ForCausalLM: the file holds no values for model\.embed_tokens\.weight, "
    ):
        gguf.refuse_unfilled(hollow)
    gguf.refuse_unfilled(gguf_files.model("qwen2"))


def logits(model, seed=0):
    ids = torch.randint(0, 320, (2, 9), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model(ids).logits


# Models


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_float32_file_gives_bit_equal_logits(tiny, name):
    model, path = tiny[name]
    got = gguf.load_gguf(path, torch.float32)
    assert got.architecture == name
    assert torch.equal(logits(got.model), logits(model))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_config_equals_the_original_one(tiny, name):
    model, path = tiny[name]
    got, want = gguf.load_gguf(path, torch.float32).model.config.to_dict(), model.config.to_dict()
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id")  # from the tokenizer's part of the file
    ignored = {"architectures", "_name_or_path", "dtype", *(tokens if name == "gemma3" else ())}
    assert {key: got.get(key) for key in want.keys() - ignored} == {key: want[key] for key in want.keys() - ignored}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bfloat16_is_the_rounded_float32(tiny, name):
    _model, path = tiny[name]
    full = gguf.load_gguf(path, torch.float32).model
    half = gguf.load_gguf(path, torch.bfloat16).model
    for (key, one), two in zip(full.named_parameters(), half.parameters(), strict=True):
        assert torch.equal(one.bfloat16(), two), key
    buffers = dict(half.named_buffers())
    assert all(torch.equal(buffer, buffers[key]) for key, buffer in full.named_buffers())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_parameter_is_trainable_or_left_on_meta(tiny, name):
    model = gguf.load_gguf(tiny[name][1], torch.float32).model
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert {t.device.type for t in [*model.parameters(), *model.buffers()]} == {"cpu"}


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_every_block_type_loads_to_what_the_reference_dequantises(folder, kind):
    path = gguf_files.write(folder / f"{kind}.gguf", gguf_files.model("qwen2"), kind=kind)
    loaded = gguf.load_gguf(path, torch.float32).model.state_dict()
    names = gguf.tensor_names("qwen2", 2)
    for tensor in reference.GGUFReader(path).tensors:
        want = torch.from_numpy(reference.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        assert torch.equal(loaded[names[tensor.name]], want), tensor.name


def test_a_head_of_finer_rounding_is_used_for_both_ends(folder):
    model = gguf_files.model("qwen2")
    near = model.model.embed_tokens.weight * 1.01
    path = gguf_files.write(folder / "tied.gguf", model, head=near)
    loaded = gguf.load_gguf(path, torch.float32).model
    assert loaded.config.tie_word_embeddings
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    # equal precision here: the head is taken, as Qwen's files store it finer than the embedding
    assert torch.equal(loaded.lm_head.weight, near)


def test_a_head_of_its_own_stays_untied(folder):
    model = gguf_files.model("qwen2", tie_word_embeddings=False)
    path = gguf_files.write(folder / "untied.gguf", model, head=model.lm_head.weight)
    loaded = gguf.load_gguf(path, torch.float32).model
    assert not loaded.config.tie_word_embeddings
    assert torch.equal(logits(loaded), logits(model))


def test_the_caller_can_state_that_head_and_embedding_are_tied(folder):
    model = gguf_files.model("qwen2", tie_word_embeddings=False)
    path = gguf_files.write(folder / "stated.gguf", model, head=model.lm_head.weight)
    assert gguf.load_gguf(path, torch.float32, tied=True).model.config.tie_word_embeddings


def test_a_loaded_model_can_be_saved_and_loaded_by_transformers(tiny, tmp_path):
    model, path = tiny["qwen2"]
    gguf.load_gguf(path, torch.float32).model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(model))


def test_generation_stops_at_the_tokens_the_file_names(tiny, folder):
    _model, path = tiny["qwen2"]
    assert gguf.load_gguf(path, torch.float32).model.generation_config.eos_token_id == 2
    more = gguf_files.write(folder / "eot.gguf", _model, metadata={"tokenizer.ggml.eot_token_id": 1})
    assert gguf.load_gguf(more, torch.float32).model.generation_config.eos_token_id == [2, 1]


def test_a_linearly_scaled_rotary_embedding_is_kept(folder):
    scaling = {"qwen2.rope.scaling.type": "linear", "qwen2.rope.scaling.factor": 4.0}
    path = gguf_files.write(folder / "linear.gguf", gguf_files.model("qwen2"), metadata=scaling)
    rope = gguf.load_gguf(path, torch.float32).model.config.rope_parameters
    assert (rope["rope_type"], rope["factor"]) == ("linear", 4.0)


def test_permuting_rows_and_back_changes_nothing():
    weight = torch.arange(4 * 8 * 3.0).view(32, 3)
    assert torch.equal(gguf.unpermute(gguf.permute(weight, 4), 4), weight)
    assert not torch.equal(gguf.permute(weight, 4), weight)


def test_an_alignment_of_the_files_own_is_obeyed(folder):
    model = gguf_files.model("llama")
    path = gguf_files.write(folder / "aligned.gguf", model, alignment=256)
    assert torch.equal(logits(gguf.load_gguf(path, torch.float32).model), logits(model))


def test_loading_leaves_the_number_of_threads_as_it_was(tiny):
    before = torch.get_num_threads()
    gguf.load_gguf(tiny["qwen2"][1], torch.float32)
    assert torch.get_num_threads() == before


# Tokenizers


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_cyrillic_survives_the_tokenizer(tiny, name):
    tokenizer = gguf.load_gguf(tiny[name][1], torch.float32).tokenizer
    for text in ("Привет, мир! Ёлка.", "аб  абв\n12 the", "日本 🙂"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text


def test_merges_and_control_tokens_come_from_the_file(tiny):
    tokenizer = gguf.load_gguf(tiny["qwen2"][1], torch.float32).tokenizer
    tokens = gguf_files.byte_tokens()
    assert tokenizer("<|im_end|>the")["input_ids"] == [2, tokens.index("the")]
    assert tokenizer("<tool_call>")["input_ids"] == [tokens.index("<tool_call>")]
    assert {"<|endoftext|>", "<|im_end|>"} <= set(tokenizer.all_special_tokens)
    assert "<tool_call>" not in tokenizer.all_special_tokens
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (2, 0, None)
    assert tokenizer.chat_template == gguf_files.TEMPLATE


def test_rows_that_only_pad_the_vocabulary_are_no_tokens(tiny):
    assert len(gguf.load_gguf(tiny["qwen2"][1], torch.float32).tokenizer) == len(gguf_files.byte_tokens())


def test_qwen_text_is_composed_before_it_is_split(tiny):
    tokenizer = gguf.load_gguf(tiny["qwen2"][1], torch.float32).tokenizer
    assert tokenizer("\u0438\u0306")["input_ids"] == tokenizer("й")["input_ids"]


def test_gemma_begins_with_bos_and_keeps_runs_of_spaces_whole(tiny):
    tokenizer = gguf.load_gguf(tiny["gemma3"][1], torch.float32).tokenizer
    tokens = gguf_files.sentence_tokens()
    assert tokenizer("  аб")["input_ids"] == [2, tokens.index("  "), tokens.index("аб")]
    assert tokenizer.all_special_ids[:1] == [2]


def test_smollm_splits_numbers_into_digits(folder):
    path = gguf_files.write(folder / "smollm.gguf", gguf_files.model("llama"), pre="smollm")
    tokens = gguf_files.byte_tokens()
    smollm, plain = (
        gguf.load_gguf(file, torch.float32).tokenizer
        for file in (path, gguf_files.write(folder / "gpt2.gguf", gguf_files.model("llama"), pre="gpt-2"))
    )
    assert smollm("12")["input_ids"] == [tokens.index("1"), tokens.index("2")]
    assert plain("12")["input_ids"] == [tokens.index("12")]


def test_a_llama_with_a_sentencepiece_vocabulary_merges_by_score(folder):
    tokens = gguf_files.sentence_tokens()
    values = gguf_files.tokenizer_values("gemma3", "")
    path = gguf_files.write(folder / "spm.gguf", gguf_files.model("llama"), metadata=values)
    tokenizer = gguf.load_gguf(path, torch.float32).tokenizer
    assert tokenizer("аб")["input_ids"] == [2, tokens.index("▁аб")]
    assert tokenizer.decode(tokenizer("аб абв Ё")["input_ids"], skip_special_tokens=True) == "аб абв Ё"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_saved_tokenizer_gives_the_same_ids(tiny, name, tmp_path):
    tokenizer = gguf.load_gguf(tiny[name][1], torch.float32).tokenizer
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for text in ("Привет, мир! 12 the", "<|im_start|>аб  абв<|im_end|>", "<eos>"):
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_tokenizer_needs_no_network_and_no_python_code(tiny):
    code = "import sys; from znatok.model import gguf_tokenizer; assert 'sentencepiece' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# What must be refused


def header(tensors=(), keys=(), *, magic=b"GGUF", version=3, counts=None, data=b""):
    """Return a handmade file; a key is (name, type, value bytes), a tensor (name, shape, type, offset)."""
    n_tensors, n_keys = counts or (len(tensors), len(keys))
    blob = magic + struct.pack("<IQQ", version, n_tensors, n_keys)
    for name, kind, value in keys:
        blob += text(name) + struct.pack("<I", kind) + value
    for name, shape, kind, offset in tensors:
        blob += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return blob + bytes(-len(blob) % 32) + data


def text(value):
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


U32, ARRAY, STRING = 4, 9, 8
MALFORMED = {
    "empty": b"",
    "short": b"GGUF\x03\0\0\0",
    "magic": header(magic=b"FUGG"),
    "version 1": header(version=1),
    "version 4": header(version=4),
    "big-endian": header(version=0x03000000),
    "too many tensors": header(counts=(1 << 63, 0), data=bytes(64)),
    "too many keys": header(counts=(0, 1 << 63), data=bytes(64)),
    "more keys than bytes": header(counts=(0, 9), data=bytes(32)),
    "key twice": header(keys=[("a", U32, bytes(4))] * 2),
    "key type": header(keys=[("a", 77, bytes(4))]),
    "key not UTF-8": header(keys=[(b"\xff\xfe", U32, bytes(4))]),
    "key too long": header(keys=[("a" * 2000, U32, bytes(4))]),
    "string too long": header(keys=[("a", STRING, struct.pack("<Q", 1 << 62))], data=bytes(64)),
    "bool of 7": header(keys=[("a", 7, b"\x07")]),
    "array of arrays": header(keys=[("a", ARRAY, struct.pack("<IQ", ARRAY, 1) + bytes(40))]),
    "array too long": header(keys=[("a", ARRAY, struct.pack("<IQ", U32, 1 << 61))], data=bytes(64)),
    "string array too long": header(keys=[("a", ARRAY, struct.pack("<IQ", STRING, 1 << 20))], data=bytes(64)),
    "array cut": header(keys=[("a", ARRAY, struct.pack("<IQ", U32, 4000))]),
    "alignment 0": header(keys=[("general.alignment", U32, struct.pack("<I", 0))]),
    "alignment 3": header(keys=[("general.alignment", U32, struct.pack("<I", 3))]),
    "alignment text": header(keys=[("general.alignment", STRING, text("32"))]),
    "tensor twice": header([("t", (4,), 0, 0), ("t", (4,), 0, 32)], data=bytes(64)),
    "tensor without dimensions": header([("t", (), 0, 0)], data=bytes(64)),
    "five dimensions": header([("t", (1,) * 5, 0, 0)], data=bytes(64)),
    "empty dimension": header([("t", (4, 0), 0, 0)], data=bytes(64)),
    "shape overflows": header([("t", (1 << 40, 1 << 40), 0, 0)], data=bytes(64)),
    "unknown type": header([("t", (4,), 99, 0)], data=bytes(64)),
    "type we can't read": header([("t", (256,), 10, 0)], data=bytes(128)),
    "row no multiple of the block": header([("t", (31,), 8, 0)], data=bytes(64)),
    "offset not aligned": header([("t", (4,), 0, 4)], data=bytes(64)),
    "offset behind the end": header([("t", (4,), 0, 1 << 20)], data=bytes(64)),
    "offset overflows": header([("t", (4,), 0, (1 << 64) - 32)], data=bytes(64)),
    "data cut": header([("t", (32,), 0, 0)], data=bytes(64)),
    "tensors overlap": header([("s", (16,), 0, 0), ("t", (16,), 0, 32)], data=bytes(96)),
}


@pytest.mark.parametrize("blob", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_header_is_a_model_error_naming_the_file(blob, tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(blob)
    with pytest.raises(ModelError, match=r"bad\.gguf"):
        read_header(path)


def test_a_type_znatok_cannot_read_is_named(tmp_path):
    path = tmp_path / "q2.gguf"
    path.write_bytes(MALFORMED["type we can't read"])
    with pytest.raises(ModelError, match="Q2_K"):
        read_header(path)


def test_a_missing_file_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match="No such file"):
        read_header(tmp_path / "nowhere.gguf")


def test_the_header_agrees_with_the_reference_reader(tiny):
    for _model, path in tiny.values():
        ours, theirs = read_header(path), reference.GGUFReader(path)
        assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
        for tensor in theirs.tensors:
            mine = ours.tensors[tensor.name]
            assert (mine.start, mine.nbytes, mine.kind) == (tensor.data_offset, tensor.n_bytes, tensor.tensor_type)
            assert mine.shape == tuple(reversed(tensor.shape.tolist()))
        for key, value in ours.metadata.items():
            want = theirs.fields[key].contents()
            assert (value.tolist() if hasattr(value, "tolist") else value) == want, key


REFUSED = {
    "architecture": {"general.architecture": "mamba"},
    "no heads": {"qwen2.attention.head_count": 0},
    "heads that don't divide": {"qwen2.attention.head_count": 5},
    "key heads that don't divide": {"qwen2.attention.head_count_kv": 3},
    "more key heads than heads": {"qwen2.attention.head_count_kv": 8},
    "other key heads": {"qwen2.attention.head_count_kv": 1},
    "a million layers": {"qwen2.block_count": 1_000_000},
    "one layer": {"qwen2.block_count": 1},
    "wide": {"qwen2.embedding_length": 1 << 19},
    "wide inside": {"qwen2.feed_forward_length": 1 << 20},
    "epsilon": {"qwen2.attention.layer_norm_rms_epsilon": float("nan")},
    "theta": {"qwen2.rope.freq_base": 0.0},
    "yarn": {"qwen2.rope.scaling.type": "yarn"},
    "context of text": {"qwen2.context_length": "long"},
    "eos outside": {"tokenizer.ggml.eos_token_id": 5000},
    "tokenizer model": {"tokenizer.ggml.model": "bert"},
    "splitting": {"tokenizer.ggml.pre": "klingon"},
    "tokens missing": {"tokenizer.ggml.tokens": None},
    "tokens twice": {"tokenizer.ggml.tokens": ["a"] * 320},
    "more tokens than rows": {"tokenizer.ggml.tokens": [f"t{n}" for n in range(400)]},
    "token types too short": {"tokenizer.ggml.token_type": [1, 1]},
    "a merge of unknown tokens": {"tokenizer.ggml.merges": ["foo bar"]},
    "a merge of one token": {"tokenizer.ggml.merges": ["the"]},
    "merges missing": {"tokenizer.ggml.merges": None},
    "splitting not stated": {"tokenizer.ggml.pre": None},
    "bos flag": {"tokenizer.ggml.add_bos_token": "yes"},
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED.keys())
def test_metadata_that_lie_are_refused_before_anything_is_built(change, tmp_path):
    change = dict(change)
    architecture = change.pop("general.architecture", None)
    pre = "gpt-2" if "tokenizer.ggml.add_bos_token" in change else "qwen2"
    path = gguf_files.write(tmp_path / "lies.gguf", gguf_files.model("qwen2"), pre=pre, metadata=change)
    if architecture:
        path.write_bytes(path.read_bytes().replace(b"qwen2", b"mamba", 1))
    with pytest.raises(ModelError, match=r"lies\.gguf"):
        gguf.load_gguf(path, torch.float32)


def test_a_missing_tensor_is_named(tmp_path):
    path = gguf_files.write(tmp_path / "less.gguf", gguf_files.model("llama"), drop={"blk.1.ffn_up.weight"})
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        gguf.load_gguf(path, torch.float32)


def test_a_tensor_without_a_place_is_named(tmp_path):
    path = gguf_files.write(tmp_path / "more.gguf", gguf_files.model("llama"))
    path.write_bytes(path.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.7.ffn_up.weight"))
    with pytest.raises(ModelError, match=r"blk\.7\.ffn_up\.weight"):
        gguf.load_gguf(path, torch.float32)


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    model = gguf_files.model("qwen2")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
    path = gguf_files.write(tmp_path / "nan.gguf", model)
    with pytest.raises(ModelError, match=r"blk\.1\.ffn_up\.weight holds values that are not finite"):
        gguf.load_gguf(path, torch.float32)
