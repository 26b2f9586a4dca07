"""Start reading here: training, from a file of pairs to a run directory.

:func:`train` is the whole method, top to bottom: read and split the pairs, load the base, choose its chat format,
encode, inject the adapter, plan, train, check that something was learned, keep the best.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import transformers
from safetensors import SafetensorError

from znatok.config import TrainConfig
from znatok.errors import SystemFault, TrainingError, UsageError, _, out_of_memory
from znatok.fast.memory import keep_freed_memory
from znatok.files import write_text
from znatok.logs import peak_rss_bytes, say, silence, warn
from znatok.model.adapters import delta_norm, load_weights, save_adapter
from znatok.runs import Run, create, find, held, refuse_used
from znatok.train import checkpoints
from znatok.train.callbacks import Best, Display, Metrics, SaveAfterValidation, Signals, terminable
from znatok.train.manifest import identity, write_manifest
from znatok.train.plan import Plan
from znatok.train.prepare import Prepared, prepare
from znatok.train.team import Team, join
from znatok.train.trainer import AnswerTrainer


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run came to; ``run`` is None after a dry run, ``first`` False in all processes of a team but one."""

    run: Run | None
    plan: Plan
    figures: dict[str, Any]
    first: bool = True


def train(config: TrainConfig) -> RunResult:
    """Train an adapter.

    Raises:
        UsageError: options that can't work together, or an output directory in use.
        DataError: the pairs.
        ModelError: the base model.
        TrainingError: a loss that is not a number, or an adapter that learned nothing.
        Interrupted: stopped by a signal, after a checkpoint.
        SystemExit: by SIGTERM at once, before the first step or after the last.
        SystemFault: another process of the team ended.
    """
    check_options(config)
    with terminable(), join() as team:
        if team.first:
            return train_in(team, config)
        with silence():  # the first speaks for all; an error is told by whoever has it
            return train_in(team, config)


def train_in(team: Team, config: TrainConfig) -> RunResult:
    """Train as one of a team."""
    if team.first and not (config.train.resume or config.train.dry_run):
        refuse_used(config.train.output_dir, force=config.train.force)
    set_threads(config.train.threads)
    with team.losses_told():  # a base that is split is put together by all
        ready = prepare(config, stored_engine(config), team)
    for line in ready.plan.lines():
        say(line)
    if config.train.dry_run:
        return RunResult(None, ready.plan, {}, team.first)
    with own_run(config, team) as run:
        if config.train.resume:
            begun = find(config.train.output_dir)
            refuse_changes(config, ready, begun)
            if begun.read_status().get("state") == "finished":
                say(_("{path}: this run is finished; nothing to go on with", path=begun.path))
                return RunResult(begun, ready.plan, begun.read_manifest().get("result") or {}, team.first)
        return run_in(run, config, ready)


@contextmanager
def own_run(config: TrainConfig, team: Team) -> Iterator[Run]:
    """Lend the run directory to the first process of a team, and to each other one a folder that goes with it."""
    if team.first:
        run = (
            find(config.train.output_dir)
            if config.train.resume
            else create(config.train.output_dir, config.model.model_name, force=config.train.force)
        )
        with held(run):
            begin(run, config)
            yield run
        return
    with TemporaryDirectory() as folder:
        run = Run(Path(folder))
        run.checkpoints.mkdir()
        yield run


def run_in(run: Run, config: TrainConfig, ready: Prepared) -> RunResult:
    """Train in a run directory that this process holds."""
    with recorded(run):
        started = time.perf_counter()
        trainer, signals, display, best = build_trainer(config, ready, run)
        resume_from = prepare_resume(run, find(config.train.output_dir)) if config.train.resume else None
        if resume_from is None:
            write_manifest(run, config, ready)
        elif best.exhausted:  # it had stopped early, and only the end of its work was cut off
            trainer.args.max_steps = checkpoints.step_of(resume_from)
        with signals, closing(display), ready.team.losses_told():
            trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        if signals.caught is not None and trainer.state.global_step < trainer.state.max_steps and not best.exhausted:
            raise signals.error(run.path, trainer.state.global_step)
        figures = finish(run, config, ready, trainer, best)
        figures["wall_seconds"] = round(time.perf_counter() - started, 1)
        write_manifest(run, config, ready, figures)
    return RunResult(run, ready.plan, figures, ready.team.first)


