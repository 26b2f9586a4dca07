"""One HTML file with everything a comparison found; it loads nothing, runs nothing and opens anywhere."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from znatok.errors import DataError
from znatok.eval.figures import best, loss_curve
from znatok.eval.labels import labels, number
from znatok.eval.records import (
    ARMS,
    MODES,
    SETS,
    Answer,
    Fact,
    Manifest,
    Question,
    questions,
    run_facts,
    visible,
)
from znatok.eval.summary import Summary

PNG = b"\x89PNG\r\n\x1a\n"


class _Side(NamedTuple):
    """One answer as shown: whose it is, its text, the line under it."""

    arm: str
    text: str
    note: str
    cut: bool


class _Group(NamedTuple):
    """The two answers to a question drawn in one way."""

    mode: str
    sides: list[_Side]


def render_report(
    summary: Summary,
    answers: Iterable[Answer],
    manifest: Manifest,
    metrics_rows: Sequence[Mapping[str, Any]],
    images: Mapping[str, Path],
    language: str = "ru",
) -> str:
    """Return the report as one HTML document.

    What models wrote is untrusted: it is escaped by the template, stripped of control characters, and the page's
    policy forbids scripts, frames, forms and every address but the pictures inside the file.

    Args:
        summary: the table of claims.
        answers: rows of ``answers.jsonl``.
        manifest: what is known of the run.
        metrics_rows: rows of ``metrics.jsonl``; may be empty.
        images: PNG files by name; ``training_loss`` and the like get their captions, others are named by their key.
        language: of everything but the answers.
    """
    words = labels(language)
    rows = list(answers)
    sections = {kind: [question for question in questions(rows) if question.set == kind] for kind in SETS}
    return _template().render(
        language=language,
        words=words,
        model=visible(str(manifest.get("model_name", ""))),
        head=summary.head(language),
        table=list(zip(summary.cells(language), (row.verdict for row in summary.rows), strict=True)),
        facts=run_facts(manifest, language) + _training_facts(metrics_rows, language),
        images=[(words.get("image." + name, name), data_uri(path)) for name, path in images.items()],
        sections=[
            (words["set." + kind], [(question, _groups(question, words)) for question in asked])
            for kind, asked in sections.items()
            if asked
        ],
    )


@cache
def _template() -> Template:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["visible"] = visible
    return environment.get_template("report.html.j2")


def data_uri(path: Path) -> str:
    """Return a PNG picture as an address that holds it."""
    data = path.read_bytes()
    if not data.startswith(PNG):
        raise DataError("{path}: not a PNG picture", path=path)
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def _groups(question: Question, words: Mapping[str, str]) -> list[_Group]:
    groups = []
    for mode in MODES:
        arms = [question.answers.get((mode, arm), []) for arm in ARMS]
        for i in range(max(map(len, arms))):
            pair = [drawn[i] if i < len(drawn) else None for drawn in arms]
            seed = next(row["seed"] for row in pair if row)
            title = words["mode." + mode] + (f", {words['fact.seed'].lower()} {seed}" if mode == "sampled" else "")
            groups.append(_Group(title, [_side(arm, row, words) for arm, row in zip(ARMS, pair, strict=True)]))
    return groups


def _side(arm: str, row: Answer | None, words: Mapping[str, str]) -> _Side:
    if row is None:
        return _Side(arm, words["report.missing"], "", cut=False)
    text = visible(row["text"]).strip() or words["report.empty"]
    note = words["answer." + row["stop"]].format(tokens=row["tokens"])
    return _Side(arm, text, note, cut=row["stop"] == "length")


def _training_facts(rows: Sequence[Mapping[str, Any]], language: str) -> list[Fact]:
    if not any("loss" in row for row in rows):
        return []
    words = labels(language)
    curve = loss_curve(rows)
    values = {"steps": str(curve.steps[-1])}
    if curve.val_steps:
        step, loss = best(curve)
        values["best"] = words["best.value"].format(loss=number(loss, 3, language), step=step)
    if peak := max(row.get("peak_rss_bytes") or 0 for row in rows):
        values["memory"] = number(peak / 2**30, 1, language) + "\u00a0" + words["unit.gib"]
    return [Fact(key, words["fact." + key], value) for key, value in values.items()]
