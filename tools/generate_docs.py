"""Write the documentation that the code already knows; ``--check`` compares and writes nothing.

* ``docs/options.md`` and ``docs/options.ru.md``: every option, from the dataclasses in ``znatok.config``.
* ``docs/commands.md``: the live ``--help`` of every verb and of both scripts.
* ``docs/reliability.md``: what can go wrong, what znatok does then, and the tests that provoke it, from
  ``docs/reliability.toml``; a row without test, reason or a word on what is missing, and a test not there, are errors.
* The file tree in both READMEs, between ``<!-- tree:start -->`` and ``<!-- tree:end -->``, from ``docs/tree.toml``: a
  top-level entry tracked by git, or a module of the package, without a caption is an error.
"""

import argparse
import ast
import dataclasses
import math
import os
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from znatok import cli, config, scripts
from znatok.errors import catalogue, speak

ROOT = Path(__file__).resolve().parents[1]
TREE = Path("docs/tree.toml")
START, END = "<!-- tree:start -->", "<!-- tree:end -->"
READMES = {"en": Path("README.md"), "ru": Path("README.ru.md")}
COLUMNS = 100
HELP_PYTHON = (3, 12)
"""The last Python whose argparse writes help the way ``docs/commands.md`` shows it; 3.13 writes aliases otherwise."""

Problems = list[str]


# Options

HISTORICAL = {
    "train_model.py": [
        *("model_name", "data_path", "output_dir", "use_lora", "lora_r", "lora_alpha", "lora_dropout", "learning_rate"),
        *("num_train_epochs", "per_device_train_batch_size", "max_length", "seed"),
    ],
    "chatting.py": ["model_name", "model_dir", "test_seed"],
}
TRAIN_VERBS, CHAT_VERBS = "`train`, `plan`, `demo`, `train_model.py`", "`chat`, `ask`, `chatting.py`"
GROUPS: dict[type[Any], str] = {
    config.ModelOptions: f"{TRAIN_VERBS}, {CHAT_VERBS}",
    config.EngineOptions: f"{CHAT_VERBS}, `compare`",
    config.DataOptions: TRAIN_VERBS,
    config.LoraOptions: TRAIN_VERBS,
    config.TrainOptions: TRAIN_VERBS,
    config.SampleOptions: f"{CHAT_VERBS}, `compare`",
    config.SearchOptions: "`search`",
    config.ExportOptions: "`export`",
    config.ServeOptions: "`serve`",
    config.WebOptions: "`web`",
}
EXPERT = ", ".join(
    f"`--{name} {value:g}`" if isinstance(value, float) else f"`--{name} {value}`"
    for name, value in config.RECIPES["expert"].items()
)
WORDS = {
    "en": {
        "title": "Options",
        "lead": "Every option is stated once, in `src/znatok/config.py`; this page is generated from it. A flag may be "
        "written with underscores or hyphens, `--lora_r 8` or `--lora-r=8`; a switch alone means true, and "
        "`--resume false` or `--resume=no` turns it off. A run keeps the options it was started with in `run.toml`, in "
        "tables named after the headings below.",
        "historical": "Marked with * are the flags of the scripts znatok grew from; their names and defaults do not "
        "change. `train_model.py` has {train_model}; `chatting.py` has {chatting}. The flags of single commands are in "
        "[commands.md](commands.md).",
        "recipes": "The defaults below are `--recipe seed`, that of `train_model.py` and `znatok demo`. "
        "`znatok train`, `plan` and `search` take `--recipe expert` unless told otherwise: {expert}, and the large "
        "data set where it is there and no other is named.",
        "taken": "Taken by",
        "row": ("option", "type", "default", "allowed", "meaning"),
        "types": {"bool": "true or false", "int": "whole number", "float": "number", "str": "text"},
        "none": "none",
        "empty": "empty",
        "span": ("{low} to {high}", "{low} or more", "up to {high}"),
    },
    "ru": {
        "title": "Параметры",
        "lead": "Каждый параметр описан один раз, в `src/znatok/config.py`; эта страница создана из него. Флаг можно "
        "писать через подчёркивания или дефисы: `--lora_r 8` или `--lora-r=8`; переключатель без значения означает "
        "true, а `--resume false` или `--resume=no` его выключает. Параметры, с которыми начат прогон, хранятся в его "
        "`run.toml`, в таблицах, названных как заголовки ниже.",
        "historical": "Звёздочкой * отмечены флаги скриптов, из которых вырос znatok; их имена и значения по умолчанию "
        "не меняются. У `train_model.py` это {train_model}; у `chatting.py` — {chatting}. Флаги отдельных команд — в "
        "[commands.md](commands.md).",
        "recipes": "Значения по умолчанию ниже — это `--recipe seed`, рецепт `train_model.py` и `znatok demo`. "
        "`znatok train`, `plan` и `search` берут `--recipe expert`, если не сказано иначе: {expert}, и большой набор "
        "данных, если он на месте и не назван другой.",
        "taken": "Где действуют",
        "row": ("параметр", "тип", "по умолчанию", "допустимо", "смысл"),
        "types": {"bool": "true или false", "int": "целое число", "float": "число", "str": "текст"},
        "none": "нет",
        "empty": "пусто",
        "span": ("от {low} до {high}", "{low} и больше", "до {high}"),
    },
}


