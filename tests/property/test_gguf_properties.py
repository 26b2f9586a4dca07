"""Whatever happens to a GGUF file, reading it ends in a model or in a ModelError, quickly; a whole one reads back."""

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

import gguf_files
from znatok.errors import ModelError
from znatok.model import gguf
from znatok.model.gguf_header import read_header
from znatok.model.gguf_names import ARCHITECTURES, tensor_names
from znatok.model.gguf_writer import gguf_writer, loud


@pytest.fixture(scope="module", params=ARCHITECTURES)
def blob(request, tmp_path_factory):
    """Return the bytes of a tiny file, where its data begin, and a scratch file."""
    folder = tmp_path_factory.mktemp("fuzz")
    path = gguf_files.write(folder / "good.gguf", gguf_files.model(request.param))
    start = min(tensor.start for tensor in read_header(path).tensors.values())
    return path.read_bytes(), start, folder / "bad.gguf"


def load(path):
    try:
        model = gguf.load_gguf(path, torch.float32).model
    except ModelError:
        return
    with torch.no_grad():
        assert model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, model.config.vocab_size)


@hypothesis.settings(max_examples=150)
@hypothesis.given(data=st.data())
def test_a_flipped_byte_in_the_header_gives_a_model_or_a_model_error(blob, data):
    good, start, path = blob
    at = data.draw(st.integers(0, start - 1))
    flip = data.draw(st.integers(1, 255))
    bad = bytearray(good)
    bad[at] ^= flip
    path.write_bytes(bad)
    load(path)


@hypothesis.settings(max_examples=40)
@hypothesis.given(data=st.data())
def test_a_truncated_file_is_a_model_error(blob, data):
    good, _start, path = blob
    path.write_bytes(good[: data.draw(st.integers(0, len(good) - 32))])  # the last bytes may be padding
    with pytest.raises(ModelError):
        gguf.load_gguf(path, torch.float32)


@hypothesis.settings(max_examples=60)
@hypothesis.given(data=st.data())
def test_any_eight_bytes_in_the_header_give_a_model_or_a_model_error(blob, data):
    """Counts, lengths and offsets are 64-bit: huge ones must be refused before memory is asked for."""
    good, start, path = blob
    at = data.draw(st.integers(4, start - 8))
    path.write_bytes(good[:at] + data.draw(st.binary(min_size=8, max_size=8)) + good[at + 8 :])
    load(path)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=20)
VALUES = st.one_of(
    TEXTS.filter(bool).map(lambda text: ("add_string", text)),  # its writer leaves out an empty one
    st.booleans().map(lambda flag: ("add_bool", flag)),
    st.integers(0, 2**64 - 1).map(lambda number: ("add_uint64", number)),
    st.integers(-(2**31), 2**31 - 1).map(lambda number: ("add_int32", number)),
    st.floats(allow_nan=False).map(lambda number: ("add_float64", number)),
    st.lists(TEXTS, min_size=1, max_size=5).map(lambda texts: ("add_array", texts)),
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=5).map(lambda numbers: ("add_array", numbers)),
)
SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@hypothesis.given(
    metadata=st.dictionaries(NAMES, VALUES, max_size=6), shapes=st.dictionaries(NAMES, SHAPES, max_size=4)
)
def test_what_is_written_is_what_is_read(tmp_path_factory, metadata, shapes):
    path = tmp_path_factory.getbasetemp() / "round.gguf"
    tensors = {
        name: np.random.default_rng(seed).standard_normal(shape, np.float32)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    with gguf_writer(path, "qwen2") as writer:
        for key, (method, value) in metadata.items():
            getattr(writer, method)(key, value)
        for name, tensor in tensors.items():
            writer.add_tensor(name, loud(tensor))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    header = read_header(path)
    found = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in header.metadata.items()}
    assert found == {"general.architecture": "qwen2"} | {key: value for key, (_method, value) in metadata.items()}
    assert {name: tensor.shape for name, tensor in header.tensors.items()} == shapes
    content = path.read_bytes()
    for name, tensor in header.tensors.items():
        assert content[tensor.start : tensor.start + tensor.nbytes] == tensors[name].tobytes()


@hypothesis.given(st.binary(max_size=400))
def test_any_bytes_behind_the_magic_are_a_model_error(tmp_path_factory, tail):
    path = tmp_path_factory.getbasetemp() / "noise.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0" + tail)
    with pytest.raises(ModelError):
        gguf.load_gguf(path, torch.float32)


@hypothesis.given(st.sampled_from(ARCHITECTURES), st.integers(1, 60))
def test_tensor_names_are_one_to_one(architecture, layers):
    names = tensor_names(architecture, layers)
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tensor_names_cover_the_model_exactly(architecture):
    model = gguf_files.model(architecture, tie_word_embeddings=False)
    assert set(tensor_names(architecture, 2).values()) == set(model.state_dict())
