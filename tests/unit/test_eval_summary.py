import dataclasses
import json

import pytest

import eval_samples as samples
from znatok.errors import DataError
from znatok.eval.stats import Interval
from znatok.eval.summary import Summary, Verdict, summarise, verdict


def rows_of(summary):
    return {row.key: row for row in summary.rows}


def many(n=20, **tuned):
    """The same question-by-question picture on ``n`` questions."""
    return [
        samples.answer(f"q{i}", arm, "greedy", set="heldout", **(tuned if arm == "tuned" else {}))
        for i in range(n)
        for arm in ("base", "tuned")
    ]


def test_held_out_loss_by_hand():
    row = summarise([], samples.losses(), seed=1).rows[0]
    assert (row.key, row.n, row.better) == ("loss", 20, "lower")
    assert row.base.value == pytest.approx((20 * 20 + 95) / 200)
    assert row.tuned.value == pytest.approx(row.base.value - 0.5)
    assert (row.difference.low, row.difference.high) == pytest.approx((-0.5, -0.5))
    assert row.p < 0.001
    assert row.verdict == "shown"


def test_rows_come_for_each_mode_that_was_run():
    keys = [row.key for row in summarise(samples.answers(), samples.losses(), seed=1).rows]
    assert keys[0] == "loss"
    assert keys[1:5] == ["stop.sampled", "tokens.sampled", "repetition.sampled", "cjk.sampled"]
    assert keys[5:] == ["stop.greedy", "tokens.greedy", "repetition.greedy", "cjk.greedy"]
    assert [row.key for row in summarise(many(), {}, seed=1).rows] == keys[5:]


def test_stop_share_has_wilson_intervals_and_mcnemars_p():
    row = rows_of(summarise(samples.answers(), {}, seed=1))["stop.greedy"]
    assert (row.base.value, row.tuned.value, row.difference.value) == (0, 1, 1)
    assert (row.base.high, row.tuned.low) == pytest.approx((0.4345, 0.5655), abs=1e-4)
    assert row.p == pytest.approx(6 * 2 / 2**5)  # Holm over the six judged rows
    assert row.verdict == "not shown"  # five questions can't show it, whatever the interval


def test_twenty_questions_can_show_what_five_cannot():
    row = rows_of(summarise(many(), {}, seed=1))["stop.greedy"]
    assert (row.n, row.verdict) == (20, "shown")


def test_a_model_that_got_worse_is_called_worse():
    row = rows_of(summarise(many(text="材料 " * 9), {}, seed=1))
    assert row["cjk.greedy"].verdict == "worse"
    assert row["repetition.greedy"].verdict == "worse"
    assert row["repetition.greedy"].tuned.value == pytest.approx(1 - 1 / 6)


def test_length_is_reported_but_not_judged():
    row = rows_of(summarise(many(), {}, seed=1))["tokens.greedy"]
    assert (row.base.value, row.tuned.value, row.difference.value) == (256, 64, -192)
    assert row.verdict == "not judged"


def test_several_answers_to_one_question_are_one_cluster():
    rows = [
        samples.answer("seed-1", arm, seed=seed, stop="end" if arm == "tuned" else "length")
        for arm in ("base", "tuned")
        for seed in range(30)
    ]
    row = rows_of(summarise(rows, {}, seed=1))["stop.sampled"]
    assert (row.n, row.base.low, row.p, row.verdict) == (30, None, 1.0, "not shown")


def test_questions_about_one_fact_are_one_cluster():
    losses = samples.losses()
    one_fact = {id: "fact" for id, _, _ in losses["base"]}
    row = summarise([], losses, seed=1, clusters=one_fact).rows[0]
    assert (row.n, row.base.low, row.p, row.verdict) == (20, None, 1.0, "not shown")


