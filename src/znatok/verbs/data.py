"""``znatok data VERB``: look at a data file, split it, clean it, hold it against tests, and build one from facts."""

import dataclasses
import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from znatok import config
from znatok.data.schema import Pair, shown_path
from znatok.errors import DataError, SystemFault, UsageError, _
from znatok.files import write_jsonl
from znatok.verbs.verb import json_flag, show

FILE = Path("data.jsonl")


def data_flags() -> config.Parser:
    """Return the flags of ``data`` and of its verbs."""
    parser = config.Parser(prog="znatok data", description=_("Look at a data file, and prepare one."))
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=config.Parser)
    _add_check(verbs.add_parser("check", help=_("every problem with its line, duplicates, lengths")))
    _add_show(verbs.add_parser("show", help=_("one pair as the model sees it, trained tokens coloured")))
    _add_split(verbs.add_parser("split", help=_("into two files that share no fact and no wording")))
    _add_dedupe(verbs.add_parser("dedupe", help=_("leave out questions that repeat an earlier one")))
    _add_leaks(verbs.add_parser("leaks", help=_("what of a test stands in the data: words and facts")))
    _add_expand(verbs.add_parser("expand", help=_("build a training set from facts and wordings")))
    return parser


def data(args: Namespace, _words: list[str]) -> int:
    """Do one of the verbs; heavy imports happen inside it."""
    does: dict[str, Callable[[Namespace], int]] = {
        "check": check_data,
        "show": show_sample,
        "split": split_data,
        "dedupe": dedupe_data,
        "leaks": find_leaks,
        "expand": expand_data,
    }
    return does[args.verb](args)


# check


def _add_check(parser: Any) -> None:
    parser.add_argument("file", type=Path, nargs="?", default=FILE)
    parser.add_argument("--against", type=Path, metavar="FILE", help=_("test pairs: report what leaks into them"))
    json_flag(parser)


def check_data(args: Namespace) -> int:
    """Report on a file; the exit code is that of bad data when a record is bad or a test is given away."""
    from znatok.data.check import check_file

    report = check_file(args.file, against=args.against)
    show(report.to_json(), report.lines(), as_json=args.json)
    return DataError.exit_code if report.problems or report.leaks else 0


# show


def _add_show(parser: Any) -> None:
    parser.add_argument("file", type=Path, nargs="?", default=FILE)
    parser.add_argument("--row", type=int, default=1, metavar="N", help=_("which pair, counted from 1"))
    config.add_options(parser, config.ModelOptions)
    config.add_options(parser, config.DataOptions, only=("max_length", "overlong", "system"))
    json_flag(parser)


def show_sample(args: Namespace) -> int:
    """Print one example's tokens; trained ones are green and underlined, control tokens dim."""
    from rich.console import Console
    from rich.text import Text

    from znatok.data.load import read_pairs
    from znatok.logs import printable, say
    from znatok.model.load import load_base
    from znatok.tokens.chat import choose_format
    from znatok.tokens.encode import EncodeRule, encode_pairs
    from znatok.tokens.spans import spans

    pairs = read_pairs(args.file).pairs
    if not 1 <= args.row <= len(pairs):
        raise UsageError("--row {row}: {path} has {n} pairs", row=args.row, path=shown_path(args.file), n=len(pairs))
    loaded = load_base(config.from_args(config.ModelOptions, args), say=say)
    chat = choose_format(loaded.tokenizer, loaded.model.get_input_embeddings().weight)
    rule = EncodeRule(args.system, args.max_length, args.overlong)
    (example,) = encode_pairs([pairs[args.row - 1]], chat, rule).examples
    if args.json:
        trained = [position >= example.answer_start for position in range(len(example.ids))]
        show({"format": chat.name, "ids": list(example.ids), "trained": trained}, [], as_json=True)
        return 0
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


# split, dedupe, leaks


def _add_split(parser: Any) -> None:
    parser.add_argument("file", type=Path, nargs="?", default=FILE)
    parser.add_argument("--share", type=float, default=0.1, metavar="X", help=_("of pairs for the second file"))
    parser.add_argument("--seed", type=int, default=42, help=_("chooses between splits of the same quality"))
    parser.add_argument("--out", type=Path, nargs=2, required=True, metavar=("TRAIN", "TEST"), help=_("files to write"))
    json_flag(parser)