def options_page(language: str) -> str:
    """Return ``docs/options.md`` or its Russian twin."""
    words: dict[str, Any] = WORDS[language]
    translate = catalogue(language).gettext
    listed = {script.removesuffix(".py"): ", ".join(f"`--{f}`" for f in flags) for script, flags in HISTORICAL.items()}
    lines = [f"# {words['title']}", "", _wrapped(words["lead"]), ""]
    lines += [_wrapped(words["historical"].format(**listed)), ""]
    lines += [_wrapped(words["recipes"].format(expert=EXPERT)), ""]
    for group, taken in GROUPS.items():
        title = translate((group.__doc__ or "").splitlines()[0].rstrip("."))
        lines += [f"## `{_table_name(group)}`: {title[0].lower()}{title[1:]}", "", f"{words['taken']}: {taken}.", ""]
        lines += ["| " + " | ".join(words["row"]) + " |", "|---" * 5 + "|"]
        lines += [_row(spec, words, translate) for spec in dataclasses.fields(group)] + [""]
    return "\n".join(lines).rstrip() + "\n"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, width=120, break_on_hyphens=False, break_long_words=False)


def _table_name(group: type[Any]) -> str:
    return group.__name__.removesuffix("Options").lower()


def _row(spec: "dataclasses.Field[Any]", words: dict[str, Any], translate: Callable[[str], str]) -> str:
    star = " *" if any(spec.name in flags for flags in HISTORICAL.values()) else ""
    kind = spec.type.__name__ if isinstance(spec.type, type) else "str"
    cells = [
        f"`--{spec.name}`{star}",
        words["types"][kind],
        _default(spec.default, words),
        _allowed(spec.metadata, words),
        translate(spec.metadata["help"]).replace("<", "\\<").replace("|", "\\|"),
    ]
    return "| " + " | ".join(cells) + " |"


def _default(value: object, words: dict[str, Any]) -> str:
    if value is None:
        return words["none"]
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else words["empty"]


def _allowed(meta: Any, words: dict[str, Any]) -> str:
    if meta["choices"]:
        return ", ".join(f"`{choice}`" for choice in meta["choices"])
    both, above, below = words["span"]
    low, high = (_figure(meta[end]) for end in ("low", "high"))
    form = both if low and high else above if low else below if high else ""
    return form.format(low=low, high=high)


def _figure(value: float) -> str:
    if math.isinf(value):
        return ""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e6 else f"{value:.10g}"


# Commands


def helps() -> Iterator[tuple[str, str]]:
    """Yield every command and what its ``--help`` prints."""
    yield "znatok", cli.usage()
    for name, verb in cli.VERBS.items():
        yield from _helps_of(f"znatok {name}", verb.parser())
    yield "python train_model.py", scripts.train_parser("train_model.py").format_help()
    yield "python chatting.py", scripts.chat_parser("chatting.py").format_help()


