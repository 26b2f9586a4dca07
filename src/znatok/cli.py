"""``znatok VERB``: each verb reads its flags, calls one function and prints; heavy imports happen inside the verb."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from znatok import __version__, config
from znatok.dataverbs import data_verb
from znatok.errors import UsageError, _, speak
from znatok.scripts import chat, chat_parser, open_session, run_command, seed_flag, train_config, train_parser
from znatok.verbs import doctor_verb, json_flag, model_verb, show

LANGUAGES = ("ru", "en")
DEMO_MODEL = "qwen2.5-coder-1.5b-instruct"

Verb = Callable[[list[str]], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: dispatch(words))


def dispatch(words: list[str]) -> int:
    """Call the verb that the first word names."""
    words = in_language(words)
    if not words or words[0] in {"-h", "--help", "help"}:
        print(usage())
        return 0
    if words[0] in {"-V", "--version"}:
        print(f"znatok {__version__}")
        return 0
    if words[0] not in VERBS:
        hint = config.nearest(words[0], VERBS)
        raise UsageError("{word}: no such command{hint} (see znatok --help)", word=words[0], hint=hint)
    return VERBS[words[0]][0](words[1:])


def in_language(words: list[str]) -> list[str]:
    """Take ``--lang`` off the front, and speak that language from now on."""
    flag, _equals, value = words[0].partition("=") if words else ("", "", "")
    if flag != "--lang":
        return words
    rest = words[1:]
    if not value and rest:
        value, *rest = rest
    if value not in LANGUAGES:
        raise UsageError("--lang {value}: expected one of {known}", value=value or '""', known=", ".join(LANGUAGES))
    speak(value)
    return rest


def usage() -> str:
    """Return the list of verbs."""
    lines = [_("znatok makes a small open model an expert of your field, and measures whether it became one."), ""]
    lines += [f"  znatok {name:9} {_(text)}" for name, (_verb, text) in VERBS.items()]
    closing = [
        _("znatok VERB --help lists the flags of a verb."),
        _("znatok --lang ru VERB speaks Russian, en English."),
    ]
    return "\n".join([*lines, "", *closing])


# Verbs


def train_verb(words: list[str]) -> int:
    """Train."""
    settings = train_config(train_parser("znatok train", "expert").parse_args(words), words)
    from znatok.logs import say
    from znatok.train.run import train

    result = train(settings)
    if result.run is not None:
        say(_("done: {path}; next: znatok compare {path}", path=result.run.path))
    return 0


def plan_verb(words: list[str]) -> int:
    """Print what training would take."""
    parser = train_parser("znatok plan", "expert")
    json_flag(parser)
    args = parser.parse_args(words)
    settings = train_config(args, words)
    from znatok.train.run import plan

    made = plan(settings)
    show(made.to_json(), made.lines(), as_json=args.json)
    return 0


def search_verb(words: list[str]) -> int:
    """Look for a better recipe."""
    parser = train_parser("znatok search", "expert")
    parser.description = _("Look for a better recipe; what a flag states is fixed, the rest is searched.")
    config.add_options(parser, config.SearchOptions)
    json_flag(parser)
    args = parser.parse_args(words)
    stated = config.explicit(words, config.TrainOptions) | config.explicit(words, config.LoraOptions)
    from znatok.search import search, table

    trials = search(train_config(args, words), config.from_args(config.SearchOptions, args), stated)
    show([dataclasses.asdict(trial) for trial in trials], [table(trials)], as_json=args.json)
    return 0


def chat_verb(words: list[str]) -> int:
    """Talk; the newest run speaks unless a base or another run is named."""
    parser = chat_parser("znatok chat")
    return chat(parser.parse_args(with_latest(words)), with_latest(words))


def ask_verb(words: list[str]) -> int:
    """Answer one question on stdout."""
    parser = chat_parser("znatok ask")
    parser.add_argument("question", nargs="*", help=_("the question; standard input is put before it when piped"))
    given = with_latest(words)
    args = parser.parse_args(given)
    piped = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    question = "\n".join(part for part in (piped.strip(), " ".join(args.question)) if part)
    if not question:
        raise UsageError('ask: no question; write it after the command: znatok ask "…"')
    session = open_session(args, given)
    from znatok.chat import ask

    ask(session, question)
    return 0


def with_latest(words: list[str]) -> list[str]:
    """Name the newest run where neither a run nor a base is named."""
    stated = config.explicit(words, config.ModelOptions) | {
        w.split("=")[0].lstrip("-").replace("-", "_") for w in words
    }
    latest = Path("runs") / "latest"
    if {"model_dir", "model_name", "help", "h"} & stated or not latest.exists():
        return words
    return [*words, "--model_dir", str(latest)]


def compare_verb(words: list[str]) -> int:
    """Compare base and tuned."""
    parser = config.Parser(prog="znatok compare", description=_("Ask base and tuned the same, and measure both."))
    parser.add_argument("run", nargs="?", help=_("run directory; by default the newest"))
    parser.add_argument("--questions", type=Path, metavar="FILE", help=_("instead of data/eval/questions.txt"))
    parser.add_argument("--heldout", type=Path, metavar="FILE", help=_("instead of data/eval/heldout.jsonl"))
    parser.add_argument("--asked", type=int, default=20, metavar="N", help=_("held-out questions to ask as well"))
    seed_flag(parser)
    formats = ("auto", "float32", "bfloat16", "int8")
    parser.add_argument("--dtype", default="auto", choices=formats, help=_("number format"))
    json_flag(parser)
    config.add_options(parser, config.EngineOptions)
    config.add_options(parser, config.SampleOptions)
    args = parser.parse_args(words)
    from znatok.logs import say

    summary, run = compare_run(args)
    show(summary.to_json(), [summary.markdown("ru" if russian() else "en")], as_json=args.json)
    say(_("everything is in {path}: report.html, images, compare", path=run.path))
    return 0


def compare_run(args: Any) -> tuple[Any, Any]:
    """Open a run's model and compare; return the summary and the run."""
    if args.asked < 0:
        raise UsageError("--asked {value}: expected a whole number, 0 or more", value=args.asked)
    sample = config.from_args(config.SampleOptions, args)
    from znatok.eval.compare import compare, plan_comparison
    from znatok.expert import open_expert
    from znatok.runs import find, held

    run = find(args.run)
    what = plan_comparison(run, args.questions, args.heldout, asked=args.asked, sample=sample, seed=args.test_seed)
    with held(run):
        expert = open_expert(config.ModelOptions(model_name="", dtype=args.dtype), run, "", args.engine, many=True)
        return compare(expert, run, what), run


