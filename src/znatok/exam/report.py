"""The proof as one HTML file: claims, arms, pictures, best and worst answers, and every item behind a number.

A number leads to the log it was made from: the answers of its split, what was chosen, preferred, or read.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from znatok.eval.labels import labels
from znatok.eval.records import visible
from znatok.eval.report import data_uri
from znatok.exam.criteria import CRITERIA
from znatok.exam.logged import Cell, logs_of
from znatok.exam.proof import BY_RUN, FIVE, WRITTEN_BEFORE_TRAINING, Claim, Proof
from znatok.exam.scores import MEMORISED, Row
from znatok.exam.text import LIKELIHOODS, arms_rows, claim_cells, runs_table, shown_measures

SHOWN_EXTREMES = 10
CRITERIA_MEASURES = (*CRITERIA, "mixed_script")
LOGGED = {"choices": "-choices", "brier": "-choices", "pairs": "-pairs", "pairs, bare": "-pairs"}
"""Which log of a split a measure is made from, by the end of its anchor; any other one from the answers."""
KINDS = {"choice": "-choices", "pair": "-pairs", "open": ""}
"""The same by the kind of its rows."""
JUDGED = {criterion.key: criterion for criterion in (*BY_RUN, *WRITTEN_BEFORE_TRAINING, *FIVE)}
"""Every criterion by the key of its claims; prose has none."""


class _Table(NamedTuple):
    """One split: its name, the captions, and a row for each arm."""

    split: str
    head: list[str]
    rows: list[list[Cell]]


class _Item(NamedTuple):
    """One question with the answers of all arms and runs."""

    id: str
    split: str
    question: str
    reference: str
    answers: list[Row]


def render_proof(
    proof: Proof,
    rows: Sequence[Row],
    texts: Sequence[Row],
    facts: Mapping[str, Any],
    images: Mapping[str, Path],
    language: str = "ru",
) -> str:
    """Return the report as one HTML document.

    What models wrote is untrusted: it is escaped, stripped of control characters, and the page's policy forbids
    scripts and every address but the pictures inside the file.

    Args:
        proof: claims and table.
        rows: of ``eval/items.jsonl``.
        texts: bits per byte, see :class:`znatok.exam.examine.Result`.
        facts: models, adapters, data, machine, hashes.
        images: PNG files by caption key; ``loss: RUN`` for the curve of a run.
        language: of everything but the answers.
    """
    words = labels(language)
    items = _items(rows)
    logs = logs_of(rows, texts, language)
    anchors = {item.split for item in items} | {log.anchor for log in logs}
    claims = [_claim(claim, anchors, language) for claim in proof.claims]
    return _template().render(
        language=language,
        words=words,
        runs=facts["runs"],
        facts=_flat_facts(facts),
        claim_head=[
            words["proof.claim"], words["proof.arms"], "n", words["proof.before"], words["proof.after"],
            words["proof.difference"], "p", words["proof.rule"], words["proof.verdict"],
        ],
        claims=claims,
        forgetting=[
            cells for claim, cells in zip(proof.claims, claims, strict=True) if claim.key.startswith("P7")
        ],
        by_run=_by_run(proof, anchors, language),
        tables=[
            table
            for split in sorted({cell.split for cell in proof.cells})
            for measures in (shown_measures(split), CRITERIA_MEASURES, LIKELIHOODS)
            if (table := _table(proof, split, measures, language)) is not None
        ],
        images=[(_caption(name, words), data_uri(path)) for name, path in images.items()],
        extremes=[
            (words[f"report.{name}"], chosen)
            for name, chosen in _extremes([item for item in items if item.split != MEMORISED]).items()
        ],
        items=items,
        logs=logs,
    )  # fmt: skip


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible
    return environment.get_template("report.html.j2")


def _table(proof: Proof, split: str, measures: Sequence[str], language: str) -> _Table | None:
    head, *rows = arms_rows(proof, split, language, measures)
    own = {cell.measure for cell in proof.cells if cell.split == split}
    links = ["", "", *(f"#{split}{LOGGED.get(name, '')}" for name in measures if name in own)]
    linked = [[Cell(text, link) for text, link in zip(row, links, strict=True)] for row in rows]
    return _Table(split, head, linked) if rows else None


def _claim(claim: Claim, anchors: Collection[str], language: str) -> list[Cell]:
    """Return the row of a claim."""
    name, arms, *numbers, p, rule, verdict = claim_cells(claim, language)
    logs = _logs(claim.key, anchors)
    shown = [Cell(arms), *_linked(numbers, logs), Cell(p), Cell(rule)]
    return [Cell(name, logs=logs), *shown, Cell(verdict, css=claim.verdict.replace(" ", "-"))]


def _logs(key: str, anchors: Collection[str]) -> tuple[str, ...]:
    """Return the logs a claim is made from, of those there are."""
    if key in JUDGED:
        made = tuple(split + KINDS[JUDGED[key].kind] for split in JUDGED[key].splits)
    else:
        made = (key.removeprefix("P7 ").replace(" ", "-"),)
    return tuple(anchor for anchor in made if anchor in anchors)


def _linked(texts: Sequence[str], logs: Sequence[str]) -> list[Cell]:
    """Return numbers that lead to the first of their logs."""
    return [Cell(text, f"#{logs[0]}" if logs else "") for text in texts]


def _by_run(proof: Proof, anchors: Collection[str], language: str) -> tuple[list[str], list[list[Cell]]] | None:
    """Return head and rows of the table of training seeds; None where there is one seed."""
    if len(proof.runs) < 2:
        return None
    head, _rule, *lines = (
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in runs_table(proof, language).split("\n")
    )
    rows = []
    for key, (name, *numbers) in zip(dict.fromkeys(cell.measure for cell in proof.by_run), lines, strict=True):
        logs = _logs(key, anchors)
        rows.append([Cell(name, logs=logs), *_linked(numbers, logs)])
    return head, rows


def _caption(name: str, words: Mapping[str, str]) -> str:
    """Return a picture's caption; «loss: RUN» names the run after it."""
    kind, _colon, run = name.partition(": ")
    return words[f"image.{kind}"] + (f", {run}" if run else "")


