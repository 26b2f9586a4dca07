"""What is trained and validated on: what is said of the files, and options that contradict them."""

import json

import pytest

import helpers
import tiny
from znatok.cli import main
from znatok.config import DataOptions, SampleOptions
from znatok.errors import DataError, UsageError
from znatok.eval.compare import plan_comparison
from znatok.files import sha256, write_text
from znatok.runs import Run
from znatok.train import run as run_module
from znatok.train.prepare import prepare, read, sides

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def write(path, pairs, *more):
    lines = [json.dumps({"prompt": q, "response": a}, ensure_ascii=False) for q, a in pairs]
    path.write_text("\n".join([*lines, *more]), encoding="utf-8")
    return path


def divided(data, data_options=None, **train_options):
    """Return the two sides of some data, as training divides them."""
    config = helpers.settings("model", data, "run", data_options=data_options, **train_options)
    own = config.data.val_path
    return sides(read(str(data), config), read(own, config) if own else None, config)


# Bad records


@pytest.fixture
def damaged(tmp_path):
    """Return a file of training pairs and one of validation pairs with bad records in both."""
    data = write(tmp_path / "data.jsonl", tiny.PAIRS[:6], '{"prompt": "Что?", "response": "\u200b"}', '{"prompt": "Чт')
    own = write(tmp_path / "dev.jsonl", tiny.PAIRS[6:], '{"question": "Что?", "answer": "Да."}')
    return data, own


def test_bad_records_of_both_files_are_left_out_and_each_is_named(damaged, tiny_dir, tmp_path, capsys):
    data, own = damaged
    options = {"val_path": str(own), "skip_bad": True}
    ready = prepare(helpers.settings(tiny_dir, data, tmp_path / "run", data_options=options))
    assert (len(ready.train), len(ready.validation)) == (6, 4)
    said = capsys.readouterr().err
    assert f'{data}:7: "response" is empty' in said
    assert f"{data}:8: cut short" in said
    assert f"{data}: bad records left out: 2" in said
    assert f'{own}:5: no key "prompt", "response"' in said
    assert f"{own}: bad records left out: 1" in said


@pytest.mark.parametrize("which", ["data", "validation"])
def test_bad_records_of_either_file_stop_training_unless_they_may_be_skipped(damaged, tmp_path, which):
    data, own = damaged
    good = write(tmp_path / "good.jsonl", tiny.PAIRS[:6])
    with pytest.raises(DataError, match=r"data.jsonl: records .*: 2" if which == "data" else r"dev\.jsonl:5: no key"):
        divided(data if which == "data" else good, {"val_path": str(own)})


def test_a_comparison_leaves_out_what_the_training_left_out(damaged, tmp_path):
    data, own = damaged
    run = Run(tmp_path / "run")
    options = {"val_path": str(own), "skip_bad": True}
    write_text(run.options, helpers.settings("model", data, run.path, data_options=options).to_toml())
    what = plan_comparison(run, None, None, asked=2, sample=SampleOptions(), seed=42)
    assert [pair.line for pair in what.heldout] == [1, 2, 3, 4]


# Options and data that contradict each other


@pytest.mark.parametrize(
    ("options", "flag"), [({"keep": "best"}, "--keep best"), ({"early_stopping": 3}, "--early_stopping")]
)
@pytest.mark.parametrize(
    ("count", "share", "why"), [(10, 0, "--val_share 0"), (2, 0.1, "validation is off: 2 pairs are too few to split")]
)
def test_judging_by_validation_pairs_that_are_not_there_is_refused(tmp_path, options, flag, count, share, why):
    data = write(tmp_path / "data.jsonl", tiny.PAIRS[:count])
    with pytest.raises(UsageError) as caught:
        divided(data, {"val_share": share}, **options)
    assert str(caught.value).startswith(f"{flag} needs validation pairs, and there are none ({why}); ")


def test_that_refusal_comes_before_a_model_is_loaded(tmp_path, capsys):
    data = write(tmp_path / "data.jsonl", tiny.PAIRS[:2])
    words = ["train", "--model_name", "no/such-model", "--data_path", str(data), "--output_dir", str(tmp_path / "run")]
    assert main([*words, "--recipe", "seed", "--keep", "best"]) == 2
    assert "--keep best needs validation pairs" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [{}, {"keep": "best", "early_stopping": 2}])
def test_with_validation_pairs_there_is_nothing_to_refuse(tmp_path, options):
    data, own = write(tmp_path / "data.jsonl", tiny.PAIRS[:6]), write(tmp_path / "dev.jsonl", tiny.PAIRS[6:])
    assert len(divided(data, {"val_share": 0.2}, **options).validation) == 1
    assert len(divided(data, {"val_path": str(own)}, **options).validation) == 4


@pytest.mark.parametrize(("share", "told"), [(0.3, True), (0, False), (DataOptions().val_share, False)])
def test_a_share_beside_a_file_of_validation_pairs_has_no_effect_and_that_is_said(tmp_path, capsys, share, told):
    data, own = write(tmp_path / "data.jsonl", tiny.PAIRS[:6]), write(tmp_path / "dev.jsonl", tiny.PAIRS[6:])
    parts = divided(data, {"val_path": str(own), "val_share": share})
    assert (len(parts.train), len(parts.validation)) == (6, 4)
    assert (f"--val_share {share} has no effect beside --val_path {own}" in capsys.readouterr().err) == told