def plan(config: TrainConfig) -> Plan:
    """Return what training would take, after a probe; nothing is written."""
    check_options(config)
    set_threads(config.train.threads)
    return prepare(config).plan


def check_options(config: TrainConfig) -> None:
    """Refuse what can't work before anything is loaded."""
    if not config.lora.use_lora:
        raise UsageError("--use_lora false: znatok trains LoRA adapters only; leave the flag out")
    if config.train.resume and config.train.output_dir is None:
        raise UsageError("--resume needs --output_dir: which run is to go on?")
    if config.train.resume and config.train.force:
        raise UsageError("--resume and --force contradict each other: go on, or start anew?")


def stored_engine(config: TrainConfig) -> dict[str, Any] | None:
    """Return which engine the run to be resumed was begun with; None for a run that has not begun."""
    manifest = find(config.train.output_dir).read_manifest() if config.train.resume else {}
    return manifest.get("engine", {}) if manifest else None  # a run older than int8 names no engine: it began in float


def set_threads(threads: int) -> None:
    """Compute with so many threads (0 leaves the default, one per core), in memory that is kept for reuse."""
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)


def begin(run: Run, config: TrainConfig) -> None:
    """Store the options of a new run; remove what a process that was killed left of files it was writing."""
    for left in run.leftovers():
        left.unlink(missing_ok=True)
    if not config.train.resume:
        write_text(run.options, config.to_toml())
        run.checkpoints.mkdir(exist_ok=True)


class Wired(NamedTuple):
    """A Trainer, and those of its callbacks that matter after it has ended."""

    trainer: AnswerTrainer
    signals: Signals
    display: Display
    best: Best


@contextmanager
def recorded(run: Run) -> Iterator[None]:
    """Keep ``status.json`` true whatever happens."""
    run.set_status("running")
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, (KeyboardInterrupt, SystemExit)) or getattr(error, "exit_code", 0) in {130, 143}
        if run.path.is_dir():  # whoever removed it does not want it back
            with suppress(OSError):  # a full disk: what happened is worth more than what can't be written of it
                run.set_status("interrupted" if stopped else "failed", error=(str(error) or type(error).__name__)[:500])
        of_disk = isinstance(error, (OSError, SafetensorError)) and not isinstance(error, BrokenPipeError)
        if of_disk and not out_of_memory(error):
            raise SystemFault(
                "{path}: can't be written or read: {why}; make room or mend the disk, then go on with --resume",
                path=run.path, why=getattr(error, "strerror", None) or str(error),
            ) from error  # fmt: skip
        raise
    run.set_status("finished")


