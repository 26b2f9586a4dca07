"""The verbs that train: train, plan, search, demo."""

import dataclasses
from argparse import Namespace
from typing import Any

from znatok import config
from znatok.errors import _
from znatok.scripts import train_config, train_parser
from znatok.verbs import prove
from znatok.verbs.verb import json_flag, show

DEMO_MODEL = "qwen2.5-coder-1.5b-instruct"


def train_flags() -> config.Parser:
    """Return the flags of ``train``."""
    parser = train_parser("znatok train", "expert")
    json_flag(parser)
    return parser


def train(args: Namespace, words: list[str]) -> int:
    """Train an adapter."""
    settings = train_config(args, words)
    from znatok.logs import say
    from znatok.train.run import train

    result = train(settings)
    if not result.first:
        return 0
    if args.json:
        show(result_json(result), [], as_json=True)
    elif result.run is not None:
        say(_("done: {path}; next: znatok compare {path}", path=result.run.path))
    return 0


def result_json(result: Any) -> dict[str, Any]:
    """Return what a run came to; without a run, of a dry one, its plan."""
    run = str(result.run.path) if result.run is not None else None
    return {"run": run, "plan": result.plan.to_json(), "result": result.figures}


def plan_flags() -> config.Parser:
    """Return the flags of ``plan``."""
    parser = train_parser("znatok plan", "expert")
    json_flag(parser)
    return parser


def plan(args: Namespace, words: list[str]) -> int:
    """Print what training would take."""
    settings = train_config(args, words)
    from znatok.train.run import plan

    made = plan(settings)
    show(made.to_json(), made.lines(), as_json=args.json)
    return 0


def search_flags() -> config.Parser:
    """Return the flags of ``search``."""
    parser = train_parser("znatok search", "expert")
    parser.description = _("Look for a better recipe; what a flag states is fixed, the rest is searched.")
    config.add_options(parser, config.SearchOptions)
    json_flag(parser)
    return parser


def search(args: Namespace, words: list[str]) -> int:
    """Look for a better recipe."""
    stated = config.explicit(words, config.TrainOptions) | config.explicit(words, config.LoraOptions)
    from znatok.search import search, table

    trials = search(train_config(args, words), config.from_args(config.SearchOptions, args), stated)
    show([dataclasses.asdict(trial) for trial in trials], [table(trials)], as_json=args.json)
    return 0


def demo_flags() -> config.Parser:
    """Return the flags of ``demo``."""
    parser = train_parser("znatok demo")
    parser.set_defaults(model_name=DEMO_MODEL)
    json_flag(parser)
    return parser


def demo(args: Namespace, words: list[str]) -> int:
    """Train on data.jsonl and compare: the whole job in one command."""
    settings = train_config(args, words)
    from znatok.logs import say

    say(
        _(
            "demo on {model}: the architecture, size and tokenizer of Qwen/Qwen2.5-1.5B; "
            "znatok demo --model_name Qwen/Qwen2.5-1.5B runs on that one",
            model=settings.model.model_name,
        )
    )
    from znatok.train.run import train

    result = train(settings)
    if not result.first:
        return 0
    if result.run is None:
        if args.json:
            show(result_json(result), [], as_json=True)
        return 0
    given = [str(result.run.path), *(["--json"] if args.json else [])]
    return prove.compare(prove.compare_flags().parse_args(given), given)