def split_data(args: Namespace) -> int:
    """Write two files of records as they stand.

    Raises:
        DataError: there is nothing for the second file.
    """
    from znatok.data.load import copy_lines, read_pairs
    from znatok.data.split import split
    from znatok.logs import say

    if not 0 < args.share < 1:
        raise UsageError("--share {value}: expected a number between 0 and 1", value=args.share)
    refuse_overlap(args.out, [args.file])
    parts = split(read_pairs(args.file).pairs, args.share, args.seed)
    if not parts.validation:
        raise DataError("{path}: can't be split: {why}", path=shown_path(args.file), why="; ".join(parts.notes))
    for note in parts.notes:
        say(note)
    counts = {}
    for path, pairs in zip(args.out, (parts.train, parts.validation), strict=True):
        copy_lines(args.file, path, {pair.line for pair in pairs})
        counts[str(path)] = len(pairs)
        say(_("{path}: pairs {count}", path=shown_path(path), count=len(pairs)))
    if args.json:
        show({"pairs": counts, "notes": parts.notes}, [], as_json=True)
    return 0


def _add_dedupe(parser: Any) -> None:
    parser.add_argument("file", type=Path, nargs="?", default=FILE)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=_("file to write"))
    json_flag(parser)


def dedupe_data(args: Namespace) -> int:
    """Write the file without the records whose question repeats an earlier one; each is named."""
    from znatok.data.clean import duplicates
    from znatok.data.load import copy_lines, read_pairs
    from znatok.logs import say

    refuse_overlap([args.out], [args.file])
    pairs = read_pairs(args.file).pairs
    repeated = {found.second: found for found in duplicates(pairs) if found.part in {"prompt", "both"}}
    for found in repeated.values():
        say(
            _(
                "line {second} left out: its question repeats line {first}, similarity {similarity:.2f}",
                second=found.second,
                first=found.first,
                similarity=found.similarity,
            )
        )
    kept = {pair.line for pair in pairs} - set(repeated)
    copy_lines(args.file, args.out, kept)
    say(_("{path}: pairs {count}", path=shown_path(args.out), count=len(kept)))
    if args.json:
        left_out = [dataclasses.asdict(found) for found in repeated.values()]
        show({"pairs": {str(args.out): len(kept)}, "left_out": left_out}, [], as_json=True)
    return 0


def refuse_overlap(targets: Sequence[Path], sources: Sequence[Path]) -> None:
    """Raise UsageError where a file would be written twice, or over one that it is made from."""
    for number, target in enumerate(targets):
        if any(target.resolve() == other.resolve() for other in targets[:number]):
            raise UsageError("{path}: named for two outputs; name another one", path=shown_path(target))
        if any(target.exists() and source.exists() and target.samefile(source) for source in sources):
            raise UsageError(
                "{path}: would replace the file it is made from; name another one", path=shown_path(target)
            )


def _add_leaks(parser: Any) -> None:
    parser.add_argument("file", type=Path, nargs="?", default=FILE)
    parser.add_argument(
        "--against", type=Path, nargs="+", required=True, metavar="FILE", help=_("tests: pairs or items")
    )
    parser.add_argument("--facts", action="store_true", help=_("report shared facts too"))
    json_flag(parser)


def find_leaks(args: Namespace) -> int:
    """Report what of the tests stands in the data; the exit code is that of bad data when something does."""
    from znatok.data.clean import leaks
    from znatok.data.load import read_pairs

    pairs = read_pairs(args.file).pairs
    rows = [
        {"test_file": path.name, **dataclasses.asdict(found)}
        for path in args.against
        for found in leaks(pairs, questions_of(path))
        if args.facts or found.part != "facts"
    ]
    lines = [
        _(
            "{file}:{test} stands in line {train}: {part}, similarity {similarity:.2f}",
            file=shown_path(Path(row["test_file"])),
            test=row["test"],
            train=row["train"],
            part=row["part"],
            similarity=row["similarity"],
        )
        for row in rows
    ]
    show(rows, lines or [_("nothing of the tests stands in {path}", path=shown_path(args.file))], as_json=args.json)
    return DataError.exit_code if rows else 0


