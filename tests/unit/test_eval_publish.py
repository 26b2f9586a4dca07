import re

import pytest

import eval_samples as samples
from znatok.errors import UsageError
from znatok.eval.publish import END, IMAGES, START, publish, results_block
from znatok.eval.summary import summarise
from znatok.eval.texts import FILES
from znatok.files import write_json


def store(run, manifest):
    summary = summarise(samples.answers(), samples.losses(), seed=1).to_json()
    write_json(run / "compare" / "summary.json", {"run": manifest, **summary})


@pytest.fixture
def run(tmp_path):
    run = tmp_path / "run"
    for name in IMAGES:
        (run / "images").mkdir(parents=True, exist_ok=True)
        (run / "images" / name).write_bytes(b"\x89PNG " + name.encode())
    store(run, samples.manifest())
    for arm, name in FILES.items():
        (run / "compare" / name).write_text(arm, encoding="utf-8")
    return run


@pytest.fixture
def repo(tmp_path):
    repo = tmp_path / "repo"
    repo.mkdir()
    for name in ("README.md", "README.ru.md"):
        (repo / name).write_text(f"# znatok\n\n{START}\nold\n{END}\n\nafter {name}\n", encoding="utf-8")
    return repo


def test_everything_lands_where_the_seed_document_has_it(run, repo):
    written = publish(run, repo)
    expected = {*(f"images/{name}" for name in IMAGES), *FILES.values(), "README.md", "README.ru.md"}
    assert {path.relative_to(repo).as_posix() for path in written} == expected
    assert {path.relative_to(repo).as_posix() for path in repo.rglob("*") if path.is_file()} == expected
    assert (repo / "images" / IMAGES[0]).read_bytes() == (run / "images" / IMAGES[0]).read_bytes()
    assert (repo / "Базовая модель.txt").read_text(encoding="utf-8") == "base"


def test_readmes_get_the_table_in_their_language_and_keep_the_rest(run, repo):
    publish(run, repo)
    english, russian = ((repo / name).read_text(encoding="utf-8") for name in ("README.md", "README.ru.md"))
    assert english.startswith(f"# znatok\n\n{START}\n**Model**: `Qwen/Qwen2.5-1.5B` (SHA-256 `aaaaaaaaaaaaaaaa…`)")
    assert english.endswith(f"{END}\n\nafter README.md\n")
    assert "one training run, seed 42; 5 questions; machine: cpu Intel Xeon" in english
    assert "| Held-out loss per answer token ↓ | 20 | 2.475 [" in english
    assert "`znatok train --data_path=data.jsonl --output_dir 'run 1'`, `znatok compare`" in english
    assert "| Loss на токен ответа, отложенные вопросы ↓ | 20 | 2,475 [" in russian
    assert "old" not in english + russian


def test_publishing_twice_changes_nothing(run, repo):
    publish(run, repo)
    before = {path: path.read_bytes() for path in repo.rglob("*") if path.is_file()}
    publish(run, repo)
    assert before == {path: path.read_bytes() for path in repo.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model_name": "/home/anna/models/My Qwen"},
        {"model_name": "C:\\Users\\Anna\\qwen", "command": "python /home/anna/train_model.py --x=/home/anna/y"},
        {"machine": "box at /home/anna/box"},
    ],
)
def test_no_absolute_path_reaches_a_readme(run, repo, changes):
    store(run, samples.manifest() | changes)
    publish(run, repo)
    for name in ("README.md", "README.ru.md"):
        text = (repo / name).read_text(encoding="utf-8")
        assert not re.search(r"anna|/home|/srv|[A-Za-z]:[\\/]", text, re.IGNORECASE)
        assert str(repo.parent) not in text


def test_a_block_without_facts_still_says_how_it_was_made():
    block = results_block(summarise(samples.answers(), {}, seed=1), {}, "en")
    assert block.startswith("**Model**: `?`; 5 questions.")
    assert block.endswith("Commands: `znatok compare`. No number here was typed by hand.")


def test_a_manifest_cannot_break_out_of_the_block():
    evil = {"model_name": f"x`{END}<script>|\n# y", "machine": "a\nb | c"}
    block = results_block(summarise(samples.answers(), {}, seed=1), evil, "en")
    assert END not in block
    assert "<script" not in block
    assert block.splitlines()[0] == "**Model**: `x!-- results:end --script # y`; 5 questions; machine: a b c."


@pytest.mark.parametrize("missing", ["compare/summary.json", "compare/Базовая модель.txt", "images/training_loss.png"])
def test_a_missing_file_is_named_and_nothing_is_written(run, repo, missing):
    (run / missing).unlink()
    before = (repo / "README.md").read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="run znatok compare"):
        publish(run, repo)
    assert (repo / "README.md").read_text(encoding="utf-8") == before
    assert not (repo / "images").exists()


@pytest.mark.parametrize("text", ["nothing", f"{START} only", f"{END}\n{START}", f"{START}\n{END}\n{START}\n{END}"])
def test_missing_or_crossed_marks_are_an_error_and_nothing_is_written(run, repo, text):
    (repo / "README.ru.md").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"README\.ru\.md: needs one line"):
        publish(run, repo)
    assert not (repo / "images").exists()


def test_a_missing_readme_is_an_error(run, repo):
    (repo / "README.ru.md").unlink()
    with pytest.raises(UsageError, match=r"both README\.md and README\.ru\.md"):
        publish(run, repo)
