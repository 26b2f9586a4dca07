"""Which engine answers, and that a file read in pieces says what the whole model says."""

import inspect
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gguf_files
import llama_files
from znatok.config import ModelOptions
from znatok.errors import ModelError, SystemFault, UsageError
from znatok.generate import choose as module
from znatok.generate import embedding, llamacpp
from znatok.generate.choose import choose, file_format, gguf_base
from znatok.generate.embedding import FileEmbedding
from znatok.model.gguf_header import read_header
from znatok.model.source import resolve
from znatok.tokens.chat import choose_format, untrained_twins


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("choose")
    llama_files.write_base(folder)
    llama_files.write_adapter(folder / "adapter", folder / "qwen2.gguf")
    shutil.copytree(folder / "adapter", folder / "dora")
    llama_files.spoil(folder / "dora", use_dora=True)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZNATOK_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(llamacpp, "installed", lambda: True)


# The table


def ask(folder, asked="auto", name="qwen2.gguf", dtype="auto", adapter=None, *, cuda=False):
    base = gguf_base(str(folder / name), print)
    options = ModelOptions(model_name=name, dtype=dtype)
    return choose(asked, options, base, adapter and folder / adapter, cuda=cuda)


def test_llama_cpp_answers_where_it_fits(folder):
    for asked in ("auto", "llamacpp"):
        found = ask(folder, asked)
        assert (found.engine, found.adapter, found.reason) == ("llamacpp", None, "")
        tuned = ask(folder, asked, adapter="adapter")
        assert tuned.engine == "llamacpp"
        assert tuned.adapter.is_file()


def test_torch_answers_where_it_is_asked_to(folder):
    found = ask(folder, "torch")
    assert (found.engine, found.reason) == ("torch", "")


@pytest.mark.parametrize(
    ("case", "kind", "why"),
    [
        ({"name": "adapter"}, UsageError, "the model is no GGUF file"),
        ({"cuda": True}, UsageError, "there is a CUDA device, where torch is faster"),
        ({"dtype": "float32"}, UsageError, "--dtype float32 is for torch"),
        ({"adapter": "dora"}, ModelError, "use_dora is set, which llama.cpp does not know"),
        ({"installed": False}, SystemFault, r"it is not installed: pip install 'znatok\[llamacpp\]'"),
        ({"architecture": "phi3"}, UsageError, "the architecture phi3 was never tested with it"),
    ],
    ids=str,
)
def test_where_it_does_not_fit_auto_takes_torch_and_says_why_and_asking_for_it_is_an_error(
    folder, monkeypatch, case, kind, why
):
    case = dict(case)
    if not case.pop("installed", True):
        monkeypatch.setattr(llamacpp, "installed", lambda: False)
    if architecture := case.pop("architecture", None):
        real = module.read_header

        def other(path):
            header = real(path)
            header.metadata["general.architecture"] = architecture
            return header

        monkeypatch.setattr(module, "read_header", other)
    with pytest.raises(kind, match=f"^--engine llamacpp: .*{why}"):
        ask(folder, "llamacpp", **case)
    found = ask(folder, "auto", **case)
    assert found.engine == "torch"
    assert found.reason.startswith("llama.cpp can't: ")
    with pytest.raises(kind, match=why):
        raise kind(found.reason)


def test_a_cache_that_cannot_be_written_is_no_reason_to_be_silent(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ZNATOK_HOME", str(tmp_path / "file"))
    assert "llama.cpp can't: " in ask(folder, adapter="adapter").reason


# The base


def test_the_file_found_is_the_one_that_source_finds(folder):
    name = str(folder / "qwen2.gguf")
    base, source = gguf_base(name, print), resolve(name)
    assert (base.name, base.header.path, base.sha256, base.tied) == (
        source.name,
        source.path,
        source.sha256,
        source.tied,
    )
    assert base.kind == "F32"
    assert gguf_base(str(folder), print) is None
    assert gguf_base("some/model", print) is None
    assert gguf_base(str(folder / "none.gguf"), print) is None


@pytest.mark.real("smollm2-135m-instruct")
def test_a_catalogue_name_as_well(monkeypatch):
    monkeypatch.undo()  # the cache is the one with models again
    base, source = gguf_base("smollm2-135m-instruct", print), resolve("smollm2-135m-instruct")
    assert (base.header.path, base.sha256, base.tied) == (source.path, source.sha256, source.tied)
    assert base.kind == "Q4_1"


# The format, from a few rows


def test_the_threshold_is_that_of_the_tokens_module():
    assert inspect.signature(untrained_twins).parameters["threshold"].default == embedding.TWIN


def written(folder, weight_VD, kind="F32", head=None):
    model = gguf_files.model("qwen2", hidden_size=weight_VD.shape[1], vocab_size=weight_VD.shape[0])
    model.model.embed_tokens.weight.data = weight_VD
    return read_header(gguf_files.write(folder / "e.gguf", model, kind=kind, head=head))


@given(
    twins=st.integers(0, 40),
    noise=st.sampled_from([0.0, 0.01, 0.044, 0.0447, 0.045, 0.1]),
    scale=st.sampled_from([1.0, 1e-3, 30.0]),
    seed=st.integers(0, 1000),
)
def test_twins_counted_in_the_file_are_the_twins_of_the_matrix(tmp_path_factory, twins, noise, scale, seed):
    """Noise of 0.0447 of a row's norm is where the cosine is 0.999: rows on both sides of the threshold."""
    generator = torch.Generator().manual_seed(seed)
    weight_VD = torch.randn(320, 512, generator=generator)
    row_D = weight_VD[2]
    wobble = torch.randn(twins, 512, generator=generator) * noise
    weight_VD[10 : 10 + twins] = (row_D + wobble) * scale
    header = written(tmp_path_factory.mktemp("twins"), weight_VD)
    assert untrained_twins(FileEmbedding(header, tied=True), 2) == untrained_twins(weight_VD, 2)


def test_rows_of_nothing_and_rows_that_begin_with_nothing_are_counted_right(tmp_path):
    weight_VD = torch.randn(320, 512, generator=torch.Generator().manual_seed(0))
    weight_VD[5] = 0
    weight_VD[2, :256] = 0  # the first columns say nothing about this row
    weight_VD[7] = 3 * weight_VD[2]
    header = written(tmp_path, weight_VD)
    for token in (2, 5, 9):
        assert untrained_twins(FileEmbedding(header, tied=True), token) == untrained_twins(weight_VD, token)


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q5_0"])
def test_the_format_is_that_of_the_loaded_model(tmp_path, kind):
    for twins in (0, 5, 12):
        weight_VD = torch.randn(320, 512, generator=torch.Generator().manual_seed(0))
        weight_VD[300 : 300 + twins] = weight_VD[2]
        path = written(tmp_path, weight_VD, kind).path
        got = llama_files.loaded(path)
        for asked in ("auto", "plain", "chatml"):
            ours = file_format(gguf_base(str(path), print), asked)
            theirs = choose_format(got.tokenizer, got.model.get_input_embeddings().weight, asked)
            assert (ours.name, ours.reason, ours.end_id, ours.stop_ids) == (
                theirs.name,
                theirs.reason,
                theirs.end_id,
                theirs.stop_ids,
            )


def test_of_a_tied_head_and_embedding_the_finer_one_is_read(tmp_path):
    weight_VD = torch.randn(320, 512)
    header = written(tmp_path, weight_VD, "F16", head=weight_VD.clone())
    assert FileEmbedding(header, tied=True)._stored.nbytes >= header.tensors["token_embd.weight"].nbytes
    assert FileEmbedding(header, tied=False)._stored.name == "token_embd.weight"
