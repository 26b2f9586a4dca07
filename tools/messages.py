"""Keep the message catalogue in step with the source: ``messages.py`` updates it, ``messages.py --check`` judges it.

A message is an English template, and the template is its own key. The source is read, never imported: templates are
the first argument of ``_`` and of every error class, the help of ``option``, the first docstring line of every option
group, that of every ``Verb``, the purposes in the model catalogue, and the words of argparse that a user can meet.
A function that passes its parameter on as a template is followed to its callers. A template that can't be read is an
error: put it where this file finds it.

The ``.po`` has no dates and no line numbers, so that only real changes change it.
"""

import argparse
import ast
import io
import re
import string
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.mofile import read_mo, write_mo
from babel.messages.pofile import read_po, write_po

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "znatok"
PO = SOURCE / "locale" / "ru" / "LC_MESSAGES" / "znatok.po"

READ_BY_OTHER_RULES = {
    ("cli.py", "verb.text"),
    ("verbs/completion.py", "verb.text"),
    ("config.py", "spec.metadata['help']"),
    ("cost.py", "spec.metadata['help']"),
    ("web/forms.py", "spec.metadata['help']"),
    ("config.py", "title"),
    ("errors.py", "self.template"),
    ("model/catalogue.py", "entry.purpose"),
}
"""Expressions given to ``_`` whose templates are found where they are written, not where they are used."""

ARGPARSE = (
    "usage: ",
    "options",
    "positional arguments",
    "show this help message and exit",
    " (default: %(default)s)",
    "argument %(argument_name)s: %(message)s",
    "the following arguments are required: %s",
    "expected one argument",
    "expected at most one argument",
    "expected at least one argument",
    "ignored explicit argument %r",
    "invalid %(type)s value: %(value)r",
    "invalid choice: %(value)r (choose from %(choices)s)",
)
"""Words of argparse that a user of znatok can meet. A fixed list: each Python has its own others."""


class Russian(Catalog):
    """A catalogue whose header never changes by itself."""

    mime_headers = [  # noqa: RUF012  # babel's own shape
        ("Project-Id-Version", "znatok"),
        ("Language", "ru"),
        ("MIME-Version", "1.0"),
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Transfer-Encoding", "8bit"),
        (
            "Plural-Forms",
            "nplurals=3; plural=(n%10==1 && n%100!=11 ? 0 : n%10>=2 && n%10<=4 && (n%100<10 || n%100>=20) ? 1 : 2);",
        ),
    ]


# Templates in the source


@dataclass
class Extraction:
    """What the source says: templates with the name of what takes them, and what could not be read."""

    templates: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Wrapper:
    """A function whose ``index``-th argument is a template."""

    module: Path
    index: int


@dataclass(frozen=True)
class Call:
    """A call with the functions around it, outermost first."""

    module: Path
    node: ast.Call
    inside: tuple[ast.FunctionDef, ...]

    @property
    def name(self) -> str:
        """The last name of what is called: ``damaged`` in ``self.damaged(…)``."""
        function = self.node.func
        return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")

    @property
    def place(self) -> str:
        """Path and line, for messages."""
        return f"{self.module}:{self.node.lineno}"


