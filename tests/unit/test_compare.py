import dataclasses
import json
import shutil
import signal
from pathlib import Path

import pytest

import helpers
import tiny
from znatok.config import ModelOptions, SampleOptions
from znatok.data.load import read_pairs
from znatok.data.split import split
from znatok.errors import DataError
from znatok.eval.compare import ask_all, compare, plan_comparison, write_artefacts
from znatok.eval.summary import Summary
from znatok.expert import Voice, open_expert
from znatok.files import read_json, read_jsonl, sha256, write_json, write_text
from znatok.model.score import answer_losses
from znatok.runs import Run
from znatok.tokens.encode import EncodeRule, encode_pairs

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SAMPLE = SampleOptions(max_new_tokens=6)


def planned(run, questions=None, heldout=None, asked=2):
    return plan_comparison(run, questions, heldout, asked=asked, sample=SAMPLE, seed=42)


def untrained(folder, data, **options):
    """Return a run directory that holds its options and nothing else."""
    run = Run(folder / "run")
    write_text(run.options, helpers.settings("model", data, run.path, **options).to_toml())
    return run


@pytest.fixture
def eval_files(tmp_path):
    folder = tmp_path / "data" / "eval"
    folder.mkdir(parents=True)
    (folder / "questions.txt").write_text("Что такое сопло?\nЧто такое стол?\n", encoding="utf-8")
    tiny.write_pairs(folder / "heldout.jsonl", tiny.PAIRS[:3])
    return folder


# What is asked


def test_the_project_data_set_is_asked_the_projects_questions(tmp_path, eval_files):
    what = planned(untrained(tmp_path, tiny.write_pairs(tmp_path / "data.jsonl")))
    assert [q.text for q in what.questions] == ["Что такое сопло?", "Что такое стол?"]
    assert (what.heldout_name, len(what.heldout)) == ("heldout.jsonl", 3)
    assert (what.sample, what.seed, what.heldout_asked) == (SAMPLE, 42, 2)


def test_another_data_set_is_asked_its_own_validation_pairs(tmp_path, eval_files):
    data = tiny.write_pairs(tmp_path / "other.jsonl")
    what = planned(untrained(tmp_path, data, seed=7, data_options={"val_share": 0.3}))
    assert what.questions == ()
    assert what.heldout_name == "validation"
    assert what.heldout == split(read_pairs(data).pairs, 0.3, 7).validation
    assert len(what.heldout) == 3


def test_a_run_with_a_validation_file_of_its_own_is_measured_on_that(tmp_path, eval_files):
    """All of its data was trained: a share split off again would measure what it has seen."""
    data = tiny.write_pairs(tmp_path / "other.jsonl", tiny.PAIRS[:6])
    own = tiny.write_pairs(tmp_path / "dev.jsonl", tiny.PAIRS[6:])
    what = planned(untrained(tmp_path, data, data_options={"val_path": str(own), "val_share": 0.3}))
    assert [(pair.prompt, pair.response) for pair in what.heldout] == tiny.PAIRS[6:]
    own.unlink()
    with pytest.raises(DataError, match=r"dev\.jsonl"):
        planned(Run(tmp_path / "run"))


@pytest.mark.parametrize("which", ["data", "validation"])
def test_data_that_changed_since_the_training_hold_nothing_out(tmp_path, which):
    data = tiny.write_pairs(tmp_path / "other.jsonl", tiny.PAIRS[:6])
    own = tiny.write_pairs(tmp_path / "dev.jsonl", tiny.PAIRS[6:])
    options = {"val_path": str(own)} if which == "validation" else {"val_share": 0.3}
    run = untrained(tmp_path, data, data_options=options)
    file = own if which == "validation" else data
    write_json(run.manifest, {which: {"sha256": sha256(file)}})
    assert planned(run).heldout
    with file.open("a", encoding="utf-8") as more:
        more.write('{"prompt": "Новый вопрос?", "response": "Да."}\n')
    with pytest.raises(DataError, match=r"has changed since the training.*--heldout"):
        planned(run)


def test_the_files_named_come_before_all_others(tmp_path, eval_files, pairs_file):
    questions = tmp_path / "mine.txt"
    questions.write_text("Почему?\n", encoding="utf-8")
    what = planned(untrained(tmp_path, tiny.write_pairs(tmp_path / "data.jsonl")), questions, pairs_file)
    assert [q.text for q in what.questions] == ["Почему?"]
    assert (what.heldout_name, len(what.heldout)) == ("pairs.jsonl", 10)


