"""``system_fingerprint``: equal where the same request gets the same answer, another where it may not."""

import shutil
from dataclasses import replace

import pytest
import torch

import llama_files
import serving
from serving import SHORT, open_service
from znatok.files import sha256
from znatok.serve import roster
from znatok.serve.run import digests


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return serving.write_world(tmp_path_factory.mktemp("world"), names=("printing",))


def fingerprinted(world, model="printing", *, threads=None, version="1", **options):
    """Return the fingerprint that a model of a server with these options has."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(roster, "version", lambda _library: version)
        torch.set_num_threads(threads or before)
        try:
            service = open_service(world[0], world[1], **options)
        finally:
            torch.set_num_threads(before)
    service.dispatcher.close()
    return service.fingerprint(service.roster.models[model])


@pytest.fixture(scope="module")
def usual(world):
    return fingerprinted(world)


def test_equal_servers_have_one_fingerprint(world, usual):
    assert fingerprinted(world) == usual


@pytest.mark.parametrize(
    ("model", "change"),
    [
        ("printing", {"threads": 1 + torch.get_num_threads()}),
        ("printing", {"version": "2"}),
        ("printing", {"dtype": "bfloat16"}),
        ("printing", {"context": 128}),
        ("printing", {"knowledge_files": ("1f3a",)}),
        ("printing", {"sample": replace(SHORT, top_k=5)}),
        ("printing", {"sample": replace(SHORT, max_new_tokens=13)}),
        ("base", {}),
    ],
    ids=str,
)
def test_a_server_that_may_answer_otherwise_has_another_fingerprint(world, usual, model, change):
    """It named the files, the engine and the number format alone: another server's defaults looked the same."""
    assert fingerprinted(world, model, **change) != usual


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [("adapter_config.json", '"lora_alpha": 32', '"lora_alpha": 16'), ("manifest.json", "Система 1", "Система 3")],
)
def test_a_run_that_was_changed_has_another_fingerprint(world, tmp_path, usual, file, old, new):
    runs = shutil.copytree(world[1], tmp_path / "runs")
    changed = runs / "printing" / file
    text = changed.read_text(encoding="utf-8")
    assert old in text
    changed.write_text(text.replace(old, new), "utf-8")
    assert fingerprinted((world[0], runs)) != usual


@llama_files.needs_llama
def test_what_computes_is_named_with_its_version(world, tmp_path):
    service = open_service(llama_files.write_base(tmp_path), None, engine="llamacpp", dtype="auto")
    (model,) = service.roster.models.values()
    service.dispatcher.close()
    service.roster.close()
    assert set(model.traits["versions"]) == {"znatok", "xllamacpp"}
    assert fingerprinted(world, "base") != service.fingerprint(model)


def test_the_system_message_of_the_base_is_in_its_fingerprint(world, monkeypatch):
    before = fingerprinted(world, "base")
    monkeypatch.setattr(serving, "SYSTEM", "Отвечай иначе.")
    assert fingerprinted(world, "base") != before


def test_knowledge_is_named_by_its_file_and_the_lexicon_beside_it(tmp_path):
    facts = tmp_path / "facts.md"
    facts.write_text("PLA печатают при 200 °C.", "utf-8")
    alone = digests(facts)
    (tmp_path / "lexicon.toml").write_text("", "utf-8")
    assert digests(None) == ()
    assert alone == digests(facts)[:1] == (sha256(facts),)
    assert digests(facts)[1:] == (sha256(tmp_path / "lexicon.toml"),)
