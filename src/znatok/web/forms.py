"""A form for a verb, made of the option groups its flags are made of: one statement of each option, in one place."""

import dataclasses
import re
import shlex
from collections.abc import Sequence
from typing import Any

import gradio as gr

from znatok.config import RECIPES
from znatok.errors import UsageError, _
from znatok.logs import printable

Spec = dataclasses.Field[Any]


def specs(*groups: type[Any], without: Sequence[str] = ()) -> list[Spec]:
    """Return the options of some groups, in their order."""
    found = [spec for group in groups for spec in dataclasses.fields(group)]
    return [spec for spec in found if spec.name not in without]


def default(spec: Spec, recipe: str) -> Any:
    """Return an option's value where nobody states one."""
    return RECIPES[recipe].get(spec.name, spec.default)


def component(spec: Spec, value: Any) -> Any:
    """Return the input for an option: its name is the flag's, its help stands below."""
    meta = spec.metadata
    common = {
        "label": f"--{spec.name}",
        "info": _(spec.metadata["help"]),
        "value": value,
        "elem_id": f"option-{spec.name}",
    }
    if spec.type is bool:
        return gr.Checkbox(**common)
    if meta["choices"]:
        return gr.Dropdown(list(meta["choices"]), **common)
    if spec.type in {int, float}:
        ends = {end: meta[low] for end, low in (("minimum", "low"), ("maximum", "high")) if abs(meta[low]) < 1e300}
        return gr.Number(precision=0 if spec.type is int else None, **ends, **common)
    return gr.Textbox(**{**common, "value": value or ""}, max_lines=1)


def changing(choices: Sequence[str | tuple[str, str]], **options: Any) -> Any:
    """Return a list whose entries come and go while the page is open; whatever it names is checked when it is used."""
    value = options.pop("value", choices[0] if choices else None)
    return gr.Dropdown(list(choices), value=value, allow_custom_value=True, **options)


def words(fields: Sequence[Spec], values: Sequence[Any], recipe: str) -> list[str]:
    """Return the flags for what differs from the defaults; a box that was emptied states nothing."""
    found = []
    for spec, value in zip(fields, values, strict=True):
        usual = default(spec, recipe)
        stated = usual if value is None else typed(spec, value)
        if stated != usual and not (stated == "" and usual is None):
            found += [f"--{spec.name}", str(stated).lower() if spec.type is bool else shown(stated)]
    return found


def typed(spec: Spec, value: Any) -> Any:
    """Return a value of an input as the option has it; browsers send whole numbers as they like."""
    if spec.type is bool:
        return bool(value)  # a word here would stand behind a flag that needs none, and be a flag of its own
    if spec.type is int:
        return int(value)
    if spec.type is float:
        return float(value)
    return value


def filled(value: float | None, name: str) -> float:
    """Return what a box for a number holds; a slider's goes back to its least when it is left empty.

    Raises:
        UsageError: it was emptied.
    """
    if value is None:
        raise UsageError("{name}: the box is empty; expected a number", name=name)
    return value


def shown(value: Any) -> str:
    """Return a value as one would type it."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def command(verb: str, flags: Sequence[str]) -> str:
    """Return a command line."""
    return shlex.join(["znatok", verb, *flags])


def to_the_letter(text: str) -> str:
    """Return Markdown that shows a text as it is, on one line: a code span longer than any backticks in it."""
    longest = max((len(found) for found in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {' '.join(printable(text).split())} {fence}"


def by_recipe(fields: Sequence[Spec], recipe: str) -> list[Any]:
    """Return new values of a form when another recipe is chosen."""
    return [gr.update(value=default(spec, recipe)) if spec.name in _set_by_any() else gr.skip() for spec in fields]


def _set_by_any() -> set[str]:
    return {name for values in RECIPES.values() for name in values}