def test_questions_may_be_pairs_with_a_reference(tmp_path, pairs_file):
    what = planned(untrained(tmp_path, pairs_file), questions=pairs_file)
    assert [(q.text, q.reference) for q in what.questions] == tiny.PAIRS


@pytest.mark.parametrize("which", ["questions", "heldout"])
def test_a_named_file_that_is_missing_is_an_error(tmp_path, pairs_file, which):
    with pytest.raises(DataError, match="nothing"):
        planned(untrained(tmp_path, pairs_file), **{which: tmp_path / "nothing.jsonl"})


def test_without_pairs_that_were_not_trained_there_is_no_comparison(tmp_path, pairs_file):
    with pytest.raises(DataError, match=r"no held-out pairs: name a file .* with --heldout"):
        planned(untrained(tmp_path, pairs_file, data_options={"val_share": 0}))


def test_data_that_have_gone_are_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jsonl"):
        planned(untrained(tmp_path, tmp_path / "gone.jsonl"))


# What comes of it


@pytest.fixture(scope="module")
def compared(tiny_dir, tmp_path_factory):
    """Return a run after a comparison, what was asked, and the expert."""
    folder = tmp_path_factory.mktemp("compare")
    data = tiny.write_pairs(folder / "pairs.jsonl")
    run = helpers.trained(tiny_dir, data, folder / "run", learning_rate=0.02, data_options={"val_share": 0.3})
    questions = folder / "questions.txt"
    questions.write_text("Что такое сопло?\nЧто такое стол?\n", encoding="utf-8")
    what = planned(run, questions)
    expert = open_expert(ModelOptions(model_name="", dtype="float32"), run, "")
    compare(expert, run, what)
    return run, what, expert


@pytest.fixture
def copy(compared, tmp_path):
    """Return a copy of the run, to be written to."""
    return Run(shutil.copytree(compared[0].path, tmp_path / "copy"))


def test_both_voices_are_asked_the_same_with_the_same_seed(compared):
    run, what, _expert = compared
    rows = read_jsonl(run.compare / "answers.jsonl")
    asked = {arm: [(r["id"], r["set"], r["mode"], r["seed"]) for r in rows if r["arm"] == arm] for arm in Voice}
    assert asked[Voice.BASE] == asked[Voice.TUNED]
    assert len(asked[Voice.BASE]) == 2 * len(what.questions) + what.heldout_asked
    assert {seed for *_rest, seed in asked[Voice.BASE]} == {42}
    assert all(row["tokens"] <= 6 for row in rows)


def test_the_base_answers_as_if_there_were_no_adapter(compared, tiny_dir):
    run, what, expert = compared
    bare = open_expert(ModelOptions(model_name=str(tiny_dir), dtype="float32"), None, expert.system)
    rows = [row for row in read_jsonl(run.compare / "answers.jsonl") if row["arm"] == "base"]
    assert [row["text"] for row in ask_all(bare, Voice.BASE, what)] == [row["text"] for row in rows]
    assert len({row["text"] for row in rows}) > 1


def test_the_summary_holds_losses_of_both_voices_as_computed_apart(compared):
    run, what, expert = compared
    (row,) = [row for row in read_json(run.compare / "summary.json")["rows"] if row["key"] == "loss"]
    examples = encode_pairs(what.heldout, expert.chat, EncodeRule(expert.system, 2048)).examples
    for voice in Voice:
        with expert.speaking(voice):
            found = answer_losses(expert.model, examples)
        mean = sum(total for total, _n in found) / sum(n for _total, n in found)
        assert row[voice]["value"] == pytest.approx(mean, abs=1e-9)


def test_everything_is_written_into_the_run(compared):
    run, _what, _expert = compared
    for name in ("training_loss", "comparison_table", "dataset_example"):
        assert (run.images / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    for name in ("answers.jsonl", "summary.json", "Базовая модель.txt", "дообученная модель.txt"):
        assert (run.compare / name).stat().st_size > 100
    assert "<html" in (run.path / "report.html").read_text(encoding="utf-8")


def test_the_facts_say_which_model_adapter_and_data_were_compared(compared):
    run, what, expert = compared
    facts = read_json(run.compare / "summary.json")["run"]
    assert facts["base_sha256"] == expert.loaded.source.sha256
    assert facts["adapter_sha256"] == sha256(run.path / "adapter_model.safetensors")
    assert facts["data_sha256"] == sha256(Path(facts["data_path"]))
    assert (facts["seed"], facts["heldout"], facts["sampling"]) == (42, what.heldout_name, SAMPLE.described())


def test_comparing_again_gives_the_same_answers(compared, copy):
    run, what, expert = compared

    def answers(of):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in read_jsonl(of.compare / "answers.jsonl")]

    compare(expert, copy, what)
    assert answers(copy) == answers(run)


