"""``znatok search``: a better recipe, proposed by Optuna and judged by wordings that were kept out of training.

A recipe that makes the model forget more general language than an examination allows stands below all that do not,
whatever it knows.

Each trial is a run of its own on a part of the facts with everything that is known of them, so that a fact is met as
often as in the full run and a trial takes minutes. The journal of a study is a file: a search that was stopped goes on,
and several processes may work on one. What a flag states is fixed, everything else of :data:`SPACE` is searched.
"""

import gc
import hashlib
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from znatok.config import SearchOptions, TrainConfig
from znatok.data.load import copy_lines, read_pairs
from znatok.data.schema import Pair, shown_path
from znatok.errors import DataError, SystemFault, TrainingError, UsageError, _
from znatok.eval.dev import ADMITTING, dev_score
from znatok.files import write_json
from znatok.logs import say
from znatok.prose import FORGOTTEN
from znatok.runs import metrics_rows
from znatok.train.run import train


class Range(NamedTuple):
    """Any number from ``low`` to ``high``, evenly on a logarithmic scale."""

    low: float
    high: float


SPACE: dict[str, Range | tuple[float, ...]] = {
    "learning_rate": Range(1e-4, 1e-3),
    "lora_r": (8, 16, 32),
    "num_train_epochs": (1, 2, 3),
    "per_device_train_batch_size": (4, 8, 16),
    "admissions": (0.5, 1.0),
    "general": (0.25, 0.5, 1.0),
}
"""What is searched: ranges and choices. The last two are shares of those pairs, the rest are training options."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial.

    Attributes:
        number: of the trial in its study.
        values: what was tried.
        score: :attr:`znatok.eval.dev.DevScore.mean`, by which trials are ranked; None for a trial that did not end.
        figures: the parts of the score, the last validation loss in nats per answer token, the rise of the bits per
            byte of general prose and by how much it is too large, steps, seconds.
    """

    number: int
    values: Mapping[str, Any]
    score: float | None
    figures: Mapping[str, float]

    @property
    def forgets(self) -> bool:
        """Whether more general language is forgotten than may be."""
        return self.figures.get("excess", 0.0) > 0


def search(config: TrainConfig, options: SearchOptions, stated: Collection[str] = ()) -> list[Trial]:
    """Run trials and return all of the study, the best first.

    Args:
        config: the recipe the search starts from, and everything it does not change.
        options: how long, and on how much.
        stated: options that are fixed.

    Raises:
        UsageError: validation pairs are missing.
        SystemFault: Optuna is not installed, or the study's folder can't be made.
        DataError, ModelError: as in training.
    """
    if config.data.val_path is None:
        raise UsageError("search: validation pairs are needed to judge by; name them with --val_path")
    optuna = _optuna()
    folder = Path(options.study)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemFault("{path}: can't be written: {why}", path=shown_path(folder), why=error.strerror) from error
    journal = optuna.storages.journal.JournalFileBackend(
        str(folder / "journal.log"),
        lock_obj=optuna.storages.journal.JournalFileOpenLock(str(folder / "journal.log")),
    )
    study = optuna.create_study(
        study_name="recipe",
        storage=optuna.storages.JournalStorage(journal),
        load_if_exists=True,
        direction="maximize",
    )
    # what is proposed next follows from the seed, the worker and how far the study is: begun anew, it goes the same way
    seed = config.train.seed + 1000 * len(study.trials) + 10**6 * options.worker
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=4, seed=seed)
    if options.worker == 0:  # of several that begin at once, one tries the recipe itself
        own = {name: value for name, value in start(config).items() if name not in stated}
        study.enqueue_trial(own, skip_if_exists=True)
    searched = [name for name in SPACE if name not in stated]

    def objective(trial: Any) -> float:
        values = {name: propose(trial, name) for name in searched}
        said = ", ".join(f"{k} {v:.3g}" for k, v in values.items())
        say(_("trial {number}: {values}", number=trial.number, values=said))
        found = attempt(config, options, trial.number, values)
        trial.set_user_attr("figures", found)
        trial.set_constraint("forgotten", found["excess"])  # the sampler keeps away from what breaks it
        return float(found["score"])

    study.optimize(objective, n_trials=options.trials, catch=(TrainingError,))
    trials = ranked(study)
    write_json(folder / "search.json", {"share": options.share, "trials": [_row(trial) for trial in trials]})
    return trials


def propose(trial: Any, name: str) -> Any:
    """Have Optuna propose a value."""
    space = SPACE[name]
    if isinstance(space, Range):
        return trial.suggest_float(name, space.low, space.high, log=True)
    return trial.suggest_categorical(name, list(space))


def start(config: TrainConfig) -> dict[str, Any]:
    """Return the first values tried: those of the recipe itself, as far as they lie in the space."""
    values = {name: getattr(config.lora, name, getattr(config.train, name, 1.0)) for name in SPACE}
    return {name: value for name, value in values.items() if _holds(SPACE[name], value)}


