"""General prose that nobody is trained on: by how much worse a tuned model predicts it is what it has forgotten.

A recipe is chosen by these texts, written for it. An examination has others (``data/eval/prose_*.txt``): what a recipe
was chosen by must not be what it is judged by.
"""

from pathlib import Path

FORGOTTEN = {"ru": 0.03, "en": 0.05}
"""Rise of the bits per byte of prose, relative to the base, that a tuned model may show at most; by language."""


def general_text(language: str) -> Path:
    """Return where the text in a language of :data:`FORGOTTEN` stands."""
    return Path(__file__).parent / f"{language}.txt"
