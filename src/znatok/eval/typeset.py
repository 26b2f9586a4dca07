"""A page in pixels: text measured with its real font, wrapped, and drawn without surprises.

matplotlib's own tables neither wrap nor measure, so the pictures of answers are laid out here: every line is placed
by its baseline, and a page is as tall as its text. The figure is drawn by its own Agg canvas: no pyplot, no state
shared between pictures, the same bytes every time.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ft2font import LoadFlags
from matplotlib.patches import FancyBboxPatch, Rectangle

from znatok.files import replacing

SANS, MONO = "DejaVu Sans", "DejaVu Sans Mono"  # both ship with matplotlib and have Cyrillic
UNKNOWN = "□"  # stands for a character the font can't draw, such as a hieroglyph
ELLIPSIS = "…"
NBSP = "\u00a0"

_SPACE = re.compile(r"[^\S\n ]")  # thin, narrow and other spaces
_CLINGING = re.compile(r" +(?=[—–−×°%])")  # a line doesn't begin with a dash, a sign or a unit


@dataclass(frozen=True)
class Face:
    """A font at a size in pixels."""

    size: float
    family: str = SANS
    weight: str = "normal"

    @property
    def line(self) -> float:
        """Distance of two baselines in running text."""
        return round(self.size * 1.42)

    def width(self, text: str) -> float:
        """Return how wide ``text`` is drawn, in pixels."""
        return sum(_advance(self.family, self.weight, c) for c in text) * self.size / _UNITS

    def drawable(self, text: str) -> str:
        """Return ``text`` with the characters this font doesn't have replaced by a box, so that nothing warns."""
        has = _glyphs(self.family, self.weight)
        composed = _SPACE.sub(NBSP, unicodedata.normalize("NFC", text).expandtabs(2))
        return "".join(c if ord(c) in has else UNKNOWN for c in composed if c in "\n\xa0" or c.isprintable())

    def wrap(self, text: str, width: float, lines: int | None = None) -> list[str]:
        """Break ``text`` into lines no wider than ``width``; what goes beyond ``lines`` of them ends in «…»."""
        wrapped = [line for part in text.strip().split("\n") if part.strip() for line in self._paragraph(part, width)]
        if lines is None or len(wrapped) <= lines:
            return wrapped
        return [*wrapped[: lines - 1], self.shorten(wrapped[lines - 1], width)]

    def shorten(self, text: str, width: float) -> str:
        """End ``text`` in «…», dropping words until it fits."""
        words = text.split(" ")
        while len(words) > 1 and self.width(" ".join(words).rstrip(" .,;:—-") + ELLIPSIS) > width:
            words.pop()
        kept = " ".join(words).rstrip(" .,;:—-")
        while kept and self.width(kept + ELLIPSIS) > width:
            kept = kept[:-1]
        return kept + ELLIPSIS

    def _paragraph(self, text: str, width: float) -> list[str]:
        lines, line = [], ""
        glued = _CLINGING.sub(NBSP, text.strip(" "))
        for word in (piece for whole in re.split(" +", glued) for piece in self._pieces(whole, width)):
            longer = f"{line} {word}" if line else word
            if line and self.width(longer) > width:
                lines.append(line)
                line = word
            else:
                line = longer
        return [*lines, line]

    def _pieces(self, word: str, width: float) -> list[str]:
        """Cut a word that is wider than the column; everything else stays whole."""
        pieces, piece = [], ""
        for character in word:
            if piece and self.width(piece + character) > width:
                pieces.append(piece)
                piece = ""
            piece += character
        return [*pieces, piece]


_UNITS = 256  # size at which advances are measured; unhinted, they scale


@cache
def _font(family: str, weight: str) -> Any:
    properties = font_manager.FontProperties(family=family, weight=weight)
    return font_manager.get_font(font_manager.findfont(properties))


@cache
def _glyphs(family: str, weight: str) -> frozenset[int]:
    return frozenset(_font(family, weight).get_charmap()) | {ord("\n")}


@cache
def _advance(family: str, weight: str, character: str) -> float:
    font = _font(family, weight)
    font.set_size(_UNITS, 72)
    glyph = font.load_char(ord(character), flags=LoadFlags.NO_HINTING)
    return float(glyph.linearHoriAdvance) / 65536


class Page:
    """A white page; x to the right and y downwards, in pixels."""

    def __init__(self, width: int, height: float, background: str = "white") -> None:
        self.width, self.height = width, round(height)
        self.figure = Figure(figsize=(self.width / 72, self.height / 72), dpi=72, facecolor=background)
        self.canvas = FigureCanvasAgg(self.figure)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self.axes.set_xlim(0, self.width)
        self.axes.set_ylim(self.height, 0)

    def text(self, x: float, y: float, text: str, face: Face, colour: str) -> None:
        """Draw one line with its baseline at ``y``; dollar signs are dollar signs."""
        self.axes.text(
            x, y, text, color=colour, fontsize=face.size, fontfamily=face.family, fontweight=face.weight,
            va="baseline", parse_math=False,
        )  # fmt: skip

    def lines(self, x: float, top: float, lines: list[str], face: Face, colour: str) -> float:
        """Draw lines of running text from ``top``; return where they end."""
        for i, line in enumerate(lines):
            self.text(x, top + i * face.line + face.size, line, face, colour)
        return top + len(lines) * face.line

    def box(self, x: float, y: float, width: float, height: float, fill: str, *, edge: str = "none") -> None:
        """Draw a filled rectangle."""
        self.axes.add_patch(Rectangle((x, y), width, height, facecolor=fill, edgecolor=edge, linewidth=0))

    def card(self, x: float, y: float, width: float, height: float, fill: str, edge: str, radius: float = 14) -> None:
        """Draw a rectangle with round corners and a hairline."""
        style = f"round,pad=0,rounding_size={radius}"
        patch = FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=fill, edgecolor=edge, linewidth=1.5)
        self.axes.add_patch(patch)

    def save(self, path: Path) -> None:
        """Write a PNG, atomically; the same page gives the same bytes."""
        save_png(self.figure, path)


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG without date or version inside, atomically."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