def build_trainer(config: TrainConfig, ready: Prepared, run: Run) -> Wired:
    """Wire the Trainer with its callbacks; the order of callbacks is the order they hear of a step."""
    transformers.set_seed(config.train.seed)  # dropout draws from the global generator
    signals, metrics = Signals(ready.team), Metrics(run.metrics)
    display = Display(metrics)
    write_adapter = adapter_writer(ready)
    best = Best(run.checkpoints, config.train.early_stopping, write_adapter)
    callbacks = [
        signals,  # before SaveAfterValidation, which holds its checkpoint back at the end of an epoch
        SaveAfterValidation(),
        metrics,
        display,
        best,
    ]
    trainer = AnswerTrainer(
        ready.model,
        ready.engine.computation,
        config.train,
        (ready.train, ready.validation),
        run.checkpoints,
        callbacks,
        ready.team,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.write_adapter = write_adapter
    return Wired(trainer, signals, display, best)


def adapter_writer(ready: Prepared) -> Callable[[Path], None]:
    """Return a function that writes the model's adapter into a folder."""
    return lambda folder: save_adapter(ready.model, folder, ready.loaded.source.base_name)


def refuse_changes(config: TrainConfig, ready: Prepared, run: Run) -> None:
    """Raise UsageError where the run was started with other options, data or base than this call names."""
    before, now = _flat(run.read_manifest()), _flat(identity(config, ready))
    changed = [f"{name}: {before[name]} → {now[name]}" for name in now if name in before and before[name] != now[name]]
    if changed:
        raise UsageError(
            "--resume {path}: the run was started otherwise ({changes}); use those options, or --force to start anew",
            path=run.path,
            changes="; ".join(changed),
        )


def _flat(table: dict[str, Any]) -> dict[str, Any]:
    """Return a table of tables as one, the inner keys after a dot."""
    inner = {f"{name}.{k}": v for name, value in table.items() if isinstance(value, dict) for k, v in value.items()}
    return {name: value for name, value in table.items() if not isinstance(value, dict)} | inner


def prepare_resume(run: Run, begun: Run) -> Path | None:
    """Return the checkpoint to go on from, or None to start from the beginning.

    Args:
        run: of this process.
        begun: of the first one, which has the checkpoints.
    """
    checkpoint = checkpoints.newest(begun.checkpoints, warn) if begun.checkpoints.is_dir() else None
    best = run.checkpoints / Best.FOLDER
    shutil.rmtree(best, ignore_errors=True)
    if checkpoint is None:
        say(_("no complete checkpoint in {path}: starting from the beginning", path=run.checkpoints))
        run.checkpoints.mkdir(exist_ok=True)
        run.metrics.unlink(missing_ok=True)
        return None
    if (checkpoint / Best.FOLDER).is_dir():
        shutil.copytree(checkpoint / Best.FOLDER, best)
    say(_("going on from {path}", path=checkpoint))
    return checkpoint


def choose_adapter(config: TrainConfig, ready: Prepared, best: Best, chosen: dict[str, Any], step: int) -> None:
    """Put back the adapter of the lowest validation loss if ``--keep best`` asks for it; say which one stays."""
    if chosen["step"] == step:
        return
    text = _("the validation loss was lowest at step {step}: {loss:.4f}", step=chosen["step"], loss=chosen["val_loss"])
    if keeps_best(config):
        load_weights(ready.model, best.folder)
        say(_("{text}; keeping that adapter", text=text))
    else:
        say(_("{text}; keeping the last one all the same, --keep best keeps that one", text=text))


def keeps_best(config: TrainConfig) -> bool:
    """Tell whether the adapter of the lowest validation loss is wanted; stopping early means that it is."""
    return config.train.keep == "best" or config.train.early_stopping > 0


def finish(run: Run, config: TrainConfig, ready: Prepared, trainer: AnswerTrainer, best: Best) -> dict[str, Any]:
    """Check that training did something, put the best adapter in place, and return the run's figures."""
    chosen = best.read()
    if chosen is not None:
        choose_adapter(config, ready, best, chosen, trainer.state.global_step)
    change = delta_norm(ready.model)
    if not change > 0:
        raise TrainingError(
            "the adapter is still zero after {steps} steps: nothing was learned; raise --learning_rate",
            steps=trainer.state.global_step,
        )
    ready.team.refuse_apart(trainer.trained)
    save_adapter(ready.model, run.path, ready.loaded.source.base_name)
    ready.loaded.tokenizer.chat_template = ready.chat.jinja(config.data.system)
    ready.loaded.tokenizer.save_pretrained(run.path)
    shutil.rmtree(best.folder, ignore_errors=True)
    checkpoints.tidy(run.checkpoints, config.train.keep_checkpoints)
    history = [row for row in trainer.state.log_history if "loss" in row]
    return {
        "steps": trainer.state.global_step,
        "first_loss": history[0]["loss"],
        "last_loss": history[-1]["loss"],
        "best": {"step": chosen["step"], "val_loss": chosen["val_loss"]} if chosen else None,
        "kept": chosen["step"] if chosen and keeps_best(config) else trainer.state.global_step,
        "adapter_delta_norm": change,
        "peak_rss_bytes": peak_rss_bytes(),
    }