def extract(source: Path = SOURCE) -> Extraction:
    """Read every template from the source."""
    trees = {path.relative_to(source): _parse(path) for path in sorted(source.rglob("*.py"))}
    calls = [call for module, tree in trees.items() for call in _calls(module, tree, ())]
    found, wrappers = Extraction(), dict[str, list[Wrapper]]()
    speaking = {"_", *_error_classes(trees.values())}
    for call in calls:
        if call.name in speaking and call.node.args:
            wrapper = _take(call, 0, found)
            if wrapper:
                wrappers.setdefault(call.inside[-1].name, []).append(wrapper)
        if call.name == "option" and len(call.node.args) > 1:
            _take(call, 1, found)
    for call in calls:
        for wrapper in wrappers.get(call.name, []):
            if isinstance(call.node.func, ast.Attribute) or call.module == wrapper.module:
                _take(call, wrapper.index, found)
    _take_declared(trees, found)
    for table in tomllib.loads((source / "model" / "catalogue.toml").read_text(encoding="utf-8"))["model"]:
        found.templates[table["purpose"]] = "catalogue"
    found.templates |= dict.fromkeys(ARGPARSE, "argparse")
    return found


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _calls(module: Path, node: ast.AST, inside: tuple[ast.FunctionDef, ...]) -> Iterator[Call]:
    if isinstance(node, ast.Call):
        yield Call(module, node, inside)
    if isinstance(node, ast.FunctionDef):
        inside = (*inside, node)
    for child in ast.iter_child_nodes(node):
        yield from _calls(module, child, inside)


def _error_classes(trees: Iterator[ast.Module]) -> set[str]:
    """Return ZnatokError and everything that inherits from it, by name."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    known = {"ZnatokError"}
    while more := {name for name, parents in bases.items() if parents & known} - known:
        known |= more
    return known


def _take(call: Call, index: int, found: Extraction) -> Wrapper | None:
    """Add the templates of an argument; return a wrapper where the argument is a parameter of a function around."""
    argument = call.node.args[index] if index < len(call.node.args) else None
    if argument is None or (call.module.as_posix(), ast.unparse(argument)) in READ_BY_OTHER_RULES:
        return None
    branches = [argument.body, argument.orelse] if isinstance(argument, ast.IfExp) else [argument]
    texts = [_text(branch) for branch in branches]
    if None not in texts:
        found.templates |= {text: call.name for text in texts if text}
        return None
    wrapper = _wrapper(call, argument)
    if wrapper is None:
        found.problems.append(f"{call.place}: {ast.unparse(argument)}: this template can't be read from the source")
    return wrapper


def _text(node: ast.expr) -> str | None:
    """Return the text of a literal; Python's parser has already joined neighbouring ones."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _wrapper(call: Call, argument: ast.expr) -> Wrapper | None:
    if isinstance(argument, ast.Name) and call.inside:
        given = call.inside[-1].args
        names = [a.arg for a in (*given.posonlyargs, *given.args) if a.arg not in {"self", "cls"}]
        if argument.id in names:
            return Wrapper(call.module, names.index(argument.id))
    return None


