import contextlib
import io
import os
import re
import signal
from types import SimpleNamespace

import pytest
from rich.console import Console

from znatok import logs
from znatok.errors import Interrupted
from znatok.files import append_jsonl, read_json, read_jsonl, replacing, write_jsonl
from znatok.train.callbacks import (
    Best,
    Display,
    Metrics,
    SaveAfterValidation,
    Signals,
    duration,
    terminable,
    whole_epoch,
)


def state(step=0, epoch=0.0, **more):
    return SimpleNamespace(global_step=step, epoch=epoch, num_input_tokens_seen=0, max_steps=9, **more)


def control(**more):
    return SimpleNamespace(**({"should_save": False, "should_training_stop": False, "should_evaluate": False} | more))


# Metrics


def row(step, **more):
    return {"step": step, "epoch": step / 3, "loss": 5.0, "tokens": 100 * step, "seconds": 2.0 * step} | more


def test_resuming_cuts_off_the_rows_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_jsonl(path, [row(1), row(2), {"step": 2, "epoch": 0.67, "val_loss": 5.0}, row(3)])
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "epo')  # the crash
    Metrics(path).on_train_begin(None, state(2), None)
    assert [(r["step"], "val_loss" in r) for r in read_jsonl(path)] == [(1, False), (2, False), (2, True)]


def test_resuming_drops_damaged_rows_with_a_warning(tmp_path, capsys):
    """One block of NUL that a crash left in the middle was a traceback, and the run could not go on."""
    path = tmp_path / "metrics.jsonl"
    write_jsonl(path, [row(1)])
    with path.open("ab") as file:
        file.write(b'\0\0\0\n5\n{"loss": 1.0}\n{"step": "3"}\n{"step": null}\n')
    append_jsonl(path, row(2))
    Metrics(path).on_train_begin(None, state(2), None)
    assert [r["step"] for r in read_jsonl(path)] == [1, 2]
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 5
    assert all(f"metrics.jsonl:{line}: damaged" in said for line, said in enumerate(told, start=2))


def test_a_new_run_starts_with_no_rows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_jsonl(path, [row(1)])
    Metrics(path).on_train_begin(None, state(0), None)
    assert path.read_text(encoding="utf-8") == ""


def test_tokens_and_seconds_go_on_after_resuming(tmp_path, monkeypatch):
    monkeypatch.setattr("znatok.train.callbacks.time", SimpleNamespace(perf_counter=iter([10.0, 10.5]).__next__))
    path = tmp_path / "metrics.jsonl"
    write_jsonl(path, [row(1), row(2)])
    metrics, now = Metrics(path), state(2)
    now.num_input_tokens_seen = 200
    metrics.on_train_begin(None, now, None)
    metrics.on_step_begin(None, now, None)
    now.global_step, now.epoch, now.num_input_tokens_seen = 3, 1.0, 350
    metrics.on_step_end(None, now, None)
    metrics.on_log(None, now, None, logs={"loss": 4.5, "grad_norm": 0.5, "learning_rate": 1e-4, "epoch": 1.0})
    last = read_jsonl(path)[-1]
    assert last["tokens"] == 350
    assert last["seconds"] == 4.0 + 0.5
    assert last["tokens_per_second"] == 150 / 0.5
    assert (last["loss"], last["grad_norm"], last["learning_rate"]) == (4.5, 0.5, 1e-4)


def test_a_validation_has_a_row_of_its_own(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.on_log(None, state(3, 1.0), None, logs={"eval_loss": 4.25})
    metrics.on_log(None, state(3, 1.0), None, logs={"train_runtime": 12.0})  # the Trainer's last word is no row
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 3, "epoch": 1.0, "val_loss": 4.25}]


def test_a_row_that_is_no_number_never_reaches_the_file(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.on_log(None, state(1), None, logs={"eval_loss": 4.25})
    with pytest.raises(ValueError, match="JSON"):
        metrics.on_log(None, state(2), None, logs={"eval_loss": float("nan")})
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 1


# Best


def validated(best, losses):
    """Validate once a step; return the steps after which the run was told to stop."""
    stops = []
    for step, loss in enumerate(losses, 1):
        now = control()
        best.on_evaluate(None, state(step), now, {"eval_loss": loss})
        stops += [step] if now.should_training_stop else []
    return stops


def write_step(folder):
    (folder / "adapter").write_text("written", encoding="utf-8")


def test_the_lowest_validation_loss_is_kept_and_the_first_of_equals(tmp_path):
    written = []
    best = Best(tmp_path, 0, written.append)
    assert best.read() is None
    assert validated(best, [3.0, 2.0, 2.0, 2.5]) == []
    assert best.read() == {"step": 2, "val_loss": 2.0, "worse_since": 2}
    assert written == [tmp_path / "best"] * 2


@pytest.mark.parametrize(("patience", "stops"), [(0, []), (1, [3, 5]), (2, [])])
def test_patience_counts_validations_without_a_better_loss(tmp_path, patience, stops):
    best = Best(tmp_path, patience, write_step)
    assert validated(best, [3.0, 2.0, 2.5, 1.9, 2.1]) == stops
    assert best.exhausted == (patience == 1)


def test_patience_goes_on_after_resuming(tmp_path):
    validated(Best(tmp_path, 2, write_step), [2.0, 2.1])
    now = control()
    Best(tmp_path, 2, write_step).on_evaluate(None, state(3), now, {"eval_loss": 2.2})
    assert now.should_training_stop
    assert read_json(tmp_path / "best" / "best.json") == {"step": 1, "val_loss": 2.0, "worse_since": 2}


# SaveAfterValidation


def test_a_checkpoint_due_at_the_end_of_an_epoch_waits_for_the_validation():
    callback, now = SaveAfterValidation(), control(should_save=True)
    callback.on_step_end(None, state(3, epoch=1.0), now)
    assert not now.should_save
    callback.on_epoch_end(None, state(3, epoch=1.0), now)
    assert now.should_save


def test_a_checkpoint_within_an_epoch_is_saved_at_once():
    callback, now = SaveAfterValidation(), control(should_save=True)
    callback.on_step_end(None, state(2, epoch=2 / 3), now)
    assert now.should_save
    after = control()
    callback.on_epoch_end(None, state(3, epoch=1.0), after)
    assert not after.should_save


@pytest.mark.parametrize(("epoch", "whole"), [(1.0, True), (2.9999999999999996, True), (2 / 3, False), (2.999, False)])
def test_the_end_of_an_epoch_is_told_from_its_middle(epoch, whole):
    assert whole_epoch(state(1, epoch)) is whole


# Signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_asks_for_a_checkpoint_and_the_second_ends_at_once(number, code, tmp_path, capsys):
    with Signals() as signals:
        now = control()
        signals.on_step_end(None, state(1, 0.3), now)
        assert not now.should_training_stop
        os.kill(os.getpid(), number)
        signals.on_step_end(None, state(2, 0.6), now)
        assert now.should_save
        assert now.should_training_stop
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), number)
        assert ended.value.code == code
    assert "once more to stop at once" in capsys.readouterr().err
    error = signals.error(tmp_path / "run", 2)
    assert isinstance(error, Interrupted)
    assert error.exit_code == code
    assert "stopped at step 2" in str(error)


