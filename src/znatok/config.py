"""Every option, said once.

A frozen dataclass field carries its default, its help and its limits; command-line flags, the TOML file of a run and
the table in ``docs/options.md`` are derived from it. Names and defaults of the historical options are those of the
two scripts the project grew from, and a test freezes them.
"""

import argparse
import dataclasses
import difflib
import json
import math
import sys
import tomllib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

import tomli_w

from znatok.errors import UsageError, _

LANGUAGE_NEUTRAL_SYSTEM = "Ты знаток своего дела. Отвечай точно, по существу и по-русски."
"""The system message of training and chat unless ``--system`` says otherwise; it is stored with every run."""

T = TypeVar("T")


def option(
    default: Any,
    help: str,  # the word argparse uses
    *,
    low: float = -math.inf,
    high: float = math.inf,
    choices: Sequence[str] = (),
) -> Any:
    """Declare an option: a dataclass field with its help and its limits (both ends included)."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": tuple(choices)})


class Options:
    """Base of the option groups: checks limits on creation."""

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            check_limits(spec, getattr(self, spec.name))


def check_limits(spec: "dataclasses.Field[Any]", value: Any) -> None:
    """Raise UsageError where ``value`` is outside what ``spec`` allows."""
    meta = spec.metadata
    if value is None or not meta:
        return
    if meta["choices"] and value not in meta["choices"]:
        expected = ", ".join(meta["choices"])
        raise UsageError("--{name} {value}: expected one of {expected}", name=spec.name, value=value, expected=expected)
    if isinstance(value, str) and value != value.encode(errors="ignore").decode():
        # bytes of a command line that are no text of its locale; run.toml and manifest.json could not hold them
        raise UsageError(
            "--{name} {value}: not UTF-8; rename the file, or set a UTF-8 locale such as LC_ALL=C.UTF-8",
            name=spec.name, value=ascii(value),
        )  # fmt: skip
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and not meta["low"] <= value <= meta["high"]:  # not-within is true for NaN too
        span = f"[{meta['low']:g}, {meta['high']:g}]"
        raise UsageError("--{name} {value}: expected a number in {span}", name=spec.name, value=value, span=span)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """Which model, in which number format."""

    model_name: str = option("Qwen/Qwen2.5-1.5B", "base model: a directory, a .gguf file, a catalogue name or a hub id")
    dtype: str = option(
        "auto",
        "number format of the frozen base weights; auto trains in int8 where it is fast and proves close enough",
        choices=("auto", "float32", "bfloat16", "int8"),
    )


@dataclass(frozen=True, kw_only=True)
class EngineOptions(Options):
    """What computes the answers."""

    engine: str = option(
        "auto",
        "what answers: llamacpp is fast on CPUs and needs a GGUF model, torch takes any; auto: llamacpp where it fits",
        choices=("auto", "torch", "llamacpp"),
    )


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """Which questions and answers, and how they become tokens."""

    data_path: str = option("data.jsonl", "training pairs: JSON Lines with the keys prompt and response")
    max_length: int = option(512, "longest example in tokens, prompt and answer together", low=16, high=32768)
    overlong: str = option(
        "shorten",
        "what to do with an answer that does not fit: shorten it at a sentence end, or refuse the file",
        choices=("shorten", "refuse"),
    )
    skip_bad: bool = option(False, "leave out bad records (each one is reported) instead of stopping")
    val_share: float = option(0.1, "share of pairs kept for validation, split by fact; 0 turns it off", low=0, high=0.5)
    val_path: str | None = option(None, "validation pairs in a file of their own, instead of a share of the data")
    system: str = option(LANGUAGE_NEUTRAL_SYSTEM, "system message used in training and chat; empty for none")


@dataclass(frozen=True, kw_only=True)
class LoraOptions(Options):
    """The adapter."""

    use_lora: bool = option(True, "train a LoRA adapter (the only method znatok has)")
    lora_r: int = option(8, "rank of the adapter", low=1, high=1024)
    lora_alpha: int = option(32, "scale of the adapter: its output is multiplied by alpha / r", low=1, high=65536)
    lora_dropout: float = option(0.1, "dropout on the adapter's input while training", low=0, high=0.9)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Options):
    """The training run."""

    output_dir: str | None = option(None, "directory of the run; by default runs/<date>_<model>")
    learning_rate: float = option(2e-4, "peak learning rate", low=1e-9, high=1)
    num_train_epochs: float = option(3, "passes over the data", low=0.001, high=1000)
    per_device_train_batch_size: int = option(4, "examples computed together", low=1, high=1024)
    gradient_accumulation_steps: int = option(1, "batches summed into one optimiser step", low=1, high=1024)
    lr_scheduler_type: str = option("linear", "shape of the learning rate", choices=("linear", "cosine", "constant"))
    warmup_ratio: float = option(0.05, "share of the steps in which the learning rate rises from 0", low=0, high=1)
    weight_decay: float = option(0.0, "AdamW weight decay of the adapter", low=0, high=1)
    max_grad_norm: float = option(1.0, "gradients are scaled down to this norm", low=1e-6, high=1e6)
    seed: int = option(42, "seed of the adapter's start, the order of examples and dropout", low=0, high=2**31 - 1)
    max_steps: int = option(0, "stop after so many optimiser steps; 0 for no limit", low=0, high=10**9)
    save_steps: int = option(0, "optimiser steps between checkpoints; 0 for one an epoch", low=0, high=10**9)
    eval_steps: int = option(0, "optimiser steps between validations; 0 for one an epoch", low=0, high=10**9)
    keep_checkpoints: int = option(2, "how many of the newest checkpoints to keep", low=1, high=1000)
    keep: str = option(
        "last",
        "which adapter to keep: of the last step, or of the lowest validation loss",
        choices=("last", "best"),
    )
    early_stopping: int = option(
        0, "stop after so many validations without a better loss; 0 for never", low=0, high=1000
    )
    pack_tokens: int = option(
        640,
        "most tokens computed at once; a longer batch is computed in parts, to the same result",
        low=16,
        high=10**6,
    )
    low_memory: bool = option(False, "compute at most 256 tokens at once: less memory, a little slower")
    shard_base: bool = option(
        False, "split the base's layers over the processes of torchrun, for a base too large for one GPU; slower"
    )
    threads: int = option(0, "threads to compute with; 0 for one per core", low=0, high=1024)
    resume: bool = option(False, "go on from the newest complete checkpoint of --output_dir")
    force: bool = option(False, "start anew in an --output_dir that already holds a run")
    dry_run: bool = option(False, "print the plan with time and memory, train nothing")


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Options):
    """What is made of an adapter."""

    to: str = option(
        "gguf",
        "merged: a model directory for transformers and vLLM; gguf: one file for llama.cpp; lora-gguf: the adapter"
        " alone, for llama.cpp beside its base; ollama: a file and its Modelfile; card: the adapter and its model card,"
        " to be published; hub: the same, put on the Hugging Face hub",
        choices=("merged", "gguf", "lora-gguf", "ollama", "card", "hub"),
    )
    hub_name: str = option("", "for hub: the repository there, user/name")
    public: bool = option(False, "for hub: let everybody see it")
    quant: str = option(
        "q8_0",
        "number format of the matrices in a GGUF file; q4_k_m halves it once more and answers a little less alike",
        choices=("f16", "bf16", "q8_0", "q4_k_m"),
    )
    merged_dtype: str = option(
        "bfloat16", "number format of a merged model", choices=("float32", "bfloat16", "float16")
    )
    model_name: str = option("", "the base where the run does not name it")
    export_dir: str | None = option(None, "where it goes; by default RUN/export/<what>")
    check: bool = option(True, "ask the export and the adapter the same before the export is kept")
    force: bool = option(False, "replace an earlier export")


@dataclass(frozen=True, kw_only=True)
class ServeOptions(Options):
    """The server."""

    runs: str | None = option(None, "folder of runs, or one run: every adapter for the base is served; runs if there")
    host: str = option("127.0.0.1", "address to listen on; any but this computer's own needs an API key")
    port: int = option(8000, "port to listen on; 0 for any that is free", low=0, high=65535)
    api_key_file: str | None = option(None, "file with the API key; without it the key in ZNATOK_API_KEY, if any")
    knowledge: str | None = option(None, "facts, pairs or Markdown whose nearest passages are put before questions")
    context: int = option(4096, "tokens of a dialogue and its answer together", low=64, high=1 << 20)
    queue: int = option(64, "requests that may wait; more are told to come again", low=1, high=10**5)
    timeout: float = option(600, "seconds an answer may take, waiting included", low=1, high=86400)
    patience: float = option(30, "seconds the server waits for running answers when it is stopped", low=0, high=3600)
    threads: int = option(0, "threads to compute with; 0 for one per core", low=0, high=1024)


@dataclass(frozen=True, kw_only=True)
class WebOptions(Options):
    """The page in the browser."""

    host: str = option("127.0.0.1", "address to listen on; any but this computer's own needs an API key")
    port: int = option(7860, "port to listen on; 0 for any that is free", low=0, high=65535)
    api_key_file: str | None = option(None, "file with the API key; without it the key in ZNATOK_API_KEY, if any")


@dataclass(frozen=True, kw_only=True)
class SearchOptions(Options):
    """The search for a recipe."""

    study: str = option("runs/search", "directory of the study: its journal, its data, a run for each trial")
    trials: int = option(8, "trials of this process", low=1, high=10**4)
    share: float = option(0.3, "share of the facts that a trial trains, with all their pairs", low=0.01, high=1)
    worker: int = option(0, "number of this process where several work on one study", low=0, high=1000)


RECIPES: dict[str, dict[str, Any]] = {
    "seed": {},  # the defaults above are those of the document the project grew from
    "expert": {
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "learning_rate": 4e-4,
        "lr_scheduler_type": "cosine",
        "num_train_epochs": 2.0,
        "per_device_train_batch_size": 8,
    },
}
"""Sets of training options by name; what the command line states goes before them."""

EXPERT_DATA = {"data_path": "data/expanded.jsonl", "val_path": "data/eval/dev.jsonl"}
"""What the expert recipe trains on in a folder that has it, where the command line names no data."""


@dataclass(frozen=True, kw_only=True)
class SampleOptions(Options):
    """How an answer is drawn."""

    temperature: float = option(0.7, "randomness of the answer; 0 takes the likeliest token", low=0, high=5)
    top_p: float = option(0.9, "draw from the likeliest tokens that make up this share", low=0.01, high=1)
    top_k: int = option(0, "draw from so many likeliest tokens; 0 for no limit", low=0, high=10**6)
    repetition_penalty: float = option(1.0, "divide the logits of tokens already said; 1 for none", low=0.5, high=5)
    frequency_penalty: float = option(
        0.0, "take so much off a token's logit for each time it was said; 0 for none", low=-2, high=2
    )
    presence_penalty: float = option(0.0, "take so much off the logit of a token that was said", low=-2, high=2)
    max_new_tokens: int = option(256, "longest answer in tokens", low=1, high=32768)

    def described(self) -> dict[str, Any]:
        """Return the options as records of answers name them.

        Penalties that take nothing off are left out: answers from before there were any are drawn alike.
        """
        idle = {name for name in ("frequency_penalty", "presence_penalty") if not getattr(self, name)}
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in idle}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything a training run needs; what ``run.toml`` holds."""

    model: ModelOptions = ModelOptions()
    data: DataOptions = DataOptions()
    lora: LoraOptions = LoraOptions()
    train: TrainOptions = TrainOptions()

    def to_toml(self) -> str:
        """Render as TOML, one table per group, leaving out what is None."""
        return to_toml(self)

    @classmethod
    def from_toml(cls, path: Path) -> Self:
        """Read what :meth:`to_toml` wrote; an unknown key or a value that can't be is a UsageError."""
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError("{path}: not TOML: {why}", path=path, why=error) from error
        kinds: dict[str, Any] = {spec.name: spec.type for spec in dataclasses.fields(cls)}
        _refuse_unknown(path, tables, kinds)
        return cls(**{name: read_group(path, kind, tables.get(name, {})) for name, kind in kinds.items()})


