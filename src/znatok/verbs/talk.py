"""The verbs that talk: chat, ask, serve, web."""

import dataclasses
import sys
from argparse import Namespace
from pathlib import Path

from znatok import config
from znatok.errors import UsageError, _
from znatok.scripts import chat as talk
from znatok.scripts import chat_parser, open_session
from znatok.verbs.verb import json_flag, show

RUNS = Path("runs")


def chat_flags() -> config.Parser:
    """Return the flags of ``chat``."""
    return chat_parser("znatok chat")


def chat(args: Namespace, words: list[str]) -> int:
    """Talk; the newest run speaks unless a base or another run is named."""
    return talk(with_latest(args, words), words)


def ask_flags() -> config.Parser:
    """Return the flags of ``ask``."""
    parser = chat_parser("znatok ask", once=True)
    parser.add_argument("question", nargs="*", help=_("the question; standard input is put before it when piped"))
    json_flag(parser)
    return parser


def ask(args: Namespace, words: list[str]) -> int:
    """Answer one question on stdout."""
    piped = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    question = "\n".join(part for part in (piped.strip(), " ".join(args.question)) if part)
    if not question.strip():
        raise UsageError('ask: no question; write it after the command: znatok ask "…"')
    session = open_session(with_latest(args, words), words)
    if args.json:
        for _piece in session.reply(question):
            pass
        show(session.last_to_json(), [], as_json=True)
        return 0
    from znatok.chat import ask

    ask(session, question)
    return 0


def with_latest(args: Namespace, words: list[str]) -> Namespace:
    """Name the newest run where neither a run nor a base is named."""
    latest = RUNS / "latest"
    if not args.model_dir and "model_name" not in config.explicit(words, config.ModelOptions) and latest.exists():
        args.model_dir = str(latest)
    return args


def serve_flags() -> config.Parser:
    """Return the flags of ``serve``."""
    parser = config.Parser(
        prog="znatok serve", description=_("Serve base and tuned models to programs that speak the OpenAI API.")
    )
    for group in (config.ModelOptions, config.ServeOptions, config.EngineOptions, config.SampleOptions):
        config.add_options(parser, group)
    return parser


def serve(args: Namespace, words: list[str]) -> int:
    """Serve base and tuned models."""
    model = config.from_args(config.ModelOptions, args)
    options = config.from_args(config.ServeOptions, args)
    if "model_name" not in config.explicit(words, config.ModelOptions):
        model = dataclasses.replace(model, model_name="")
    if options.runs is None and RUNS.is_dir():
        options = dataclasses.replace(options, runs=str(RUNS))
    from znatok.serve.run import serve

    serve(model, options, config.from_args(config.SampleOptions, args), args.engine)
    return 0


def web_flags() -> config.Parser:
    """Return the flags of ``web``."""
    parser = config.Parser(
        prog="znatok web", description=_("Check data, train, compare, chat and export in a browser, in this folder.")
    )
    config.add_options(parser, config.WebOptions)
    return parser


def web(args: Namespace, _words: list[str]) -> int:
    """Serve the page."""
    from znatok.web.run import web

    web(config.from_args(config.WebOptions, args))
    return 0