def test_sigterm_at_any_other_moment_ends_the_process_in_order(tmp_path, capsys):
    """The process died at once: its status went on saying «running», and temporary files stayed."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, terminable(), replacing(tmp_path / "f"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_handlers_before_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with contextlib.suppress(RuntimeError), Signals():
        assert signal.getsignal(signal.SIGINT) not in before
        raise RuntimeError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_epoch_cut_short_by_a_signal_is_not_validated():
    signals = Signals()
    signals.caught = signal.SIGINT
    within, at_the_end = (
        control(should_evaluate=True, should_save=True),
        control(should_evaluate=True, should_save=True),
    )
    signals.on_epoch_end(None, state(2, 0.67), within)
    signals.on_epoch_end(None, state(3, 1.0), at_the_end)
    assert (within.should_evaluate, within.should_save) == (False, False)
    assert (at_the_end.should_evaluate, at_the_end.should_save) == (True, True)


# Display


@pytest.fixture
def screen(monkeypatch):
    """Return what a terminal would have received."""
    stream = io.StringIO()
    monkeypatch.setattr(logs, "_console", Console(file=stream, force_terminal=True, width=100, highlight=False))
    return stream


def test_a_terminal_gets_its_cursor_back_even_after_an_error(tmp_path, screen):
    display = Display(Metrics(tmp_path / "metrics.jsonl"))
    display.on_train_begin(None, state(), None)
    assert "\x1b[?25l" in screen.getvalue()
    display.close()
    assert screen.getvalue().rindex("\x1b[?25h") > screen.getvalue().rindex("\x1b[?25l")
    display.close()


def shown(tmp_path):
    """Show a step and a validation."""
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.speed = 12.34
    display = Display(metrics)
    display.on_train_begin(None, state(), None)
    display.on_log(None, state(1), None, logs={"loss": 5.0})
    display.on_log(None, state(3), None, logs={"eval_loss": 4.5})
    display.on_train_end(None, state(3), None)


def test_a_terminal_that_can_not_move_its_cursor_gets_plain_lines(tmp_path, monkeypatch):
    """Nothing at all was shown on one."""
    stream = io.StringIO()
    dumb = Console(file=stream, force_terminal=True, _environ={"TERM": "dumb"}, width=200, soft_wrap=True)
    monkeypatch.setattr(logs, "_console", dumb)
    shown(tmp_path)
    assert [line.split(" tokens/s")[0] for line in stream.getvalue().splitlines()] == [
        "step 1/9: loss 5.0000, 12.3",
        "step 3/9: validation loss 4.5000",
    ]
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("width", [1, 2, 10, 80])
def test_a_bar_fits_on_a_terminal_of_any_width(tmp_path, monkeypatch, width):
    stream = io.StringIO()
    monkeypatch.setattr(logs, "_console", Console(file=stream, force_terminal=True, width=width))
    shown(tmp_path)
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")


def test_no_color_is_obeyed(tmp_path, monkeypatch):
    stream = io.StringIO()
    plain = Console(file=stream, force_terminal=True, _environ={"NO_COLOR": "1", "TERM": "xterm"}, width=100)
    monkeypatch.setattr(logs, "_console", plain)
    shown(tmp_path)
    colours = [
        code for code in re.findall(r"\x1b\[([0-9;]*)m", stream.getvalue()) if re.search(r"\b[349][0-7]\b", code)
    ]
    assert colours == []


def test_without_a_terminal_there_are_plain_lines(tmp_path, capsys):
    logs.setup()
    shown(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("step 1/9: loss 5.0000, 12.3 tokens/s, ")
    assert lines[1] == "step 3/9: validation loss 4.5000"
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3600, "1:00:00")])
def test_a_time_span_reads_like_a_clock(seconds, text):
    assert duration(seconds) == text