def _refuse_unknown(path: Path, table: Any, known: Any) -> None:
    for key in table.keys() - known if isinstance(table, dict) else {str(table)}:
        raise UsageError("{path}: unknown option {key}{hint}", path=path, key=key, hint=nearest(key, known))


def read_group(path: Path, kind: type[T], table: Any) -> T:
    """Build an option group from a TOML table; no flag parser has looked at the types of its values."""
    specs = {spec.name: spec for spec in dataclasses.fields(kind)}  # type: ignore[arg-type]
    _refuse_unknown(path, table, specs)
    for key, value in table.items():
        wanted: Any = (int, float) if specs[key].type is float else specs[key].type
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            name = getattr(specs[key].type, "__name__", "str")
            raise UsageError("{path}: {key} = {value!r}: expected {name}", path=path, key=key, value=value, name=name)
    return kind(**table)


def to_toml(config: Any) -> str:
    """Render a dataclass of option groups as TOML."""
    tables = {
        name: {key: value for key, value in group.items() if value is not None}
        for name, group in dataclasses.asdict(config).items()
    }
    return tomli_w.dumps(tables)


# The bridge to argparse


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help with defaults, where there are any, in the user's language."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None:
            return action.help
        text = super()._get_help_string(action)  # Python before 3.13 has this one text in English only
        return text and text.replace(" (default: %(default)s)", _(" (default: %(default)s)"))


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, with UsageError instead of exit and a suggestion for typos."""

    def __init__(self, **kwargs: Any) -> None:
        # argparse looks «_» up in its own module: its words come from our catalogue then; if ever not, they are English
        argparse._ = _  # type: ignore[attr-defined]
        super().__init__(allow_abbrev=False, formatter_class=Help, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError; for an unknown flag name the nearest known one."""
        unknown = [word.split("=")[0] for word in message.split() if word.startswith("--")]
        is_unknown = message.startswith(_("unrecognized arguments: %s").removesuffix("%s"))
        hint = nearest(unknown[0], self._option_string_actions) if is_unknown and unknown else ""
        raise UsageError("{message}{hint} (see {prog} --help)", message=message, hint=hint, prog=self.prog)


