"""A proof as tables in Markdown: the claims with their intervals, and the arms side by side."""

import re
from collections.abc import Sequence

from znatok.eval.labels import NOTHING, interval, labels, number
from znatok.exam.proof import Claim, Proof
from znatok.exam.scores import Cell

SHOWN_MEASURES = ("recall", "correct", "incorrect", "not attempted", "contradictions", "precision", "stop", "tokens")
ALSO = {"T0": ("memorised", "recited"), "T1": ("recited",), "T5": ("names_field",)}  # what one split has besides
LIKELIHOODS = ("choices", "brier", "pairs", "pairs, bare")


def shown_measures(split: str) -> tuple[str, ...]:
    """Return the columns of a split's answers."""
    return SHOWN_MEASURES + ALSO.get(split, ())


def claims_table(proof: Proof, language: str) -> str:
    """Return the claims: what, which arms, n, before, after, difference, p, the rule, the verdict."""
    words = labels(language)
    heads = ("claim", "arms", "", "before", "after", "difference", "", "rule", "verdict")
    symbols = ("", "", "n", "", "", "", "p", "", "")
    head = [words["proof." + key] if key else symbol for key, symbol in zip(heads, symbols, strict=True)]
    lines = [head, [":--", ":--", "--:", "--:", "--:", "--:", "--:", ":--", ":--"]]
    lines += [claim_cells(claim, language) for claim in proof.claims]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def claim_cells(claim: Claim, language: str) -> list[str]:
    """Return one claim as texts."""
    words = labels(language)
    digits = 3
    return [
        words.get(f"proof.{claim.key}", claim.key),
        f"{claim.a} → {claim.b}",
        str(claim.n),
        interval(claim.before, digits, language),
        interval(claim.after, digits, language),
        interval(claim.difference, digits, language, sign=True),
        NOTHING if claim.p is None else number(claim.p, 4, language),
        rule_text(claim.rule, language),
        words[f"verdict.{claim.verdict}"],
    ]


RULES_IN_RUSSIAN = {
    "low": "нижняя граница",
    "high": "верхняя граница",
    "gain": "прирост",
    "rate": "доля",
    "point": "разница",
    "not worse": "не хуже",
    "at equal length": "при равной длине",
    "at 95 %": "с надёжностью 95 %",
    "Holm": "по Холму",
}


def rule_text(rule: str, language: str) -> str:
    """Return an inequality in a reader's language."""
    if language == "en":
        return rule
    for english, russian in RULES_IN_RUSSIAN.items():
        rule = re.sub(rf"\b{english}", russian, rule)
    return re.sub(r"(?<=\d)\.(?=\d)", ",", rule).replace("-", "−")


def arms_table(proof: Proof, split: str, language: str, measures: Sequence[str] | None = None) -> str:
    """Return one split: a row for each arm, a column for each measure."""
    head, *rows = arms_rows(proof, split, language, shown_measures(split) if measures is None else measures)
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def arms_rows(proof: Proof, split: str, language: str, measures: Sequence[str]) -> list[list[str]]:
    """Return one split's cells, the head first; what fewer of the questions can show says how many."""
    words = labels(language)
    found = {(cell.arm, cell.measure): cell for cell in proof.cells if cell.split == split and cell.measure in measures}
    present = [measure for measure in measures if any(name == measure for _arm, name in found)]
    rows = [[words["proof.arm"], "n", *(words.get(f"measure.{name}", name) for name in present)]]
    for arm in dict.fromkeys(arm for arm, _measure in found):
        n = max(cell.value.n for (name, _measure), cell in found.items() if name == arm)
        cells = [_cell(found.get((arm, name)), language, n) for name in present]
        rows.append([words.get(f"arm.{arm}", arm), str(n), *cells])
    return rows


def runs_table(proof: Proof, language: str) -> str:
    """Return what each training seed came to by itself: a row for each criterion, a column for each run."""
    words = labels(language)
    found = {(cell.arm, cell.measure): cell for cell in proof.by_run}
    lines = [[words["proof.claim"], *proof.runs], [":--", *["--:"] * len(proof.runs)]]
    for name in dict.fromkeys(cell.measure for cell in proof.by_run):
        cells = [_cell(found.get((run, name)), language) for run in proof.runs]
        lines.append([words.get(f"proof.{name}", name), *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(cell: Cell | None, language: str, n: int | None = None) -> str:
    """Return a value with its interval, and its own n where it is not ``n``."""
    if cell is None:
        return NOTHING
    text = interval(cell.value, 0 if cell.measure == "tokens" else 2, language)
    return text if n in {None, cell.value.n} else f"{text}, n {cell.value.n}"


def markdown(proof: Proof, language: str) -> str:
    """Return the whole proof."""
    words = labels(language)
    parts = [claims_table(proof, language), words["proof.note"]]
    for split in sorted({cell.split for cell in proof.cells}):
        own = {cell.measure for cell in proof.cells if cell.split == split}
        for measures in (shown_measures(split), LIKELIHOODS):
            if own & set(measures):
                title = words.get(f"split.{split}", split)
                parts.append(f"**{split}**" + (f": {title}" if title != split else ""))
                parts.append(arms_table(proof, split, language, measures))
    if len(proof.runs) > 1:
        parts += [f"**{words['proof.by_run']}**", runs_table(proof, language)]
    return "\n\n".join(parts) + "\n"