def _helps_of(command: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    yield command, parser.format_help()
    for action in parser._actions:
        parts = action.choices if isinstance(action.choices, dict) else {}
        for name, part in parts.items():
            yield from _helps_of(f"{command} {name}", part)


def commands_page() -> str:
    """Return ``docs/commands.md``, in English and as wide as the page whoever calls."""
    before = dict(os.environ)
    os.environ |= {"COLUMNS": str(COLUMNS), "NO_COLOR": "1"}
    speak("en")
    try:
        every = list(helps())
    finally:
        os.environ.clear()
        os.environ.update(before)
        catalogue.cache_clear()
    lines = ["# Commands", "", "What `--help` prints. Options with their limits: [options.md](options.md).", ""]
    for command, text in every:
        lines += [f"## `{command}`", "", "```text", text.rstrip(), "```", ""]
    return "\n".join(lines).rstrip() + "\n"


# Faults

FAULTS = Path("docs/reliability.toml")


def reliability_page(table: dict[str, Any], known: set[str]) -> tuple[str, Problems]:
    """Return ``docs/reliability.md`` and what is wrong with its table.

    Args:
        table: ``lead``, ``area`` (name -> heading) and the rows ``fault``: number, area, fault, promise, and tests or a
            reason why none is needed; ``open`` says what no test provokes yet.
        known: every test there is, ``file::name``.
    """
    problems = []
    lines = ["# Reliability", "", *table["lead"].strip().split("\n"), ""]
    faults = table["fault"]
    for fault in faults:
        place = f"{FAULTS}: {fault['number']}"
        problems += [f"{place}: {test} is not there" for test in fault.get("tests", []) if test not in known]
        if fault.get("tests") and fault.get("reason"):
            problems.append(f"{place}: a row with tests needs no reason why it has none")
        if not (fault.get("tests") or fault.get("reason") or fault.get("open")):
            problems.append(f"{place}: needs tests, a reason why it needs none, or a word on what is missing")
    if [fault["number"] for fault in faults] != list(range(1, len(faults) + 1)):
        problems.append(f"{FAULTS}: the numbers are not 1, 2, 3, …")
    for area, heading in table["area"].items():
        lines += [f"## {heading}", "", "| | what goes wrong | what znatok does | seen by |", "|--:|---|---|---|"]
        lines += [_fault_row(fault) for fault in faults if fault["area"] == area]
        lines.append("")
    left = [fault for fault in faults if fault.get("open")]
    if left:
        lines += ["## Not provoked yet", "", *(f"* {fault['number']}: {fault['open']}" for fault in left), ""]
    return "\n".join(lines).rstrip() + "\n", problems


def _fault_row(fault: dict[str, Any]) -> str:
    seen = "<br>".join(f"`{test.removeprefix('tests/')}`" for test in fault.get("tests", [])) or fault.get("reason", "")
    cells = (str(fault["number"]), fault["fault"], fault["promise"], seen)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def test_ids(names: set[str]) -> set[str]:
    """Return ``file::name`` of every test in these files."""
    found = set()
    for name in names:
        if name.startswith("tests/") and name.endswith(".py"):
            tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
            functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
            found |= {f"{name}::{node.name}" for node in functions if node.name.startswith("test_")}
    return found


# The tree


def tree_problems(captions: dict[str, Any], tracked: set[str], present: set[str]) -> Problems:
    """Return what lacks a caption and which captions speak of nothing.

    Args:
        captions: of ``docs/tree.toml``.
        tracked: paths of the files that git tracks.
        present: those, and the files that git would not ignore.
    """
    needed = {name.split("/")[0] for name in tracked}
    needed |= {name for name in tracked if name.startswith("src/znatok/") and name.endswith(".py")}
    needed = {name for name in needed if not (name.endswith("/__init__.py") and name.count("/") > 2)}  # empty ones
    needed |= {name.rsplit("/", 1)[0] for name in needed if name.startswith("src/znatok/")}
    found = [f"{TREE}: no caption for {name}" for name in sorted(needed - captions.keys())]
    known = present | _folders(present)
    found += [
        f"{TREE}: {name} is not there any more; take its caption out"
        for name, caption in captions.items()
        if name not in known and not caption.get("made")
    ]
    return found


def _folders(names: set[str]) -> set[str]:
    return {"/".join(name.split("/")[:depth]) for name in names for depth in range(1, name.count("/") + 1)}


def tree_block(captions: dict[str, Any], present: set[str], language: str) -> str:
    """Return the tree with its captions as a fenced block; entries stand in the order of the TOML file."""
    folders = _folders(present)
    shown = [name for name in captions if name in present or name in folders]
    children: dict[str, list[str]] = {}
    for name in shown:
        parents = [other for other in shown if name.startswith(other + "/")]
        children.setdefault(max(parents, key=len, default=""), []).append(name)
    rows = list(_tree_rows(children, folders, "", ""))
    width = max(len(left) for left, _name in rows) + 2
    lines = [f"{left:{width}}{captions[name][language]}".rstrip() for left, name in rows]
    return "\n".join([START, "```text", *lines, "```", END])


def _tree_rows(
    children: dict[str, list[str]], folders: set[str], parent: str, indent: str
) -> Iterator[tuple[str, str]]:
    names = children.get(parent, [])
    for name in names:
        last = name == names[-1]
        label = name.removeprefix(parent + "/" if parent else "") + ("/" if name in folders else "")
        yield f"{indent}{'└── ' if last else '├── '}{label}", name
        yield from _tree_rows(children, folders, name, indent + ("    " if last else "│   "))


def with_tree(readme: str, block: str) -> str | None:
    """Return the README with the block between its marks, or None where it has not exactly one pair of them."""
    if readme.count(START) != 1 or readme.count(END) != 1 or readme.index(START) > readme.index(END):
        return None
    return readme[: readme.index(START)] + block + readme[readme.index(END) + len(END) :]


def git_files(*flags: str) -> set[str]:
    """Return the paths git lists that are on the disk."""
    done = subprocess.run(
        ["git", "ls-files", "-z", *flags], capture_output=True, encoding="utf-8", check=True, cwd=ROOT
    )
    return {name for name in done.stdout.split("\0") if name and (ROOT / name).exists()}


# All of it


def pages() -> tuple[dict[Path, str], Problems]:
    """Return every generated file with its content, and what stands in the way of the others."""
    made = {Path("docs/options.md"): options_page("en"), Path("docs/options.ru.md"): options_page("ru")}
    if sys.version_info[:2] <= HELP_PYTHON:
        made[Path("docs/commands.md")] = commands_page()
    captions = tomllib.loads((ROOT / TREE).read_text(encoding="utf-8"))
    tracked = git_files("--cached")
    present = tracked | git_files("--others", "--exclude-standard")
    problems = tree_problems(captions, tracked, present)
    table = tomllib.loads((ROOT / FAULTS).read_text(encoding="utf-8"))
    made[Path("docs/reliability.md")], wrong = reliability_page(table, test_ids(present))
    problems += wrong
    for language, path in READMES.items():
        text = (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).is_file() else ""
        whole = with_tree(text, tree_block(captions, present, language))
        if whole is None:
            problems.append(f"{path}: needs one line {START} and one line {END} after it")
        else:
            made[path] = whole
    return made, problems


def main(argv: list[str] | None = None) -> int:
    """Write or compare; return the exit code."""
    parser = argparse.ArgumentParser(description="Write the generated documentation.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where something differs")
    args = parser.parse_args(argv)
    made, problems = pages()
    for path, text in made.items():
        target = ROOT / path
        same = target.is_file() and target.read_text(encoding="utf-8") == text
        if args.check and not same:
            problems.append(f"{path}: out of date; run «make docs»")
        elif not same:
            target.write_text(text, encoding="utf-8")
            print(f"{path}: written")
    if Path("docs/commands.md") not in made:
        print(f"docs/commands.md: left alone; it needs Python {'.'.join(map(str, HELP_PYTHON))} or older")
    print("\n".join(problems) if problems else "documentation: up to date")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