def nearest(word: str, known: Any) -> str:
    """Return «, did you mean …?» for the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return _(", did you mean {word}?", word=close[0]) if close else ""


def boolean(text: str) -> bool:
    """Read the spellings people use for true and false; raises argparse's own error for others."""
    lowered = text.lower()
    if lowered in {"true", "1", "yes", "y", "on", "да"}:
        return True
    if lowered in {"false", "0", "no", "n", "off", "нет"}:
        return False
    raise argparse.ArgumentTypeError(_("{text!r} is neither true nor false", text=text))


def add_options(
    parser: argparse.ArgumentParser, group: type[Any], *, only: Collection[str] = (), **defaults: Any
) -> None:
    """Add a flag for every field of an option group, under both ``--snake_case`` and ``--kebab-case``.

    ``only`` names the fields a command obeys, where it does not obey all: a flag without effect would be a lie.
    """
    title = (group.__doc__ or group.__name__).splitlines()[0].rstrip(".")
    box = parser.add_argument_group(_(title))
    for spec in dataclasses.fields(group):
        if only and spec.name not in only:
            continue
        flags = dict.fromkeys([f"--{spec.name}", f"--{spec.name.replace('_', '-')}"])
        default = defaults.get(spec.name, spec.default)
        help_text = _(spec.metadata["help"]).replace("%", "%%")
        shape: dict[str, Any] = {"default": default, "help": help_text}
        if spec.type is bool:
            shape |= {"nargs": "?", "const": True, "type": boolean, "metavar": "true|false"}
        elif spec.metadata["choices"]:
            shape |= {"choices": spec.metadata["choices"]}
        else:
            shape |= {"type": _value_type(spec.type), "metavar": _value_type(spec.type).__name__.upper()}
        box.add_argument(*flags, **shape)