def _items(rows: Sequence[Row]) -> list[_Item]:
    found: dict[str, _Item] = {}
    for row in rows:
        if row["kind"] == "open":
            item = _Item(row["id"], row["split"], row["question"], row["reference"], [])
            found.setdefault(row["id"], item).answers.append(row)
    return sorted(found.values(), key=lambda item: item.split)


def _extremes(items: Sequence[_Item]) -> dict[str, list[_Item]]:
    """Choose the items in which tuning changed the recall most, for the better and for the worse; ties by id."""

    def change(item: _Item) -> float:
        recalls: dict[str, list[float]] = {"base": [], "tuned": []}
        for row in item.answers:
            if row["arm"] in recalls and row["recall"] is not None:
                recalls[row["arm"]].append(row["recall"] - min(1.0, 0.5 * row["contradictions"]))
        base, tuned = recalls["base"], recalls["tuned"]
        return sum(tuned) / len(tuned) - sum(base) / len(base) if base and tuned else 0.0

    ranked = sorted(items, key=lambda item: (-change(item), item.id))
    better = [item for item in ranked if change(item) > 0][:SHOWN_EXTREMES]
    worse = [item for item in sorted(items, key=lambda item: (change(item), item.id)) if change(item) < 0]
    return {"gained": better, "lost": worse[:SHOWN_EXTREMES]}


def _flat_facts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, value in facts.items():
        if key == "runs":
            for run in value:
                shown = {k: v for k, v in run.items() if v is not None and not isinstance(v, Mapping)}
                rows.append((f"run {run['run']}", "; ".join(f"{k} {v}" for k, v in shown.items())))
        elif key == "machines":
            rows += [("machine", _listed(one)) for one in value]
        elif isinstance(value, Mapping):
            rows.append((key, _listed(value)))
        elif value is not None:
            rows.append((key, str(value)))
    return rows


def _listed(values: Mapping[str, Any]) -> str:
    return "; ".join(f"{k} {v}" for k, v in values.items() if v is not None)
