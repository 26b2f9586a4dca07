"""``znatok VERB``: the table of verbs; each reads its flags, calls one function and prints."""

import sys
from collections.abc import Sequence

from znatok import __version__, config
from znatok.errors import UsageError, _, speak
from znatok.logs import without_colour
from znatok.scripts import run_command
from znatok.verbs import completion, data, learn, look, make, prove, talk
from znatok.verbs.verb import Verb

LANGUAGES = ("ru", "en")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: dispatch(words))


def dispatch(words: list[str]) -> int:
    """Call the verb that the first word names."""
    words = without_globals(words)
    if not words or words[0] in {"-h", "--help", "help"}:
        print(usage())
        return 0
    if words[0] in {"-V", "--version"}:
        print(f"znatok {__version__}")
        return 0
    if words[0] not in VERBS:
        hint = config.nearest(words[0], VERBS)
        raise UsageError("{word}: no such command{hint} (see znatok --help)", word=words[0], hint=hint)
    return VERBS[words[0]](words[1:])


def without_globals(words: list[str]) -> list[str]:
    """Take ``--lang`` and ``--no_color`` off the front, and obey them from now on."""
    while words:
        flag, _equals, value = words[0].partition("=")
        if words[0] in {"--no_color", "--no-color"}:
            without_colour()
            words = words[1:]
        elif flag == "--lang":
            words = words[1:]
            if not value and words:
                value, *words = words
            in_language(value)
        else:
            break
    return words


def in_language(value: str) -> None:
    """Speak a language from now on."""
    if value not in LANGUAGES:
        raise UsageError("--lang {value}: expected one of {known}", value=value or '""', known=", ".join(LANGUAGES))
    speak(value)


def usage() -> str:
    """Return the list of verbs."""
    lines = [_("znatok makes a small open model an expert of your field, and measures whether it became one."), ""]
    lines += [f"  znatok {name:11} {_(verb.text)}" for name, verb in VERBS.items()]
    closing = [
        _("znatok VERB --help lists the flags of a verb."),
        _("znatok --lang ru VERB speaks Russian, en English."),
        _("znatok --no_color VERB speaks without colours; so does NO_COLOR=1 in the environment."),
    ]
    return "\n".join([*lines, "", *closing])


# The verbs, in the order of their use

VERBS = {
    "demo": Verb("train on data.jsonl and compare: the whole job", learn.demo_flags, learn.demo),
    "train": Verb("train an adapter", learn.train_flags, learn.train),
    "plan": Verb("what training would take, without training", learn.plan_flags, learn.plan),
    "search": Verb("look for a better recipe on a part of the facts", learn.search_flags, learn.search),
    "chat": Verb("talk with the base or the tuned model", talk.chat_flags, talk.chat),
    "ask": Verb("answer one question", talk.ask_flags, talk.ask),
    "compare": Verb("ask base and tuned the same, and measure both", prove.compare_flags, prove.compare),
    "eval": Verb("examine with keyed questions, and say what is shown", prove.eval_flags, prove.examine),
    "serve": Verb("serve base and tuned over the OpenAI API", talk.serve_flags, talk.serve),
    "web": Verb("all of it in a browser", talk.web_flags, talk.web),
    "cost": Verb("what a print costs, with every sum shown", make.cost_flags, make.cost),
    "export": Verb("make an adapter into what other programs run", make.export_flags, make.export),
    "publish": Verb("put a run's results into a repository", prove.publish_flags, prove.publish),
    "data": Verb("check, show, split or build a data file", data.data_flags, data.data),
    "model": Verb("list, get or verify catalogue models", look.model_flags, look.model),
    "doctor": Verb("what this machine can do, and why", look.doctor_flags, look.doctor),
}
VERBS["completion"] = Verb(
    "make a shell complete znatok's words", completion.flags, lambda args, _words: completion.completion(args, VERBS)
)
