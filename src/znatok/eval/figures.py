"""The three pictures of a run: its loss, its answers side by side, its data. No pyplot, no global state."""

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from znatok.errors import DataError
from znatok.eval.labels import labels, number
from znatok.eval.records import Answer, Question, questions, visible
from znatok.eval.typeset import ELLIPSIS, MONO, SANS, Face, Page, save_png

INK, MUTED, HAIR, PALE = "#1c2430", "#66707f", "#dfe3e8", "#f5f7f9"
GREY, TEAL, AMBER = "#7b8494", "#0f766e", "#c2410c"
WIDTH = 1800  # pixels; READMEs show it at half that


class Curve(NamedTuple):
    """What the loss picture shows."""

    steps: list[int]
    losses: list[float]
    val_steps: list[int]
    val_losses: list[float]


def training_loss(metrics_rows: Iterable[Mapping[str, Any]], path: Path, language: str = "ru") -> None:
    """Draw the training loss (each step and smoothed) and the validation loss, with the best step marked."""
    rows = list(metrics_rows)
    curve = loss_curve(rows)
    words = labels(language)
    figure = Figure(figsize=(10, 6), dpi=180, facecolor="white", layout="tight")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    light: dict[str, Any] = {"marker": "o", "markersize": 3} if len(curve.steps) <= 150 else {}
    axes.plot(curve.steps, curve.losses, color=TEAL, alpha=0.3, linewidth=1, label=words["legend.step"], **light)
    axes.plot(curve.steps, smoothed(curve.losses), color=TEAL, linewidth=2.6, label=words["legend.smooth"])
    if curve.val_steps:
        axes.plot(
            curve.val_steps, curve.val_losses, color=AMBER, linewidth=1.2, linestyle=(0, (4, 3)), marker="D",
            markersize=7, markeredgecolor="white", label=words["legend.val"], zorder=4,
        )  # fmt: skip
    step, loss = best(curve)
    caption = words["legend.best"].format(loss=number(loss, 3, language), step=step)
    axes.plot(
        [step], [loss], color=AMBER if curve.val_steps else TEAL, marker="o", markersize=17, fillstyle="none",
        markeredgewidth=2, linestyle="none", label=caption, zorder=5,
    )  # fmt: skip
    for epoch, (start, end) in enumerate(_epochs(rows), 1):
        axes.axvspan(start, end, color=PALE if epoch % 2 else "white", zorder=0, linewidth=0)
        axes.text(
            (start + end) / 2, 1.0, words["legend.epoch"].format(n=epoch), transform=axes.get_xaxis_transform(),
            ha="center", va="bottom", fontsize=10, color=MUTED, fontfamily=SANS,
        )  # fmt: skip
    _dress(axes, language)
    save_png(figure, path)


def loss_curve(rows: Iterable[Mapping[str, Any]]) -> Curve:
    """Collect training and validation losses by step; a step repeated after a resume counts once, the last time."""
    train, val = {}, {}
    for row in rows:
        if "loss" in row:
            train[row["step"]] = row["loss"]
        if "val_loss" in row:
            val[row["step"]] = row["val_loss"]
    if not train:
        raise DataError("metrics.jsonl: no training rows; was the model trained?")
    return Curve(sorted(train), [train[k] for k in sorted(train)], sorted(val), [val[k] for k in sorted(val)])


def best(curve: Curve) -> tuple[int, float]:
    """Return step and value of the lowest validation loss; of the lowest smoothed loss where there is none."""
    steps, losses = curve.val_steps, curve.val_losses
    if not steps:
        steps, losses = curve.steps, smoothed(curve.losses)
    loss = min(losses)
    return steps[losses.index(loss)], loss


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the running mean over about an eighth of the run, centred: it lags neither way.

    At both ends the window narrows to stay centred, so a steep start isn't flattened.
    """
    widest, last = len(values) // 16, len(values) - 1
    halves = [min(widest, i, last - i) for i in range(len(values))]
    return [math.fsum(values[i - half : i + half + 1]) / (2 * half + 1) for i, half in enumerate(halves)]


def _epochs(rows: Iterable[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Return where each epoch begins and ends, in steps; nothing where there would be too many to label."""
    ends: dict[int, float] = {}
    for row in rows:
        if "loss" in row:
            ends[math.ceil(row["epoch"] - 1e-6)] = row["step"] + 0.5
    edges = [0.5, *(ends[epoch] for epoch in sorted(ends))]
    return list(itertools.pairwise(edges)) if 1 < len(ends) <= 10 else []


