"""Pictures of a proof: every claim's difference with its interval, the verdicts of every arm, and calibration."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from znatok.eval.figures import AMBER, GREY, HAIR, INK, MUTED, TEAL
from znatok.eval.labels import interval, labels
from znatok.eval.summary import Verdict
from znatok.eval.typeset import SANS, save_png
from znatok.exam.proof import Claim, Proof
from znatok.exam.scores import Row

VERDICTS = ("correct", "partial", "not attempted", "incorrect")
VERDICT_COLOURS = {"correct": TEAL, "partial": "#7cbfb8", "not attempted": HAIR, "incorrect": AMBER}
CLAIM_COLOURS = {Verdict.SHOWN: TEAL, Verdict.WORSE: AMBER, Verdict.NOT_SHOWN: GREY}
BINS = 10


def forest(proof: Proof, path: Path, language: str) -> None:
    """Draw the differences each on a scale of its own: shares and counts can't share one.

    A line goes from the low to the high end, scaled to the larger of them: on which side of zero it lies is seen at
    once, and the figures stand beside it.
    """
    words = labels(language)
    claims = [claim for claim in proof.claims if claim.difference.low is not None]
    figure = Figure(figsize=(10, 0.42 * len(claims) + 1), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, claim in enumerate(reversed(claims)):
        low, value, high = (end or 0.0 for end in (claim.difference.low, claim.difference.value, claim.difference.high))
        scale = max(abs(low), abs(high), 1e-9)
        colour = CLAIM_COLOURS.get(claim.verdict, GREY)
        axes.plot([low / scale, high / scale], [place, place], color=colour, linewidth=2.5, solid_capstyle="butt")
        axes.plot([value / scale], [place], color=colour, marker="o", markersize=7)
        axes.text(
            1.08,
            place,
            interval(claim.difference, 3, language, sign=True),
            va="center",
            fontsize=9,
            color=INK,
            fontfamily=SANS,
        )
    axes.axvline(0, color=MUTED, linewidth=1)
    axes.set_yticks(range(len(claims)), [_name(claim, words) for claim in reversed(claims)], fontsize=9)
    axes.set_xlim(-1.1, 1.9)
    axes.set_xticks([])
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    save_png(figure, path)


def _name(claim: Claim, words: Mapping[str, str]) -> str:
    name = words.get(f"proof.{claim.key}", claim.key)
    return name if claim.b == "tuned" else f"{name} ({words.get(f'arm.{claim.b}', claim.b)})"


def verdict_bars(proof: Proof, path: Path, language: str) -> None:
    """Draw the four verdicts of every arm, a panel for each split."""
    words = labels(language)
    shares = {(c.split, c.arm, c.measure): c.value.value or 0.0 for c in proof.cells if c.measure in VERDICTS}
    splits = sorted({split for split, _arm, _measure in shares})
    arms = list(dict.fromkeys(arm for _split, arm, _measure in shares))
    figure = Figure(
        figsize=(10, 0.32 * len(splits) * len(arms) + 1.2), dpi=150, facecolor="white", layout="constrained"
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(splits), 1, sharex=True, squeeze=False)[:, 0]
    for axes, split in zip(panels, splits, strict=True):
        left = np.zeros(len(arms))
        for verdict in VERDICTS:
            widths = np.array([shares.get((split, arm, verdict), 0.0) for arm in arms])
            label = words[f"verdict.{verdict}"]
            axes.barh(range(len(arms)), widths, left=left, color=VERDICT_COLOURS[verdict], label=label, height=0.72)
            left += widths
        axes.set_yticks(range(len(arms)), [words.get(f"arm.{arm}", arm) for arm in arms], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_title(f"{split}: {words.get(f'split.{split}', split)}", fontsize=9, loc="left", color=INK)
        for side in ("top", "right", "bottom", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(length=0)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(VERDICTS), fontsize=9, frameon=False)
    save_png(figure, path)


def reliability(rows: Sequence[Row], path: Path, language: str) -> None:
    """Draw how often the option a model holds right is right, against how sure it is: ten bins of equal size."""
    words = labels(language)
    figure = Figure(figsize=(6, 5), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=HAIR, linewidth=1)
    for arm, colour in (("base", GREY), ("tuned", TEAL)):
        points = [
            (float(row["confidence"]), float(row["right_whole"]))
            for row in rows
            if row["kind"] == "choice" and row["arm"] == arm
        ]
        if points:
            bins = np.array_split(np.array(sorted(points)), min(BINS, len(points)))
            means = np.array([chunk.mean(axis=0) for chunk in bins if len(chunk)])
            axes.plot(means[:, 0], means[:, 1], color=colour, marker="o", label=words[f"arm.{arm}"])
    axes.set_xlabel(words["axis.sure"], fontfamily=SANS)
    axes.set_ylabel(words["axis.right"], fontfamily=SANS)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    save_png(figure, path)