def _holds(space: Range | tuple[float, ...], value: float) -> bool:
    return space.low <= value <= space.high if isinstance(space, Range) else value in space


def attempt(config: TrainConfig, options: SearchOptions, number: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """Train with these values on a part of the data; return the score and what else there is to know."""
    folder = Path(options.study)
    name = f"trial-{number:03}"
    data, dev = folder / f"{name}.train.jsonl", folder / f"{name}.dev.jsonl"
    mixed = {"admissions": values.get("admissions", 1.0), "general": values.get("general", 1.0)}
    write_part(Path(config.data.data_path), data, options.share, mixed)
    write_part(Path(str(config.data.val_path)), dev, options.share, {})
    result = train(with_values(config, values, data, dev, folder / name))
    assert result.run is not None
    losses = [row["val_loss"] for row in metrics_rows(result.run.metrics) if "val_loss" in row]
    figures, run = result.figures, result.run
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    del result
    gc.collect()  # one model goes before the next is loaded
    judged = dev_score(run, dev, config.model.dtype)
    gc.collect()
    return {
        "score": judged.mean,
        "facts": judged.facts,
        "admitted": judged.admitted,
        **{f"prose_{language}": rise for language, rise in judged.forgotten.items()},
        "excess": judged.excess,
        "loss": losses[-1],
        "steps": figures["steps"],
        "seconds": figures["wall_seconds"],
    }


def with_values(config: TrainConfig, values: Mapping[str, Any], data: Path, dev: Path, run: Path) -> TrainConfig:
    """Return the options of a trial; the adapter's scale stays what it is in the recipe, whatever the rank."""
    rank = int(values.get("lora_r", config.lora.lora_r))
    alpha = max(1, round(config.lora.lora_alpha / config.lora.lora_r * rank))
    own = {name: values[name] for name in values if hasattr(config.train, name)}
    return replace(
        config,
        data=replace(config.data, data_path=str(data), val_path=str(dev)),
        lora=replace(config.lora, lora_r=rank, lora_alpha=alpha),
        train=replace(config.train, **own, output_dir=str(run), force=True),
    )


def write_part(source: Path, target: Path, share: float, mixed: Mapping[str, float]) -> None:
    """Write a share of the facts with all their pairs, and of what has no fact as large a share.

    Which ones depends on their texts alone: the same facts in training and validation, in every trial.

    Args:
        source: training or validation pairs.
        target: the file to write.
        share: of the facts, in (0, 1].
        mixed: of admissions and general pairs, the share that is left of theirs.

    Raises:
        DataError: a record is bad, or none falls into the share.
    """

    def kept(pair: Pair) -> bool:
        left = mixed.get("admissions" if pair.kind in ADMITTING else pair.kind, 1.0)
        chosen = _fraction(pair.fact_ids[0] if pair.fact_ids else pair.prompt) < share
        return chosen and (left >= 1 or _fraction("mixed", pair.prompt) < left)

    lines = {pair.line for pair in read_pairs(source).pairs if kept(pair)}
    if not lines:
        raise DataError(
            "{path}: no pair of it falls into --share {share}; raise it", path=shown_path(source), share=share
        )
    copy_lines(source, target, lines)


def ranked(study: Any) -> list[Trial]:
    """Return the trials of a study, the highest score first; after them those that forget too much or failed."""
    found = [
        Trial(trial.number, dict(trial.params), trial.value, trial.user_attrs.get("figures", {}))
        for trial in study.trials
    ]
    return sorted(found, key=lambda trial: (trial.score is None, trial.forgets, -(trial.score or 0.0), trial.number))


def table(trials: Collection[Trial]) -> str:
    """Return the trials as a Markdown table."""
    names = [name for name in SPACE if any(name in trial.values for trial in trials)]
    figures = ("score", "facts", "admitted", *(f"prose_{name}" for name in FORGOTTEN), "loss", "steps", "seconds")
    lines = [["trial", *figures, *names], ["--:"] * (len(names) + len(figures) + 1)]
    for trial in trials:
        shown = [f"{trial.figures[name]:.4g}" if name in trial.figures else "–" for name in figures]
        tried = [f"{trial.values[name]:.3g}" if name in trial.values else "–" for name in names]
        lines.append([str(trial.number), *shown, *tried])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _row(trial: Trial) -> dict[str, Any]:
    return {"number": trial.number, "score": trial.score, **trial.figures, **trial.values}


def _fraction(*texts: str) -> float:
    """Return a number in [0, 1) drawn by the texts."""
    return int(hashlib.sha256("\x00".join(texts).encode()).hexdigest()[:12], 16) / 16**12


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise SystemFault("a search needs Optuna: pip install 'znatok[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
