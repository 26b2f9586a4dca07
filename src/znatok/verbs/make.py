"""The verbs that make something of what is there: export, cost."""

import dataclasses
from argparse import Namespace
from pathlib import Path

from znatok import config
from znatok.errors import _
from znatok.verbs.verb import json_flag, run_argument, show


def export_flags() -> config.Parser:
    """Return the flags of ``export``."""
    parser = config.Parser(
        prog="znatok export",
        description=_("Make an adapter into what other programs run, and check that it answers alike."),
    )
    run_argument(parser)
    config.add_options(parser, config.ExportOptions)
    json_flag(parser)
    return parser


def export(args: Namespace, _words: list[str]) -> int:
    """Make an adapter into what other programs run."""
    options = config.from_args(config.ExportOptions, args)
    from znatok.export.export import export
    from znatok.runs import find

    made = export(find(args.run), options)
    text = [_("{path}: ready; next: {hint}", path=made.path, hint=made.hint)]
    show(made.to_json(), text, as_json=args.json)
    return 0


def cost_flags() -> config.Parser:
    """Return the flags of ``cost``."""
    from znatok.cost import CostOptions

    parser = config.Parser(prog="znatok cost", description=_("What a print costs, with every sum shown."))
    config.add_options(parser, CostOptions)
    parser.add_argument("--input", type=Path, metavar="FILE", help=_("a JSON object with these options; flags win"))
    json_flag(parser)
    return parser


def cost(args: Namespace, words: list[str]) -> int:
    """Compute what a print costs."""
    from znatok.cost import CostOptions, cost

    options = config.from_args(CostOptions, args)
    if args.input:
        options = config.with_file(options, args.input, config.explicit(words, CostOptions))
    made = cost(options)
    show(dataclasses.asdict(made), made.text(), as_json=args.json)
    return 0