@pytest.mark.parametrize(
    ("ends", "p", "better", "expected"),
    [
        ((-2.0, -1.0), 0.01, "lower", "shown"),
        ((-2.0, -1.0), 0.01, "higher", "worse"),
        ((1.0, 2.0), 0.01, "higher", "shown"),
        ((1.0, 2.0), 0.01, "lower", "worse"),
        ((-1.0, 2.0), 0.01, "lower", "not shown"),
        ((1.0, 2.0), 0.05, "higher", "not shown"),
        ((1.0, 2.0), None, "higher", "not shown"),
        ((None, None), 0.01, "higher", "not shown"),
        ((1.0, 2.0), 0.01, "neither", "not judged"),
    ],
)
def test_verdicts(ends, p, better, expected):
    assert verdict(Interval(0.0, *ends, 9), p, better) == expected


def test_one_more_row_does_not_change_the_others():
    alone = rows_of(summarise(many(), {}, seed=7))
    together = rows_of(summarise(many() + samples.answers()[:2], samples.losses(), seed=7))
    assert alone["tokens.greedy"] == together["tokens.greedy"]


def test_json_round_trip_without_nan():
    for summary in (summarise(samples.answers(), samples.losses(), seed=1), summarise(many(1), {}, seed=1)):
        text = json.dumps(summary.to_json(), allow_nan=False)
        assert Summary.from_json(json.loads(text)) == summary
    assert isinstance(Summary.from_json(json.loads(text)).rows[0].verdict, Verdict)


def test_one_question_alone_has_no_interval_where_none_can_be_had():
    row = rows_of(summarise(many(1), {}, seed=1))["tokens.greedy"]
    assert (row.n, row.base, row.verdict) == (1, Interval(256.0, None, None, 1), "not judged")
    assert "| 1 | 256.0 | 64.0 | −192.0 | 1.000 | — |" in summarise(many(1), {}, seed=1).markdown("en")


def test_what_is_not_known_is_a_dash():
    row = dataclasses.replace(summarise(many(), {}, seed=1).rows[0], p=None, base=Interval(None, None, None, 0))
    assert Summary((row,), 1, 1).cells("en")[0][2:6:3] == ["—", "—"]


def test_nothing_gives_an_empty_table():
    assert summarise([], {}, seed=1).rows == ()


def test_markdown_has_n_intervals_and_a_verdict_in_each_row():
    english = summarise(samples.answers(), samples.losses(), seed=1).markdown("en")
    lines = english.splitlines()
    assert lines[0] == "| Measure | n | Base | Tuned | Difference | p | Improvement |"
    assert lines[2].startswith("| Held-out loss per answer token ↓ | 20 | 2.475 [2.3")
    assert "| −0.500 [−0.500, −0.500] | <\u00a00.001 | shown |" in lines[2]
    assert lines[3] == (
        "| Answers the model ended itself, sampled ↑ | 5 | 0.0\u00a0% [0.0, 43.4] | 100.0\u00a0% [56.6, 100.0] "
        "| +100.0\u00a0pp [+38.6, +100.0] | 0.375 | not shown |"
    )
    assert len({line.count("|") for line in lines[:11]}) == 1


def test_russian_markdown_has_decimal_commas_and_a_semicolon_between_them():
    russian = summarise(samples.answers(), samples.losses(), seed=1).markdown("ru")
    assert "−0,500 [−0,500; −0,500]" in russian
    assert "не показано" in russian
    assert "Токенов в ответе, без случайности | 5 | 256,0 [256,0; 256,0] | 64,0" in russian


def test_arms_that_do_not_match_are_refused():
    with pytest.raises(DataError, match="seed-1 was answered by one model only"):
        summarise(samples.answers()[:1], {}, seed=1)
    with pytest.raises(DataError, match="two sampled answers"):
        summarise([samples.answer()] * 2, {}, seed=1)
    losses = samples.losses()
    with pytest.raises(DataError, match="different items"):
        summarise([], losses | {"tuned": losses["tuned"][1:]}, seed=1)
    with pytest.raises(DataError, match="same id"):
        summarise([], losses | {"base": losses["base"] * 2}, seed=1)