def eval_verb(words: list[str]) -> int:
    """Examine base and tuned models."""
    parser = config.Parser(
        prog="znatok eval", description=_("Examine base and tuned models with keyed questions, and say what is shown.")
    )
    parser.add_argument(
        "runs",
        nargs="*",
        help=_(
            "run directories, one for each training seed, by default the newest; or records of what models said "
            "before, files or folders, which are judged without a model"
        ),
    )
    parser.add_argument("--questions", type=Path, nargs="+", default=[], metavar="FILE", help=_("test items"))
    parser.add_argument("--lexicon", type=Path, metavar="FILE", help=_("words of the field"))
    parser.add_argument(
        "--knowledge", type=Path, metavar="FILE", help=_("passages for the arms that may look things up")
    )
    parser.add_argument("--limit", type=int, default=0, metavar="N", help=_("only the first items of each split"))
    parser.add_argument("--blind", type=Path, metavar="FILE", help=_("write 60 blinded answers to be labelled, as CSV"))
    parser.add_argument("--labels", type=Path, metavar="FILE", help=_("the labelled sheet: report the agreement"))
    judging = parser.add_argument_group(_("Judge"))
    judging.add_argument(
        "--judge", metavar="URL", help=_("have another model compare: an OpenAI-compatible address; decides no claim")
    )
    judging.add_argument("--judge_model", "--judge-model", metavar="NAME", default="", help=_("which model there"))
    judging.add_argument(
        "--judge_items", "--judge-items", type=int, default=60, metavar="N", help=_("pairs of answers it compares")
    )
    parser.add_argument("--fresh", action="store_true", help=_("ask everything again, keep nothing that was measured"))
    seed_flag(parser)
    formats = ("auto", "float32", "bfloat16", "int8")
    parser.add_argument("--dtype", default="auto", choices=formats, help=_("number format"))
    json_flag(parser)
    args = parser.parse_args(words)
    if args.limit < 0:
        raise UsageError("--limit {value}: expected a whole number, 0 or more", value=args.limit)
    if args.judge_items < 1:
        raise UsageError("--judge_items {value}: expected a whole number, 1 or more", value=args.judge_items)
    from znatok.exam.examine import examine, find_sources
    from znatok.exam.text import markdown
    from znatok.logs import say

    sources = find_sources(args.runs or [None])
    proof = examine(sources, args)
    show(proof.to_json(), [markdown(proof, "ru" if russian() else "en")], as_json=args.json)
    say(
        _(
            "everything is in {path}: report.ru.html, report.en.html, items.jsonl, proof.json",
            path=sources.folder,
        )
    )
    return 0