def _dress(axes: Any, language: str) -> None:
    words = labels(language)
    axes.set_title(words["figure.loss"], fontsize=16, color=INK, pad=30, loc="left", fontfamily=SANS, fontweight="bold")
    axes.set_xlabel(words["axis.step"], fontsize=12, color=MUTED, labelpad=8, fontfamily=SANS)
    axes.set_ylabel(words["axis.loss"], fontsize=12, color=MUTED, labelpad=8, fontfamily=SANS)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 2, 5, 10]))
    ticks = axes.get_yticks()
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value, digits, language)))
    axes.grid(axis="y", color=HAIR, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.tick_params(colors=MUTED, labelsize=11, length=0, pad=6, labelfontfamily=SANS)
    legend = axes.legend(frameon=False, labelcolor=INK, handlelength=2.2, prop={"family": SANS, "size": 11})
    legend.set_zorder(6)


# Answers side by side

TITLE, HEAD, BODY, NOTE = Face(38, weight="bold"), Face(27, weight="bold"), Face(26), Face(21)
COLUMNS = (430.0, 673.0, 673.0)  # each ends in a gap; the last gap lies in the margin
MARGIN, GAP, PAD = 30, 36, 26


class _TableRow(NamedTuple):
    question: list[str]
    cells: list[tuple[list[str], str, bool]]  # for each arm: lines, note under them, whether it was cut off

    @property
    def height(self) -> float:
        answer = max(len(lines) for lines, _, _ in self.cells) * BODY.line + NOTE.line + 8
        return max(answer, len(self.question) * HEAD.line) + 2 * PAD


def comparison_table(answers: Iterable[Answer], path: Path, language: str = "ru", *, lines: int = 10) -> None:
    """Draw questions with the answers of both models beside each other.

    Args:
        answers: rows of ``answers.jsonl``. Shown are the five questions of the seed document, or the first five where
            those weren't asked; sampled answers, or greedy ones where there are no sampled.
        path: the PNG to write.
        language: of the captions.
        lines: an answer longer than this ends in «…».
    """
    asked = questions(answers)
    asked = ([question for question in asked if question.set == "seed"] or asked)[:5]
    if not asked:
        raise DataError("answers.jsonl: no answers to draw; run the comparison first")
    sampled = any(mode == "sampled" for question in asked for mode, _ in question.answers)
    mode = "sampled" if sampled else "greedy"
    rows = [_table_row(question, mode, language, lines) for question in asked]
    top, head = 118, 74
    page = Page(WIDTH, top + head + sum(row.height for row in rows) + 92)
    words = labels(language)
    page.text(MARGIN, 66, words["figure.table"], TITLE, INK)
    _table_head(page, top, head, words)
    y = float(top + head)
    for row in rows:
        _draw_row(page, y, row)
        y += row.height
    seeds = [drawn[0]["seed"] for question in asked for (kind, _), drawn in question.answers.items() if kind == mode]
    notes = [words["table." + mode].format(seed=seeds[0])]
    if any(text and text[-1].endswith(ELLIPSIS) for row in rows for text, _, _ in row.cells):
        notes.append(words["table.short"])
    page.text(MARGIN, y + 54, " ".join(notes), NOTE, MUTED)
    page.save(path)


def _table_row(question: Question, mode: str, language: str, limit: int) -> _TableRow:
    words = labels(language)
    cells = []
    for arm, width in zip(("base", "tuned"), COLUMNS[1:], strict=True):
        drawn = question.answers.get((mode, arm))
        if not drawn:
            cells.append(([words["report.missing"]], "", False))
            continue
        text = BODY.drawable(visible(drawn[0]["text"])).strip() or words["report.empty"]
        note = words["answer." + drawn[0]["stop"]].format(tokens=drawn[0]["tokens"])
        cells.append((BODY.wrap(text, width - GAP, limit), note, drawn[0]["stop"] == "length"))
    return _TableRow(HEAD.wrap(HEAD.drawable(visible(question.text)), COLUMNS[0] - GAP, limit + 1), cells)


def _table_head(page: Page, top: float, height: float, words: Mapping[str, str]) -> None:
    x = float(MARGIN)
    captions = (words["table.question"], words["arm.base"], words["arm.tuned"])
    for caption, width, colour in zip(captions, COLUMNS, (INK, GREY, TEAL), strict=True):
        page.text(x, top + height - 28, caption, HEAD, colour if colour != GREY else "#596273")
        page.box(x, top + height - 6, width - GAP, 5, colour)
        x += width


def _draw_row(page: Page, y: float, row: _TableRow) -> None:
    x = float(MARGIN)
    page.lines(x, y + PAD, row.question, HEAD, INK)
    for width, (lines, note, cut) in zip(COLUMNS, row.cells, strict=False):
        x += width
        end = page.lines(x, y + PAD, lines, BODY, INK)
        page.text(x, end + 8 + NOTE.size, note, NOTE, AMBER if cut else MUTED)
    page.box(MARGIN, y + row.height - 1, page.width - 2 * MARGIN, 1.5, HAIR)


# Records of the data set

CODE = Face(25, MONO)
COLOURS = {"prompt": "#1d4ed8", "response": TEAL, "topic": "#9333ea"}  # of the keys that are drawn, in this order
PUNCTUATION = "#8b94a3"


def dataset_example(
    pairs: Sequence[Mapping[str, Any]],
    path: Path,
    language: str = "ru",
    *,
    name: str = "data.jsonl",
    lines: int = 9,
) -> None:
    """Draw a few records of the data set as a card: keys in colour, values wrapped, line numbers at the side.

    Args:
        pairs: the records; of their keys prompt, response and topic are drawn, and "line" numbers them where given.
        path: the PNG to write.
        language: of the caption.
        name: file name in the caption.
        lines: a value longer than this ends in «…».
    """
    if not pairs:
        raise DataError("no records to draw: the data set is empty")
    left, right, record_gap = 130, WIDTH - 70, 30
    shown = [{key: pair[key] for key in COLOURS if pair.get(key)} for pair in pairs]
    records = [_record(pair, right - left, lines) for pair in shown]
    height = 146 + sum(len(record) * CODE.line for record in records) + record_gap * (len(records) - 1) + 60
    page = Page(WIDTH, height)
    page.card(24, 20, WIDTH - 48, height - 40, PALE, HAIR)
    caption = labels(language)["figure.dataset"].format(name=CODE.drawable(visible(name)))
    page.text(60, 82, caption, HEAD, INK)
    page.box(24, 112, WIDTH - 48, 1.5, HAIR)
    y = 146.0
    for i, (pair, record) in enumerate(zip(pairs, records, strict=True), 1):
        place = str(pair.get("line") or i)
        page.text(left - 24 - CODE.width(place), y + CODE.size, place, CODE, PUNCTUATION)
        for line in record:
            x = float(left)
            for text, colour in line:
                page.text(x, y + CODE.size, text, CODE, colour)
                x += CODE.width(text)
            y += CODE.line
        y += record_gap
    page.save(path)


def _record(pair: Mapping[str, Any], width: float, limit: int) -> list[list[tuple[str, str]]]:
    lines: list[list[tuple[str, str]]] = []
    last = len(pair) - 1
    for i, (key, value) in enumerate(pair.items()):
        shown = CODE.drawable(visible(json.dumps(value, ensure_ascii=False)))
        lead = [("{" if i == 0 else " ", PUNCTUATION), (f'"{key}"', COLOURS[key]), (": ", PUNCTUATION)]
        indent = CODE.width("".join(text for text, _ in lead))
        wrapped = CODE.wrap(shown, width - indent - CODE.width('"}'), limit)
        if wrapped[-1].endswith(ELLIPSIS) and shown.endswith('"'):
            wrapped[-1] += '"'  # the closing quote that was cut away with the rest
        for j, text in enumerate(wrapped):
            pad = " " * round(indent / CODE.width(" "))
            escapes = [(part, PUNCTUATION if part == r"\n" else INK) for part in re.split(r"(\\n)", text)]
            lines.append([*(lead if j == 0 else [(pad, PUNCTUATION)]), *escapes])
        lines[-1].append(("}" if i == last else ",", PUNCTUATION))
    return lines