def test_a_question_that_is_trained_too_is_no_validation_pair(tmp_path):
    data = write(tmp_path / "data.jsonl", tiny.PAIRS[:6])
    own = write(tmp_path / "a\nb.jsonl", [*tiny.PAIRS[6:8], (f" {tiny.PAIRS[2][0].upper()}", "Иначе.")])
    with pytest.raises(DataError, match=r"a\\nb\.jsonl':3: this question is trained on too") as caught:
        divided(data, {"val_path": str(own)})
    assert str(caught.value).isprintable()


# From the files to the tokens


def test_an_answer_that_is_too_long_is_shortened_with_its_line_or_refused(tiny_dir, tmp_path, capsys):
    long = ("Что такое стол?", "Плоскость, на которой печатают. " * 8)
    data = write(tmp_path / "data.jsonl", [*tiny.PAIRS[:5], long])
    options = {"max_length": 96, "system": "", "val_share": 0}
    ready = prepare(helpers.settings(tiny_dir, data, tmp_path / "run", data_options=options))
    (shortened,) = [example for example in ready.train if example.pair.line == 6]
    assert len(shortened.ids) <= 96
    assert ready.chat.tokenizer.decode(shortened.ids[shortened.answer_start : -1]).endswith("печатают.")
    assert f"{data}, line 6: the answer was shortened from " in capsys.readouterr().err
    with pytest.raises(DataError, match=r"data\.jsonl, line 6: prompt and answer take more than --max_length 96"):
        prepare(helpers.settings(tiny_dir, data, tmp_path / "run", data_options=options | {"overlong": "refuse"}))


def test_a_question_without_room_is_told_with_its_file(tiny_dir, tmp_path):
    data = write(tmp_path / "data.jsonl", tiny.PAIRS[:6])
    own = write(tmp_path / "dev.jsonl", [tiny.PAIRS[6], ("Что? " * 200, "Да.")])
    options = {"max_length": 96, "val_path": str(own)}
    with pytest.raises(DataError, match=r"dev\.jsonl, line 2: the question takes \d+ tokens of 96"):
        prepare(helpers.settings(tiny_dir, data, tmp_path / "run", data_options=options))


def test_paths_with_spaces_and_letters_of_any_kind_are_trained_and_validated_on(tiny_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "мои данные 'ё'").mkdir()
    data = write(tmp_path / "мои данные 'ё'" / "для обучения 😀.jsonl", tiny.PAIRS[:6])
    own = write(tmp_path / "-n.jsonl", tiny.PAIRS[6:])
    words = ["train", "--recipe", "seed", "--model_name", str(tiny_dir), "--threads", "1", "--dtype", "float32"]
    words += ["--data_path", str(data.relative_to(tmp_path)), f"--val_path={own.name}", "--max_steps", "2"]
    assert main([*words, "--output_dir", "мой знаток/первый"]) == 0
    assert Run(tmp_path / "мой знаток" / "первый").has_adapter()


# The smallest data, and data that change


@pytest.mark.parametrize("count", [1, 2])
def test_one_pair_or_two_are_all_trained_and_a_note_says_why_nothing_is_validated(tiny_dir, tmp_path, capsys, count):
    data = write(tmp_path / "data.jsonl", tiny.PAIRS[:count])
    run = helpers.trained(tiny_dir, data, tmp_path / "run", num_train_epochs=2)
    assert len(helpers.losses(run)) == 2
    assert helpers.validations(run) == []
    assert run.has_adapter()
    assert f"validation is off: {count} pairs are too few to split" in capsys.readouterr().err


def test_the_hashes_in_the_manifest_are_those_of_what_was_read(tiny_dir, tmp_path, monkeypatch):
    """Once the hash of the validation pairs was taken from their file when the run ended."""
    data, own = write(tmp_path / "data.jsonl", tiny.PAIRS[:6]), write(tmp_path / "dev.jsonl", tiny.PAIRS[6:])
    before = [sha256(data), sha256(own)]

    class Appended(run_module.Metrics):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                for file in (data, own):
                    write(file, [("Новый вопрос?", "Да."), *tiny.PAIRS[:2]])
            super().on_step_begin(args, state, control, **kwargs)

    monkeypatch.setattr(run_module, "Metrics", Appended)
    run = helpers.trained(tiny_dir, data, tmp_path / "run", data_options={"val_path": str(own)}, max_steps=3)
    assert [sha256(data), sha256(own)] != before
    manifest = run.read_manifest()
    assert [manifest[name]["sha256"] for name in ("data", "validation")] == before
    assert manifest["data"]["pairs"] == 6


@pytest.mark.parametrize("which", ["data", "validation"])
def test_an_edit_that_keeps_the_number_of_pairs_can_not_be_resumed_with(tiny_dir, tmp_path, which):
    data, own = write(tmp_path / "data.jsonl", tiny.PAIRS[:6]), write(tmp_path / "dev.jsonl", tiny.PAIRS[6:])
    options = {"data_options": {"val_path": str(own)}, "max_steps": 2}
    helpers.trained(tiny_dir, data, tmp_path / "run", **options)
    file = data if which == "data" else own
    file.write_text(file.read_text(encoding="utf-8").replace("?", "??", 1), encoding="utf-8")
    with pytest.raises(UsageError, match=rf"the run was started otherwise \({which}\.sha256: \w{{64}} → \w{{64}}\)"):
        helpers.trained(tiny_dir, data, tmp_path / "run", resume=True, **options)
