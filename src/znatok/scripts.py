"""The two historical commands: their flags, names and defaults are frozen by a contract test."""

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from znatok import config
from znatok.errors import UsageError, ZnatokError, _, as_faults


def run_command(command: Callable[[], int]) -> int:
    """Run an entry point: one line for the user's errors, the exit code of the table, no traceback.

    An error that is neither ours nor the machine's is a bug, and keeps its traceback.
    """
    from znatok import logs

    config.utf8_streams()
    logs.setup()
    try:
        try:
            with as_faults():
                code = command()
        finally:  # also after --help, which argparse ends with SystemExit
            if sys.stdout is not None:  # «>&-» leaves none
                sys.stdout.flush()  # here, where a closed pipe is still understood
    except ZnatokError as error:
        logs.say(f"{_('error')}: {error}", style="red")
        return error.exit_code
    except KeyboardInterrupt:
        logs.say(_("interrupted"), style="yellow")
        return 130
    except BrokenPipeError:  # «| head» has seen enough; what is left in the buffer goes nowhere, without complaint
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    else:
        return code


def train_parser(prog: str, recipe: str = "seed") -> config.Parser:
    """Return the parser of every spelling of train; ``recipe`` is the one taken where none is named."""
    parser = config.Parser(prog=prog, description=_("Train a LoRA adapter on a file of questions and answers."))
    parser.add_argument(
        "--recipe",
        default=recipe,
        choices=tuple(config.RECIPES),
        help=_("options taken together: the original script's, or those that made an expert; flags go before them"),
    )
    for group in (config.ModelOptions, config.DataOptions, config.LoraOptions, config.TrainOptions):
        config.add_options(parser, group, **config.RECIPES[recipe])
    return parser


def train_config(args: Any, argv: Sequence[str]) -> config.TrainConfig:
    """Build the configuration from parsed flags; with ``--resume`` those that ``argv`` leaves out are the run's own."""
    said = {word.split("=")[0].lstrip("-").replace("-", "_") for word in argv if word.startswith("--")}
    stated = config.TrainConfig(
        model=config.from_args(config.ModelOptions, args),
        data=config.by_recipe(config.from_args(config.DataOptions, args), args.recipe, said),
        lora=config.by_recipe(config.from_args(config.LoraOptions, args), args.recipe, said),
        train=config.by_recipe(config.from_args(config.TrainOptions, args), args.recipe, said),
    )
    if not stated.train.resume or stated.train.output_dir is None:
        return stated
    from znatok.runs import find

    stored = find(stated.train.output_dir).options
    if not stored.is_file():
        raise UsageError(
            "--resume {path}: no run.toml, so no run was started there; leave --resume out to start one",
            path=stated.train.output_dir,
        )
    own = config.TrainConfig.from_toml(stored)
    groups = {}
    for spec in dataclasses.fields(own):
        group = getattr(stated, spec.name)
        kept = {*config.explicit(argv, type(group)), "output_dir", "resume", "force", "dry_run"}
        changes = {f.name: getattr(group, f.name) for f in dataclasses.fields(group) if f.name in kept}
        groups[spec.name] = dataclasses.replace(getattr(own, spec.name), **changes)
    return config.TrainConfig(**groups)


def train_main(argv: Sequence[str] | None = None) -> int:
    """Run ``train_model.py``."""

    def command() -> int:
        given = list(sys.argv[1:] if argv is None else argv)
        settings = train_config(train_parser("train_model.py").parse_args(given), given)
        from znatok.train.run import train

        result = train(settings)
        if result.run is not None and result.first:
            from znatok.logs import say

            say(_("done: {path}; talk to it with: python chatting.py --model_dir {path}", path=result.run.path))
        return 0

    return run_command(command)


def chat_parser(prog: str, *, once: bool = False) -> config.Parser:
    """Return the parser of every spelling of chat; ``once`` is for a single answer, which keeps no typed lines."""
    parser = config.Parser(prog=prog, description=_("Talk with a base or a tuned model."))
    config.add_options(parser, config.ModelOptions)
    talk = parser.add_argument_group(_("Dialogue"))
    talk.add_argument(
        "--model_dir", "--model-dir", metavar="DIR", help=_("run or adapter directory; without it the base answers")
    )
    talk.add_argument("--test_seed", "--test-seed", type=int, default=42, metavar="INT", help=_("seed of every answer"))
    if not once:
        talk.add_argument("--questions", metavar="FILE", help=_("answer every question of a file, then leave"))
    talk.add_argument("--system", default=None, metavar="TEXT", help=_("system message instead of the trained one"))
    talk.add_argument(
        "--knowledge", metavar="FILE", help=_("facts, pairs or Markdown to look answers up in; they cite its lines")
    )
    if not once:
        talk.add_argument(
            "--no_history", "--no-history", action="store_true", help=_("neither read nor keep what is typed")
        )
    talk.add_argument("--base", action="store_true", help=_("start with the base model's voice"))
    config.add_options(parser, config.EngineOptions)
    config.add_options(parser, config.SampleOptions)
    return parser


def seed_flag(parser: Any) -> None:
    """Add ``--test_seed``."""
    parser.add_argument(
        "--test_seed", "--test-seed", type=int, default=42, metavar="INT", help=_("seed of every answer")
    )


def chat_main(argv: Sequence[str] | None = None) -> int:
    """Run ``chatting.py``."""

    def command() -> int:
        parser = chat_parser("chatting.py")
        given = list(sys.argv[1:] if argv is None else argv)
        return chat(parser.parse_args(given), given)

    return run_command(command)


def chat(args: Any, argv: Sequence[str]) -> int:
    """Open the model and talk, or answer a file of questions."""
    session = open_session(args, argv)
    from znatok.chat import Terminal, answer_file

    if args.questions:
        answer_file(session, args.questions)
        return 0
    return Terminal(session, remember=not (args.no_history or os.environ.get("ZNATOK_NOHISTORY"))).run()


def open_session(args: Any, argv: Sequence[str]) -> Any:
    """Load what the flags name; a model directory brings its own base unless one is stated."""
    if not 0 <= args.test_seed < 2**63:
        raise UsageError("--test_seed {value}: expected a whole number, 0 or more", value=args.test_seed)
    model = config.from_args(config.ModelOptions, args)
    sample = config.from_args(config.SampleOptions, args)
    from znatok.expert import Voice, open_expert
    from znatok.runs import find

    run = find(args.model_dir) if args.model_dir else None
    if run and "model_name" not in config.explicit(argv, config.ModelOptions):
        model = config.ModelOptions(model_name="", dtype=model.dtype)
    expert = open_expert(model, run, config.LANGUAGE_NEUTRAL_SYSTEM, args.engine, seed=args.test_seed)
    from znatok.session import ChatSession

    voice = Voice.BASE if args.base or run is None else Voice.TUNED
    system = expert.system if args.system is None else args.system
    knowledge = None
    if args.knowledge:
        from znatok.retrieve import open_knowledge

        knowledge = open_knowledge(Path(args.knowledge))
    return ChatSession(expert, sample, args.test_seed, system, voice, knowledge=knowledge)
