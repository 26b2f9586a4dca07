"""The verbs that prove: compare, eval, publish."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from znatok import config
from znatok.errors import UsageError, _, own_language
from znatok.scripts import seed_flag
from znatok.verbs.verb import dtype_flag, json_flag, run_argument, show


def compare_flags() -> config.Parser:
    """Return the flags of ``compare``."""
    parser = config.Parser(prog="znatok compare", description=_("Ask base and tuned the same, and measure both."))
    run_argument(parser)
    parser.add_argument("--questions", type=Path, metavar="FILE", help=_("instead of data/eval/questions.txt"))
    parser.add_argument("--heldout", type=Path, metavar="FILE", help=_("instead of data/eval/heldout.jsonl"))
    parser.add_argument("--asked", type=int, default=20, metavar="N", help=_("held-out questions to ask as well"))
    seed_flag(parser)
    dtype_flag(parser)
    json_flag(parser)
    config.add_options(parser, config.EngineOptions)
    config.add_options(parser, config.SampleOptions)
    return parser


def compare(args: Namespace, _words: list[str]) -> int:
    """Compare base and tuned."""
    from znatok.logs import say

    summary, run = compare_run(args)
    show(summary.to_json(), [summary.markdown(own_language())], as_json=args.json)
    say(_("everything is in {path}: report.html, images, compare", path=run.path))
    return 0


def compare_run(args: Namespace) -> tuple[Any, Any]:
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


def eval_flags() -> config.Parser:
    """Return the flags of ``eval``."""
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
    dtype_flag(parser)
    json_flag(parser)
    return parser


def examine(args: Namespace, _words: list[str]) -> int:
    """Examine base and tuned models."""
    if args.limit < 0:
        raise UsageError("--limit {value}: expected a whole number, 0 or more", value=args.limit)
    if args.judge_items < 1:
        raise UsageError("--judge_items {value}: expected a whole number, 1 or more", value=args.judge_items)
    from znatok.exam.examine import examine, find_sources
    from znatok.exam.text import markdown
    from znatok.logs import say

    sources = find_sources(args.runs or [None])
    proof = examine(sources, args)
    show(proof.to_json(), [markdown(proof, own_language())], as_json=args.json)
    say(
        _(
            "everything is in {path}: report.ru.html, report.en.html, items.jsonl, proof.json",
            path=sources.folder,
        )
    )
    return 0


def publish_flags() -> config.Parser:
    """Return the flags of ``publish``."""
    parser = config.Parser(
        prog="znatok publish", description=_("Put a run's pictures, answers and table into a repository.")
    )
    run_argument(parser)
    parser.add_argument("--repo", type=Path, default=Path(), metavar="DIR", help=_("repository with README.md"))
    json_flag(parser)
    return parser


def publish(args: Namespace, _words: list[str]) -> int:
    """Copy a run's results into a repository."""
    from znatok.eval.publish import publish
    from znatok.exam.publish import publish_proof
    from znatok.runs import find

    run = find(args.run).path
    examined, compared = (run / "eval" / "proof.json").is_file(), (run / "compare" / "summary.json").is_file()
    written = publish_proof(run, args.repo) if examined else []
    written += publish(run, args.repo) if compared or not examined else []
    paths = [str(path) for path in written]
    show(paths, paths, as_json=args.json)
    return 0
