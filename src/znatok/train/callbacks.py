"""What happens beside the training loop: a row of metrics per step, progress, the best adapter, and signals."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn
from transformers import TrainerCallback

from znatok.errors import Interrupted, _
from znatok.files import append_jsonl, read_json, write_json, write_jsonl
from znatok.logs import console, peak_rss_bytes, say
from znatok.runs import metrics_rows
from znatok.train.team import ALONE, Team

FREE_RUN = ("loss", "grad_norm", "learning_rate")


class Metrics(TrainerCallback):
    """Appends a row per optimiser step and per validation to ``metrics.jsonl``.

    Attributes:
        speed: tokens per second of the last step.
    """

    def __init__(self, path: Path) -> None:
        self.speed = 0.0
        self._path = path
        self._step_started = 0.0
        self._tokens_before = 0
        self._seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Cut rows off that a crash left after the checkpoint being resumed; take the clock on from the last one."""
        rows = [row for row in metrics_rows(self._path) if row["step"] <= state.global_step]
        write_jsonl(self._path, rows)
        self._seconds = max((row.get("seconds", 0.0) for row in rows), default=0.0)
        self._tokens_before = state.num_input_tokens_seen

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the step's clock; validation and saving are not training time."""
        self._step_started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop the step's clock."""
        self._step_seconds = time.perf_counter() - self._step_started
        self._seconds += self._step_seconds

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Write the row."""
        logs = logs or {}
        place = {"step": state.global_step, "epoch": round(state.epoch or 0, 6)}
        if "eval_loss" in logs:
            append_jsonl(self._path, {**place, "val_loss": logs["eval_loss"]})
        elif "loss" in logs:
            tokens = int(state.num_input_tokens_seen)
            self.speed = (tokens - self._tokens_before) / max(self._step_seconds, 1e-9)
            self._tokens_before = tokens
            append_jsonl(
                self._path,
                place
                | {key: logs[key] for key in FREE_RUN if key in logs}
                | {
                    "tokens": tokens,
                    "tokens_per_second": round(self.speed, 2),
                    "seconds": round(self._seconds, 3),
                    "peak_rss_bytes": peak_rss_bytes(),
                },
            )


class Display(TrainerCallback):
    """Shows loss, speed, time left and memory: a live bar on a terminal that can move, plain lines elsewhere."""

    def __init__(self, metrics: Metrics) -> None:
        """Show what ``metrics``, which hears of a step first, has made of it."""
        self._metrics = metrics
        self._bar: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar."""
        self._first_step = state.global_step
        self._started = time.perf_counter()
        if console().is_terminal and not console().is_dumb_terminal:  # on a dumb one rich shows no bar at all
            columns = (TextColumn("{task.completed}/{task.total}"), BarColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=console(), transient=True)
            self._task = self._bar.add_task("", total=state.max_steps, completed=state.global_step)
            self._bar.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Show the step, or the validation."""
        logs = logs or {}
        if "eval_loss" in logs:
            text = _message("step {step}/{steps}: validation loss {loss:.4f}", state, loss=logs["eval_loss"])
            say(text, style="cyan")
        elif "loss" in logs:
            self._show(state, logs)

    def _show(self, state: Any, logs: dict[str, Any]) -> None:
        done = state.global_step - self._first_step
        left = (time.perf_counter() - self._started) / max(done, 1) * (state.max_steps - state.global_step)
        text = _message(
            "step {step}/{steps}: loss {loss:.4f}, {speed:.1f} tokens/s, {left} left, {memory:.1f} GB",
            state,
            loss=logs["loss"],
            speed=self._metrics.speed,
            left=duration(left),
            memory=peak_rss_bytes() / 1e9,
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step, description=text)
        else:
            say(text)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Give the terminal back, also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _message(template: str, state: Any, **fields: object) -> str:
    return _(template, step=state.global_step, steps=state.max_steps, **fields)


def duration(seconds: float) -> str:
    """Return a time span as h:mm:ss or m:ss."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


class Best(TrainerCallback):
    """Keeps the adapter with the lowest validation loss, and stops when it no longer falls."""

    FOLDER = "best"

    def __init__(self, folder: Path, patience: int, write_adapter: Callable[[Path], None]) -> None:
        self._folder = folder / self.FOLDER
        self._patience = patience
        self._write_adapter = write_adapter

    @property
    def folder(self) -> Path:
        """Return where the best adapter stands."""
        return self._folder

    @property
    def exhausted(self) -> bool:
        """Tell whether the validation loss has not fallen for as long as patience lasts."""
        best = self.read()
        return best is not None and bool(self._patience) and best["worse_since"] >= self._patience

    def read(self) -> dict[str, Any] | None:
        """Return step and val_loss of the best adapter, or None before the first validation."""
        path = self._folder / "best.json"
        return read_json(path) if path.is_file() else None

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Compare with the best so far."""
        loss, best = metrics["eval_loss"], self.read()
        if best is None or loss < best["val_loss"]:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._write_adapter(self._folder)
            write_json(self._folder / "best.json", {"step": state.global_step, "val_loss": loss, "worse_since": 0})
            return
        write_json(self._folder / "best.json", {**best, "worse_since": best["worse_since"] + 1})
        if self.exhausted:
            control.should_training_stop = True


class SaveAfterValidation(TrainerCallback):
    """Puts a checkpoint due on the last step of an epoch after that epoch's validation.

    Resuming from one saved before it would never run the validation, and might choose another best adapter.
    """

    def __init__(self) -> None:
        self._due = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Hold the save back at the end of an epoch."""
        if control.should_save and whole_epoch(state):
            self._due, control.should_save = True, False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for the save that was held back; the Trainer validates first."""
        if self._due:
            self._due, control.should_save = False, True


def whole_epoch(state: Any) -> bool:
    """Tell whether training stands at the end of an epoch."""
    return bool(abs(state.epoch - round(state.epoch)) < 1e-9)


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the block by SystemExit, as Ctrl-C does by KeyboardInterrupt, so that it is cleaned up after.

    :class:`Signals` takes both over while there are steps to finish.
    """
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, _frame: FrameType | None) -> None:
    say(_("interrupted"), style="yellow")
    raise SystemExit(128 + number)


class Signals(TrainerCallback):
    """Turns the first SIGINT or SIGTERM into «finish this step, save, stop»; the second ends the process at once.

    Of a team whoever hears one stops all, after the same step.
    """

    def __init__(self, team: Team = ALONE) -> None:
        self.caught: int | None = None
        self._team = team
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.caught is not None:
            raise SystemExit(128 + number)
        self.caught = number
        say(_("stopping after this step, with a checkpoint; once more to stop at once"), style="yellow")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask the Trainer for a checkpoint and the end."""
        if self._team.total(self.caught is not None)[0]:
            self.caught = self.caught or signal.SIGTERM
            control.should_save = True
            control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave out what the Trainer does at the end of an epoch when this isn't one: the run will go on from here."""
        if self.caught is not None and not whole_epoch(state):
            control.should_evaluate = False
            control.should_save = False

    def error(self, output_dir: Path, step: int) -> Interrupted:
        """Return the error that ends an interrupted run; it says how to go on."""
        assert self.caught is not None
        return Interrupted(
            "stopped at step {step}; go on with: znatok train --resume --output_dir {path}",
            exit_code=128 + self.caught,
            step=step,
            path=output_dir,
        )