def questions_of(path: Path) -> list[Pair]:
    """Return the questions of a test file, of pairs or of items, with their lines and facts."""
    from znatok.data.load import read_pairs
    from znatok.exam.items import read_items

    if not _holds_items(path):
        return list(read_pairs(path).pairs)
    items = read_items([path])
    asked: list[Any] = [*items.open, *items.choices, *items.pairs]
    return [Pair(item.question, "", item.topic, item.fact_ids, line) for line, item in enumerate(asked, 1)]


def _holds_items(path: Path) -> bool:
    """Tell test items by the first record; whatever can't be told is left to the reader of pairs, to take or refuse."""
    from znatok.data.formats import refuse_irregular

    refuse_irregular(path)
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = json.loads(next((line for line in file if line.strip()), "null"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and "question" in first and "prompt" not in first


# expand


def _add_expand(parser: Any) -> None:
    parser.add_argument(
        "--facts", type=Path, default=Path("data/facts.jsonl"), metavar="FILE", help=_("what is to be known")
    )
    parser.add_argument(
        "--wordings",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help=_("pairs written by people, with their kinds"),
    )
    parser.add_argument("--against", type=Path, nargs="*", default=[], metavar="FILE", help=_("tests: pairs or items"))
    parser.add_argument(
        "--strangers", type=Path, metavar="FILE", help=_("invented names to put in the place of known ones, TOML")
    )
    parser.add_argument("--language", default="ru", help=_("of what is made from facts: ru or en"))
    parser.add_argument(
        "--informed", type=int, default=160, metavar="N", help=_("pairs with passages before the question")
    )
    parser.add_argument("--most", type=int, default=3000, metavar="N", help=_("pairs at most"))
    parser.add_argument("--seed", type=int, default=42, help=_("draws the order, and what is made of what"))
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=_("training set to write"))
    parser.add_argument("--dev", type=Path, metavar="FILE", help=_("wordings kept for choosing a recipe"))
    json_flag(parser)


def _write_rows(target: Path, rows: list[dict[str, Any]]) -> None:
    try:
        write_jsonl(target, rows)
    except OSError as error:
        raise SystemFault(
            "{path}: can't be written: {why}", path=shown_path(target), why=error.strerror or str(error)
        ) from error


def expand_data(args: Namespace) -> int:
    """Write a training set, and the wordings kept for choosing between recipes."""
    from znatok.data.expand import Mixture, Strangers, expand, read_exposures, read_facts, read_strangers
    from znatok.lexicon import phrases_of
    from znatok.retrieve import Knowledge, Passage

    strangers = [args.strangers] if args.strangers else []
    refuse_overlap(
        [args.out, *([args.dev] if args.dev else [])], [args.facts, *args.wordings, *args.against, *strangers]
    )
    facts = read_facts(args.facts)
    exposures = [one for path in args.wordings for one in read_exposures(path, facts)]
    tests = [test for path in args.against for test in questions_of(path)]
    knowledge = Knowledge([Passage(fact.claim, fact.id) for fact in facts.values()])
    made = expand(
        facts,
        exposures,
        tests,
        lambda question: [passage.text for passage in knowledge.search(question, 12)],
        phrases_of(args.language),
        Mixture(informed=args.informed, most=args.most, seed=args.seed),
        read_strangers(args.strangers) if args.strangers else Strangers(),
    )
    _write_rows(args.out, [one.to_json() for one in made.train])
    if args.dev:
        _write_rows(args.dev, [one.to_json() for one in made.dev])
    result = {"pairs": len(made.train), "dev": len(made.dev), "kinds": made.counts(), "left_out": dict(made.left_out)}
    lines = [_("{path}: pairs {count}", path=args.out, count=len(made.train))]
    lines += [f"  {count:5} {kind}" for kind, count in made.counts().items()]
    reasons = {
        "asked twice": _("asked twice"),
        "asked by a test": _("asked by a test"),
        "more of a kind than asked for": _("more of a kind than asked for"),
        "beyond the limit": _("beyond the limit"),
    }
    lines += [_("left out: {count}, {why}", count=count, why=reasons[why]) for why, count in made.left_out.items()]
    show(result, lines, as_json=args.json)
    return 0
