"""The two plain text files of answers, «Базовая модель.txt» and «дообученная модель.txt»."""

from collections.abc import Iterable
from typing import Literal

from znatok.eval.labels import labels
from znatok.eval.records import MODES, SETS, Answer, Manifest, Question, questions, run_facts, visible
from znatok.files import file_name

FILES = {"base": file_name("Базовая модель.txt"), "tuned": file_name("дообученная модель.txt")}
"""File names by arm, as in the seed document."""

HEADER = ("model_name", "base_sha256", "adapter_sha256", "seed", "sampling", "engine", "created")


def answers_text(
    answers: Iterable[Answer], arm: Literal["base", "tuned"], manifest: Manifest, language: str = "ru"
) -> str:
    """Return one model's answers as a text file: what answered and how, then each question with its answers.

    Sampled answers come first, then the greedy one. Nothing is shortened; only control characters are dropped.
    """
    words = labels(language)
    asked = questions(row for row in answers if row["arm"] == arm)
    facts = [fact for fact in run_facts(manifest, language) if fact.key in HEADER]
    if arm == "base":
        facts = [fact for fact in facts if fact.key != "adapter_sha256"]
    parts = ["\n".join([words["arm." + arm], *(f"{fact.label}: {fact.value}" for fact in facts)])]
    number = 0
    for kind in SETS:
        chosen = [question for question in asked if question.set == kind]
        if chosen:
            title = words["set." + kind]
            parts.append(f"{title}\n{'=' * len(title)}")
        for question in chosen:
            number += 1
            parts.append(_block(number, question, arm, language))
    return "\n\n".join(parts) + "\n"


def _block(number: int, question: Question, arm: str, language: str) -> str:
    words = labels(language)
    lines = [f"{number}. {words['text.question']}: {visible(question.text)}"]
    for mode in MODES:
        for row in question.answers.get((mode, arm), []):
            lines += ["", words["text." + mode].format(seed=row["seed"])]
            lines.append(visible(row["text"]).strip() or words["report.empty"])
            if row["stop"] == "length":
                lines.append(words["text.cut"].format(tokens=row["tokens"]))
    return "\n".join(lines)
