import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

import eval_samples as samples
from znatok.errors import DataError, UsageError
from znatok.eval.figures import (
    WIDTH,
    Curve,
    best,
    comparison_table,
    dataset_example,
    loss_curve,
    smoothed,
    training_loss,
)

HOSTILE = "$\\frac{1}{2$ 打印 \x1b[31m \u202e <b> \ud800 слово" + "ж" * 300 + "\t\u2009конец"


def pixels(path):
    """Return the picture as grey values; a blank one has no variance."""
    grey = matplotlib.image.imread(path)[..., :3].mean(axis=2)
    assert grey.std() > 0.05
    return grey


def margin_is_clean(grey, width=8):
    edges = (grey[:width], grey[-width:], grey[:, :width], grey[:, -width:])
    return all((edge == 1).all() for edge in edges)


def test_training_loss_is_drawn_in_both_languages(tmp_path):
    for language in ("ru", "en"):
        training_loss(samples.metrics_rows(), tmp_path / "loss.png", language)
        assert pixels(tmp_path / "loss.png").shape == (1080, 1800)


@pytest.mark.parametrize("steps", [3, 30, 600])
def test_training_loss_of_short_and_long_runs(tmp_path, steps):
    training_loss(samples.metrics_rows(steps), tmp_path / "loss.png")
    pixels(tmp_path / "loss.png")


def test_training_loss_of_one_step_without_validation(tmp_path):
    training_loss([samples.metrics_rows()[0]], tmp_path / "loss.png")
    pixels(tmp_path / "loss.png")


def test_pictures_are_the_same_bytes_every_time(tmp_path):
    for name in ("a", "b"):
        training_loss(samples.metrics_rows(), tmp_path / f"loss-{name}")
        comparison_table(samples.answers(), tmp_path / f"table-{name}")
        dataset_example(samples.pairs(), tmp_path / f"data-{name}")
    for kind in ("loss", "table", "data"):
        first, second = ((tmp_path / f"{kind}-{name}").read_bytes() for name in ("a", "b"))
        assert first == second
        assert b"Software" not in first
    assert len(list(tmp_path.iterdir())) == 6  # and no temporary file stayed


def test_reports_need_neither_torch_nor_pyplot():
    names = "figures, labels, metrics, publish, records, report, stats, summary, texts, typeset"
    code = f"import sys; from znatok.eval import {names}; print({{'torch', 'matplotlib.pyplot'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "set()\n"


def test_a_step_repeated_after_resume_counts_once():
    rows = [{"step": 1, "epoch": 1, "loss": 3.0}, {"step": 2, "epoch": 1, "loss": 9.0}]
    rows += [{"step": 2, "epoch": 1, "loss": 2.0}, {"step": 2, "epoch": 1, "val_loss": 2.5}]
    assert loss_curve(rows) == Curve([1, 2], [3.0, 2.0], [2], [2.5])


def test_no_training_rows_are_an_error(tmp_path):
    with pytest.raises(DataError, match="no training rows"):
        training_loss([{"step": 1, "epoch": 1, "val_loss": 1.0}], tmp_path / "loss.png")
    assert not list(tmp_path.iterdir())


def test_best_is_the_lowest_validation_loss_or_else_the_lowest_smoothed_one():
    assert best(Curve([1, 2, 3], [3, 1, 2], [1, 3], [2.0, 1.5])) == (3, 1.5)
    assert best(Curve([1, 2, 3], [3, 1, 2], [], [])) == (2, 1)


def test_smoothing_is_centred_and_keeps_the_length():
    assert smoothed([1.0, 5.0]) == [1.0, 5.0]
    values = list(map(float, range(32)))
    assert smoothed(values) == values  # a straight line stays where it is, at its ends too
    assert smoothed([0.0, 3.0] * 16)[2] == pytest.approx(6 / 5)


def test_table_is_wide_readable_and_not_clipped(tmp_path):
    comparison_table(samples.answers(), tmp_path / "table.png")
    grey = pixels(tmp_path / "table.png")
    assert grey.shape[1] == WIDTH
    assert 900 < grey.shape[0] < 3000
    assert margin_is_clean(grey)


def test_table_grows_with_its_text_up_to_the_limit(tmp_path):
    heights = []
    for length in (10, 30, 1000, 4000):
        rows = [samples.answer(arm=arm, text="слово " * length) for arm in ("base", "tuned")]
        comparison_table(rows, tmp_path / "table.png")
        heights.append(pixels(tmp_path / "table.png").shape[0])
    assert heights[0] < heights[1] < heights[2] == heights[3]


def test_what_a_model_wrote_cannot_break_the_table(tmp_path):
    rows = [samples.answer(arm=arm, text=text, question=HOSTILE) for arm, text in (("base", HOSTILE), ("tuned", " "))]
    comparison_table(rows, tmp_path / "table.png")
    assert margin_is_clean(pixels(tmp_path / "table.png"))


def test_table_shows_the_seed_questions_first_and_greedy_where_nothing_was_sampled(tmp_path):
    seed, other = samples.answers(), [samples.answer("u", arm, set="user") for arm in ("base", "tuned")]
    comparison_table(seed, tmp_path / "a.png")
    comparison_table(other + seed, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    comparison_table([row for row in seed if row["mode"] == "greedy"], tmp_path / "c.png")
    comparison_table([samples.answer()], tmp_path / "d.png", "en")  # the other model wasn't asked
    pixels(tmp_path / "d.png")


def test_table_of_nothing_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no answers"):
        comparison_table([], tmp_path / "table.png")


def test_dataset_card_colours_its_keys(tmp_path):
    dataset_example(samples.pairs(), tmp_path / "data.png")
    picture = matplotlib.image.imread(tmp_path / "data.png")[..., :3]
    for colour in ("#1d4ed8", "#0f766e", "#9333ea"):
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        assert (np.abs(picture - wanted).max(axis=2) < 0.02).any(), colour
    assert margin_is_clean(pixels(tmp_path / "data.png"))


def test_dataset_card_of_long_odd_and_no_records(tmp_path):
    pairs = [{"prompt": HOSTILE, "response": HOSTILE * 20, "topic": "", "fact_ids": ("a", "b"), "line": 103}]
    dataset_example(pairs, tmp_path / "data.png", "en", name="мои данные.jsonl")
    assert margin_is_clean(pixels(tmp_path / "data.png"))
    with pytest.raises(DataError, match="empty"):
        dataset_example([], tmp_path / "data.png")


def test_unknown_language_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="expected one of en, ru"):
        training_loss(samples.metrics_rows(), tmp_path / "loss.png", "fr")