@pytest.mark.parametrize("language", ["en", "ru"])
def test_pictures_and_report_speak_the_language_of_the_messages(compared, copy, monkeypatch, language):
    """They were in Russian whatever the language."""
    run, _what, _expert = compared
    spoken = []
    for name in ("training_loss", "comparison_table", "dataset_example"):
        monkeypatch.setattr(f"znatok.eval.compare.{name}", lambda _rows, _path, words, **_: spoken.append(words))
    monkeypatch.setattr("znatok.eval.compare.own_language", lambda: language)
    stored = read_json(run.compare / "summary.json")
    write_artefacts(copy, Summary.from_json(stored), read_jsonl(run.compare / "answers.jsonl"), stored["run"])
    assert spoken == [language] * 3
    assert f'<html lang="{language}"' in (copy.path / "report.html").read_text(encoding="utf-8")


def test_a_comparison_that_is_cut_short_leaves_the_one_before(compared, copy, monkeypatch):
    _run, what, expert = compared
    before = {path: path.read_bytes() for path in copy.path.rglob("*") if path.is_file()}
    answered = []

    def interrupted(_index, answer):
        answered.append(answer)
        if len(answered) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("znatok.eval.compare._progress", lambda *_: interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(expert, copy, what)
    assert {path: path.read_bytes() for path in copy.path.rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    compare(expert, copy, what)  # and the model is as usable as ever


def test_ten_thousand_questions_are_read_and_a_bad_one_among_them_is_named(tmp_path):
    run = untrained(tmp_path, tiny.write_pairs(tmp_path / "other.jsonl"))
    path = tmp_path / "many.txt"
    path.write_text("".join(f"Что такое {number}?\n\n" for number in range(10_000)), encoding="utf-8")
    what = planned(run, path)
    assert len({question.id for question in what.questions}) == 10_000
    assert what.questions[-1].id == "many-19999"
    rows = [json.dumps({"prompt": f"Что такое {number}?", "response": "Да."}) for number in range(10_000)]
    bad = tmp_path / "many.jsonl"
    bad.write_text("\n".join([*rows[:-1], '{"prompt": 5}']), encoding="utf-8")
    with pytest.raises(DataError, match=r"many\.jsonl:10000"):
        planned(run, bad)


def test_a_comparison_without_questions_still_asks_held_out_ones(compared, copy):
    _run, what, expert = compared
    summary = compare(expert, copy, dataclasses.replace(what, questions=()))
    assert summary.questions == what.heldout_asked == 2
    assert {row["set"] for row in read_jsonl(copy.compare / "answers.jsonl")} == {"heldout"}


def test_data_that_can_not_be_read_any_more_cost_their_picture_and_not_the_report(compared, copy, tmp_path, capsys):
    _run, what, expert = compared
    (tmp_path / "gone.jsonl").write_text("prompt,response\n", encoding="utf-8")
    manifest = copy.read_manifest()
    write_json(copy.manifest, manifest | {"data": {**manifest["data"], "path": str(tmp_path / "gone.jsonl")}})
    compare(expert, copy, dataclasses.replace(what, questions=(), heldout_asked=0))
    assert "gone.jsonl: not JSON Lines (CSV?)" in capsys.readouterr().err
    assert "dataset_example" not in (copy.path / "report.html").read_text(encoding="utf-8")


def test_held_out_losses_alone_are_a_comparison_too(compared, copy):
    _run, what, expert = compared
    summary = compare(expert, copy, dataclasses.replace(what, questions=(), heldout_asked=0))
    assert [row.key for row in summary.rows] == ["loss"]
    assert not (copy.images / "comparison_table.png").exists()
    assert "comparison_table" not in (copy.path / "report.html").read_text(encoding="utf-8")


def test_a_damaged_row_of_the_curve_costs_itself_and_not_the_report(compared, copy, capsys):
    _run, what, expert = compared
    with copy.metrics.open("a", encoding="utf-8") as file:
        file.write("5\n")
    compare(expert, copy, dataclasses.replace(what, questions=(), heldout_asked=0))
    assert "left out: " in capsys.readouterr().err
    assert (copy.images / "training_loss.png").is_file()