def _take_declared(trees: dict[Path, ast.Module], found: Extraction) -> None:
    """Add the titles of option groups and the texts of the verbs."""
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    for node in nodes:
        if isinstance(node, ast.ClassDef) and any(isinstance(b, ast.Name) and b.id == "Options" for b in node.bases):
            found.templates[(ast.get_docstring(node) or "").splitlines()[0].rstrip(".")] = "Options"
    verbs = [node for node in nodes if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Verb"]
    texts = [_text(verb.args[0]) if verb.args else None for verb in verbs]
    if not texts or None in texts:
        found.problems.append("Verb(…): expected what the verb is for, as a text")
    found.templates |= {text: "Verb" for text in texts if text}


# The catalogue


def merged(templates: list[str], old: Catalog) -> Catalog:
    """Return a catalogue of exactly these templates; a changed one keeps its old translation, marked fuzzy."""
    new, wanted = Russian(domain="znatok", locale="ru", fuzzy=False), Catalog()
    new.header_comment = "# Russian messages of znatok. Keys are the English templates; «make messages» updates them."
    for message in old:
        if message.id:
            new.add(message.id, message.string, flags=message.flags & {"fuzzy"}, user_comments=message.user_comments)
    for template in templates:
        wanted.add(template)
    new.update(wanted)
    new.obsolete.clear()
    return new


def read_catalogue(path: Path = PO) -> Catalog:
    """Read the ``.po``; an empty catalogue where there is none yet."""
    if not path.is_file():
        return Catalog(locale="ru")
    with path.open("rb") as file:
        return read_po(file, locale="ru", domain="znatok", ignore_obsolete=True)


def po_bytes(catalog: Catalog) -> bytes:
    """Return the ``.po``: sorted, each text on one line."""
    buffer = io.BytesIO()
    write_po(buffer, catalog, width=0, sort_output=True, no_location=True, ignore_obsolete=True)
    return buffer.getvalue().rstrip() + b"\n"


def mo_bytes(catalog: Catalog) -> bytes:
    """Return the compiled catalogue."""
    buffer = io.BytesIO()
    write_mo(buffer, catalog)
    return buffer.getvalue()


# Judging


def fields(template: str) -> list[str]:
    """Return the placeholders, braces and per cents alike, with conversions and format specs."""
    percents = [match[0] for match in re.finditer(r"%(?:\(\w+\))?[a-z]", template)]
    if percents:
        return sorted(percents)
    parsed = string.Formatter().parse(template)
    return sorted({f"{{{n}{'!' + c if c else ''}{':' + spec if spec else ''}}}" for _t, n, spec, c in parsed if n})


def fixed_words(template: str) -> set[str]:
    """Return what must stand in a translation as it is: flags, environment variables and addresses."""
    return set(re.findall(r"--[a-z]\w*|https?://\S+|\b[A-Z]+_[A-Z]+\b", template))


def complaints(catalog: Catalog) -> list[str]:
    """Return what is wrong with translations, a line each."""
    found = []
    for message in catalog:
        if not message.id:
            continue
        english, russian = str(message.id), str(message.string or "")
        if not russian:
            found.append(f"not translated: {english!r}")
        elif message.fuzzy:
            found.append(f"fuzzy, check it and remove the mark: {english!r}")
        else:
            found += [f"{why}: {english!r}" for why in _differences(english, russian)]
    return found


def _differences(english: str, russian: str) -> Iterator[str]:
    try:
        if fields(english) != fields(russian):
            yield f"fields differ, {fields(english)} and {fields(russian)}"
    except ValueError as error:
        yield f"braces don't match ({error})"
    if lost := fixed_words(english) ^ fixed_words(russian):
        yield f"these must stand in both or in neither, {sorted(lost)}"
    for end, name in ((0, "start"), (-1, "end")):
        if (english[end].isspace() or russian[end].isspace()) and english[end] != russian[end]:
            yield f"white space at the {name} differs"


def check(catalog: Catalog, path: Path = PO) -> list[str]:
    """Return why the files on disk are not what the source and the translations make them."""
    found = complaints(catalog)
    if not path.is_file() or path.read_bytes() != po_bytes(catalog):
        found.append(f"{path.name}: out of date; run «make messages»")
    compiled = path.with_suffix(".mo")
    if not compiled.is_file() or _texts(compiled.read_bytes()) != _texts(mo_bytes(catalog)):
        found.append(f"{compiled.name}: out of date; run «make messages»")
    return found


def _texts(compiled: bytes) -> dict[object, object]:
    return {message.id: message.string for message in read_mo(io.BytesIO(compiled)) if message.id}


def main(argv: list[str] | None = None) -> int:
    """Update or check; return the exit code."""
    parser = argparse.ArgumentParser(description="Update the message catalogue from the source.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where something is wrong")
    args = parser.parse_args(argv)
    found = extract()
    catalog = merged(sorted(found.templates), read_catalogue())
    if args.check:
        wrong = found.problems + check(catalog)
        print("\n".join(wrong or [f"{len(catalog)} messages, all translated"]))
        return 1 if wrong else 0
    PO.parent.mkdir(parents=True, exist_ok=True)
    PO.write_bytes(po_bytes(catalog))
    PO.with_suffix(".mo").write_bytes(mo_bytes(catalog))
    left = found.problems + complaints(catalog)
    print("\n".join([*left, f"{len(catalog)} messages, left to do: {len(left)}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