def export_verb(words: list[str]) -> int:
    """Make an adapter into what other programs run."""
    parser = config.Parser(
        prog="znatok export",
        description=_("Make an adapter into what other programs run, and check that it answers alike."),
    )
    parser.add_argument("run", nargs="?", help=_("run directory; by default the newest"))
    config.add_options(parser, config.ExportOptions)
    json_flag(parser)
    args = parser.parse_args(words)
    options = config.from_args(config.ExportOptions, args)
    from znatok.export.export import export
    from znatok.runs import find

    made = export(find(args.run), options)
    text = [_("{path}: ready; next: {hint}", path=made.path, hint=made.hint)]
    show(made.to_json(), text, as_json=args.json)
    return 0


def serve_verb(words: list[str]) -> int:
    """Serve base and tuned models."""
    parser = config.Parser(
        prog="znatok serve", description=_("Serve base and tuned models to programs that speak the OpenAI API.")
    )
    config.add_options(parser, config.ModelOptions)
    config.add_options(parser, config.ServeOptions)
    config.add_options(parser, config.EngineOptions)
    config.add_options(parser, config.SampleOptions)
    args = parser.parse_args(words)
    model = config.from_args(config.ModelOptions, args)
    options = config.from_args(config.ServeOptions, args)
    if "model_name" not in config.explicit(words, config.ModelOptions):
        model = dataclasses.replace(model, model_name="")
    if options.runs is None and Path("runs").is_dir():
        options = dataclasses.replace(options, runs="runs")
    from znatok.serve.run import serve

    serve(model, options, config.from_args(config.SampleOptions, args), args.engine)
    return 0


def web_verb(words: list[str]) -> int:
    """Serve the page."""
    parser = config.Parser(
        prog="znatok web", description=_("Check data, train, compare, chat and export in a browser, in this folder.")
    )
    config.add_options(parser, config.WebOptions)
    options = config.from_args(config.WebOptions, parser.parse_args(words))
    from znatok.web.run import web

    web(options)
    return 0


def cost_verb(words: list[str]) -> int:
    """Compute what a print costs."""
    from znatok.cost import CostOptions, cost

    parser = config.Parser(prog="znatok cost", description=_("What a print costs, with every sum shown."))
    config.add_options(parser, CostOptions)
    parser.add_argument("--input", type=Path, metavar="FILE", help=_("a JSON object with these options; flags win"))
    json_flag(parser)
    args = parser.parse_args(words)
    options = config.from_args(CostOptions, args)
    if args.input:
        options = config.with_file(options, args.input, config.explicit(words, CostOptions))
    made = cost(options)
    show(dataclasses.asdict(made), made.text(), as_json=args.json)
    return 0


def russian() -> bool:
    """Tell whether messages are in Russian."""
    from znatok.errors import catalogue

    return catalogue().info().get("language", "").startswith("ru")


def publish_verb(words: list[str]) -> int:
    """Copy a run's results into the repository."""
    parser = config.Parser(
        prog="znatok publish", description=_("Put a run's pictures, answers and table into a repository.")
    )
    parser.add_argument("run", nargs="?", help=_("run directory; by default the newest"))
    parser.add_argument("--repo", type=Path, default=Path(), metavar="DIR", help=_("repository with README.md"))
    args = parser.parse_args(words)
    from znatok.eval.publish import publish
    from znatok.exam.publish import publish_proof
    from znatok.runs import find

    run = find(args.run).path
    examined, compared = (run / "eval" / "proof.json").is_file(), (run / "compare" / "summary.json").is_file()
    written = publish_proof(run, args.repo) if examined else []
    for path in [*written, *(publish(run, args.repo) if compared or not examined else [])]:
        print(path)
    return 0


def demo_verb(words: list[str]) -> int:
    """Train on data.jsonl and compare: the whole job in one command."""
    parser = train_parser("znatok demo")
    parser.set_defaults(model_name=DEMO_MODEL)
    settings = train_config(parser.parse_args(words), words)
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
    if result.run is None:
        return 0
    return compare_verb([str(result.run.path)])


VERBS: dict[str, tuple[Verb, str]] = {
    "demo": (demo_verb, "train on data.jsonl and compare: the whole job"),
    "train": (train_verb, "train an adapter"),
    "plan": (plan_verb, "what training would take, without training"),
    "search": (search_verb, "look for a better recipe on a part of the facts"),
    "chat": (chat_verb, "talk with the base or the tuned model"),
    "ask": (ask_verb, "answer one question"),
    "compare": (compare_verb, "ask base and tuned the same, and measure both"),
    "eval": (eval_verb, "examine with keyed questions, and say what is shown"),
    "serve": (serve_verb, "serve base and tuned over the OpenAI API"),
    "web": (web_verb, "all of it in a browser"),
    "cost": (cost_verb, "what a print costs, with every sum shown"),
    "export": (export_verb, "make an adapter into what other programs run"),
    "publish": (publish_verb, "put a run's results into a repository"),
    "data": (data_verb, "check, show, split or build a data file"),
    "model": (model_verb, "list, get or verify catalogue models"),
    "doctor": (doctor_verb, "what this machine can do, and why"),
}
