"""Training: the options, the plan, the command line, and how it goes, also after the page was closed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from znatok.config import EXPERT_DATA, DataOptions, LoraOptions, ModelOptions, TrainOptions
from znatok.errors import UsageError, _
from znatok.runs import Run, metrics_rows
from znatok.web.forms import Spec, by_recipe, command, component, default, specs, to_the_letter, words
from znatok.web.jobs import Job
from znatok.web.studio import Studio, told

OFTEN = (
    "model_name",
    "data_path",
    "val_path",
    "output_dir",
    "num_train_epochs",
    "learning_rate",
    "per_device_train_batch_size",
    "lora_r",
)
"""Options that stand in the open; all others are one click away."""

LEFT_OUT = ("use_lora", "resume", "dry_run", "force", "low_memory", "shard_base")
FIELDS = specs(ModelOptions, DataOptions, LoraOptions, TrainOptions, without=LEFT_OUT)
RECIPE = "expert"
SMALL = "qwen2.5-coder-0.5b-instruct"
SECONDS = 2.0  # between two looks at a run

Look = tuple[str, Any, str]


class TrainTab:
    """The tab; ``line`` shows the command that says what the inputs of ``form`` do."""

    def __init__(self, studio: Studio, files: Any) -> None:
        """Build it; what is chosen in ``files``, the list on the first tab, is trained here."""
        self._studio = studio
        with gr.Tab(_("Train"), id="train"):
            self._recipe = gr.Radio(["seed", RECIPE], value=RECIPE, label=_("recipe"), elem_id="train-recipe")
            inputs = _inputs(studio.folder)
            self.line = gr.Code(
                label=_("the same on the command line"),
                language="shell",
                lines=2,
                elem_id="train-command",
                wrap_lines=True,
                show_line_numbers=False,
            )
            with gr.Row():
                plan = gr.Button(_("Plan"), elem_id="train-plan")
                start = gr.Button(_("Start"), variant="primary", elem_id="train-start")
                stop = gr.Button(_("Stop"), variant="stop", elem_id="train-stop")
                resume = gr.Button(_("Go on"), elem_id="train-resume")
            colours = {_("training"): "#4c78a8", _("validation"): "#f58518"}
            seen = [
                gr.Markdown(elem_id="train-state"),
                gr.LinePlot(
                    x="step",
                    y="loss",
                    color="of",
                    color_map=colours,
                    title=_("loss"),
                    height=280,
                    elem_id="train-curve",
                ),
                gr.Textbox(label=_("what it says"), lines=8, max_lines=20, interactive=False, elem_id="train-log"),
            ]
            timer = gr.Timer(SECONDS)
        self.form = form = [self._recipe, *(inputs[spec.name] for spec in FIELDS)]
        for one in form:
            one.change(self.typed, form, self.line, show_progress="hidden")
        self._recipe.change(lambda recipe: by_recipe(FIELDS, recipe), self._recipe, form[1:], show_progress="hidden")
        files.change(lambda name: gr.update(value=name) if name else gr.skip(), files, inputs["data_path"])
        plan.click(told(self.planned), form, seen)
        start.click(told(self.begun), form, seen)
        resume.click(told(self.gone_on), form, seen)
        stop.click(told(self.stopped), None, seen)
        timer.tick(self.look, None, seen, show_progress="hidden")

    def typed(self, recipe: str, *values: Any) -> str:
        """Return the command line."""
        return command("train", _flags(recipe, values))

    def planned(self, recipe: str, *values: Any) -> Look:
        """Count and estimate the run."""
        self._studio.jobs.start("plan", ["train", *self._own(recipe, values), "--dry_run"])
        return self.look()

    def begun(self, recipe: str, *values: Any) -> Look:
        """Start the run; UsageError where it has no name."""
        flags = self._own(recipe, values)
        _place(flags)
        self._studio.jobs.start("train", ["train", *flags])
        return self.look()

    def gone_on(self, recipe: str, *values: Any) -> Look:
        """Go on with the run of this name; its own options hold."""
        where = _place(self._own(recipe, values))
        self._studio.jobs.start("train", ["train", "--resume", "--output_dir", where])
        return self.look()

    def _own(self, recipe: str, values: Sequence[Any]) -> list[str]:
        """Return the flags of the form; UsageError where they name data or a run that is not of the page's folder."""
        flags = _flags(recipe, values)
        checks = {"data_path": self._studio.file, "val_path": self._studio.file, "output_dir": self._studio.check_place}
        for name, check in checks.items():
            if (stated := _stated(flags, name)) is not None:
                check(stated)
        return flags

    def stopped(self) -> Look:
        """Stop what the page shows; a run saves a checkpoint first."""
        if (job := self._shown()) is not None:
            job.stop()
        return self.look()

    def look(self) -> Look:
        """Return the state of a training or plan, its curve, and what it says."""
        job = self._shown()
        if job is None:
            return _("nothing was started yet"), gr.skip(), ""
        state = _("at work") if job.running else _("not at work")
        rows = self._curve(job)  # a plot that was drawn empty stays empty
        return f"**{state}**: {to_the_letter(job.command)}", _frame(rows) if rows else gr.skip(), job.said()

    def _shown(self) -> Job | None:
        """Return the newest plan or training; what is at work goes before what has ended."""
        found = (self._studio.jobs.get(kind) for kind in ("plan", "train"))
        return max((job for job in found if job), key=lambda job: (job.running, job.started), default=None)

    def _curve(self, job: Job) -> list[tuple[int, float, str]]:
        metrics = Run(self._studio.folder / _place(job.words)).metrics if job.kind == "train" else None
        rows = metrics_rows(metrics, damaged=lambda _why: None) if metrics else []  # this is looked at every second
        names = {"loss": _("training"), "val_loss": _("validation")}
        return [(row["step"], row[key], name) for row in rows for key, name in names.items() if key in row]


def _inputs(folder: Path) -> dict[str, Any]:
    """Build an input for every option, two in a row."""
    large = EXPERT_DATA if all((folder / path).is_file() for path in EXPERT_DATA.values()) else {}
    own = {"model_name": SMALL, "output_dir": "runs/mine", **large}
    inputs = _rows([spec for spec in FIELDS if spec.name in OFTEN], own)
    with gr.Accordion(_("all other options"), open=False):
        inputs |= _rows([spec for spec in FIELDS if spec.name not in OFTEN], {})
    return inputs


def _rows(fields: Sequence[Spec], own: Mapping[str, Any]) -> dict[str, Any]:
    inputs = {}
    for start in range(0, len(fields), 2):
        with gr.Row():
            for spec in fields[start : start + 2]:
                inputs[spec.name] = component(spec, own.get(spec.name, default(spec, RECIPE)))
    return inputs


def _flags(recipe: str, values: Sequence[Any]) -> list[str]:
    return ["--recipe", recipe, *words(FIELDS, values, recipe)]


def _place(flags: Sequence[str]) -> str:
    """Return the run's directory.

    Raises:
        UsageError: none is stated.
    """
    if (place := _stated(flags, "output_dir")) is None:
        raise UsageError("--output_dir: name the run, for example runs/mine")
    return place


def _stated(flags: Sequence[str], name: str) -> str | None:
    """Return what stands behind a flag, if it is there."""
    return flags[flags.index(f"--{name}") + 1] if f"--{name}" in flags else None


def _frame(rows: list[tuple[int, float, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["step", "loss", "of"]).astype({"step": int, "loss": float, "of": str})
