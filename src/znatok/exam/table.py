"""Every measure of every arm and split, and how much of what was trained is known word for word only."""

from statistics import fmean

from znatok.exam.criteria import CRITERIA
from znatok.exam.scores import MEMORISED, Cell, Pick, Scores, ended, number, prefers, recall, verdict_is

MEASURES: dict[str, Pick] = {
    "recall": recall,
    "precision": number("precision"),
    **{verdict: verdict_is(verdict) for verdict in ("correct", "partial", "incorrect", "not attempted")},
    "contradictions": number("contradictions"),
    "tokens": number("tokens"),
    **{name: number(name) for name in CRITERIA},
    "stop": ended,
    "cjk": number("cjk"),
    "mixed_script": number("mixed_script"),
    "repetition": number("repetition"),
    "recited": number("recited"),
    "names_field": number("names_field"),
}
LIKELIHOODS: tuple[tuple[str, str, Pick], ...] = (
    ("choice", "choices", number("right")),
    ("choice", "brier", number("brier")),
    ("pair", "pairs", prefers),
    ("pair", "pairs, bare", lambda row: float(row["margin_bare"] > 0)),
)


def table(scores: Scores) -> list[Cell]:
    """Return every measure of every arm and split."""
    asked = [("open", arm, name, pick) for arm in scores.arms for name, pick in MEASURES.items()]
    weighed = [(kind, arm, name, pick) for kind, name, pick in LIKELIHOODS for arm in ("base", "tuned")]
    cells = []
    for kind, arm, name, pick in [*asked, *weighed]:
        for split in sorted({row["split"] for row in scores.rows if row["kind"] == kind}):
            values = scores.values(kind, arm, (split,), pick)
            if values:
                cells.append(Cell(arm, split, name, scores.mean(f"{arm} {split} {name}", values)))
    return [*cells, *memorised(scores)]


def memorised(scores: Scores) -> list[Cell]:
    """Return how much better the training questions are answered than the same facts in other words, by arm."""
    cells = []
    for arm in ("base", "tuned"):
        learnt, known = (scores.values("open", arm, (split,), recall) for split in (MEMORISED, "T1"))
        by_fact: dict[str, list[float]] = {}
        for value, cluster in known.values():
            by_fact.setdefault(cluster, []).append(value)
        more = {k: (value - fmean(by_fact[c]), c) for k, (value, c) in learnt.items() if c in by_fact}
        if more:
            cells.append(Cell(arm, MEMORISED, "memorised", scores.mean(f"{arm} memorised", more)))
    return cells