def _value_type(annotation: Any) -> type:
    return int if annotation is int else float if annotation is float else str


def from_args(group: type[T], args: argparse.Namespace) -> T:
    """Build an option group from parsed arguments; UsageError where a value is outside its limits."""
    names = {spec.name for spec in dataclasses.fields(group)}  # type: ignore[arg-type]
    return group(**{name: value for name, value in vars(args).items() if name in names})


def explicit(argv: Sequence[str], group: type[Any]) -> set[str]:
    """Return the names of the group's options that ``argv`` really states (for «has no effect» warnings)."""
    said = {word.split("=")[0].lstrip("-").replace("-", "_") for word in argv if word.startswith("--")}
    return said & {spec.name for spec in dataclasses.fields(group)}


def with_file(options: T, path: Path, stated: Collection[str]) -> T:
    """Return a group of options read from a JSON object, with those flags that were really given put over it.

    Raises:
        UsageError: the file can't be read, is no object, or holds an unknown option or a bad value.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UsageError("{path}: can't be read as JSON: {why}", path=path, why=str(error)[:80]) from error
    read = read_group(path, type(options), table)
    return dataclasses.replace(read, **{name: getattr(options, name) for name in stated})  # type: ignore[type-var]


def by_recipe(options: T, recipe: str, stated: Collection[str]) -> T:
    """Return a group of options with the values of a recipe, those in ``stated`` left as they are."""
    set_by_any = {name for values in RECIPES.values() for name in values}
    values = dict(RECIPES[recipe])
    if recipe == "expert" and all(Path(path).is_file() for path in EXPERT_DATA.values()):
        values |= {} if {"data_path", "val_path"} & set(stated) else EXPERT_DATA
    chosen = {
        spec.name: values.get(spec.name, spec.default)
        for spec in dataclasses.fields(options)  # type: ignore[arg-type]
        if spec.name not in stated and (spec.name in values or spec.name in set_by_any)
    }
    return dataclasses.replace(options, **chosen)  # type: ignore[type-var]


def utf8_streams() -> None:
    """Make stdout and stderr able to carry Cyrillic on any console; a character that can't be shown becomes «?».

    Standard input is made strict: in the C locales Python lets bytes that are not UTF-8 through as halves of surrogate
    pairs, which no tokenizer takes.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if hasattr(sys.stdin, "reconfigure"):
        ascii_only = sys.stdin.encoding.lower() in {"ascii", "ansi_x3.4-1968", "us-ascii"}
        sys.stdin.reconfigure(encoding="utf-8" if ascii_only else None, errors="strict")
