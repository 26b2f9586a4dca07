"""``znatok completion SHELL``: a script by which a shell completes verbs, flags, and what may stand after them.

The script is made of the parsers themselves by shtab, so it knows what they know and no more.
"""

import textwrap
from argparse import Action, Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import shtab

from znatok import config
from znatok.errors import _
from znatok.verbs.verb import Verb

HELP_WIDTH = 70  # characters
SHELLS = ("bash", "zsh", "fish")
FILES = {"FILE", "TRAIN", "data_path", "val_path", "api_key_file"}
FOLDERS = {"DIR", "run", "runs", "output_dir", "export_dir"}
MODELS = {"model_name", "name"}
"""What stands after a flag or in the place of an argument, by what its help calls it, or by its own name."""


def flags() -> config.Parser:
    """Return the flags of ``completion``."""
    parser = config.Parser(
        prog="znatok completion",
        description=_("Write a script that makes a shell complete znatok's words."),
        epilog=_(
            'bash: eval "$(znatok completion bash)" in ~/.bashrc; zsh: the same in ~/.zshrc; '
            "fish: znatok completion fish | source in config.fish"
        ),
    )
    parser.add_argument("shell", choices=SHELLS, help=_("whose script"))
    return parser


def completion(args: Namespace, verbs: Mapping[str, Verb]) -> int:
    """Print the script."""
    from znatok.model.catalogue import entries

    print(shtab.complete(whole(verbs, [entry.name for entry in entries()]), args.shell))
    return 0


def whole(verbs: Mapping[str, Verb], models: Sequence[str]) -> config.Parser:
    """Return one parser of all verbs, which says of each action what completes it."""
    root = config.Parser(prog="znatok")
    root.add_argument("--version", action="store_true", help=_("print the version"))
    parts = root.add_subparsers(dest="verb", parser_class=config.Parser)
    for name, verb in verbs.items():
        parser = verb.parser()
        part = parts.add_parser(name, parents=[parser], add_help=False, help=_(verb.text))
        for action in actions(part):
            complete(action, models)
    return root


def actions(parser: Any) -> Iterator[Action]:
    """Yield the actions of a parser and of its verbs."""
    for action in parser._actions:
        yield action
        for part in action.choices.values() if isinstance(action.choices, dict) else ():
            yield from actions(part)


def complete(action: Any, models: Sequence[str]) -> None:
    """Tell shtab what stands after a flag or in the place of an argument."""
    action.help = textwrap.shorten(action.help or "", HELP_WIDTH, placeholder=" …")  # shells show it beside each word
    shown = action.metavar[0] if isinstance(action.metavar, tuple) else action.metavar
    called = {shown, action.dest}
    if called & MODELS:
        action.choices = models  # offered, not demanded: nobody parses with this parser
    elif called & FILES or action.type is Path:
        action.complete = shtab.FILE
    elif called & FOLDERS:
        action.complete = shtab.DIRECTORY
