"""A second opinion, off by default: a model behind any OpenAI-compatible address compares base and tuned.

Judges favour what stands first, what is longer and what resembles themselves. So each pair of answers is shown in both
orders and only a verdict that survives the exchange counts, else it is a tie; one criterion is asked for at a time,
with its rubric and the reference; length is named as no reason; and how far the judge agrees with the rules is reported
beside it. Nothing that decides a claim comes from here.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from znatok.errors import SystemFault, UsageError, _
from znatok.eval.stats import Interval, mcnemar_exact, wilson
from znatok.exam.agreement import kappa
from znatok.exam.arms import Store, fingerprint
from znatok.exam.criteria import CRITERIA
from znatok.logs import say

KEY = "ZNATOK_JUDGE_KEY"  # the environment variable that holds the key of the address
TRIES = 3
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")  # never asked through a proxy: to a proxy they mean the proxy's machine
RUBRICS = {
    "accuracy": "Which answer states more of the reference correctly, and less that contradicts it?",
    "specificity": "Which answer is more specific: concrete values with units, named materials, settings and parts?",
    "structure": "Which answer is better ordered and whole: the answer first, no repetition, no unfinished sentence?",
    "practical": "Which answer helps more to do the right thing: what to change, in which direction, to which value?",
    "terminology": "Which answer uses the terms of the field more correctly?",
}
FORM = """You compare two answers to one question by one criterion.
Criterion: {rubric}
The reference is right; whatever contradicts it is wrong. Length is no reason for either side.
Reply with one letter: A or B for the better answer, T if neither is better.

Question: {question}
Reference: {reference}

Answer A:
{first}

Answer B:
{second}
"""
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Opinion:
    """What the judge says of one criterion.

    Attributes:
        criterion: one of the five.
        tuned, base, ties: pairs won, and those in which the two orders disagree or neither is better.
        unread: replies that were no verdict, of 2 × pairs.
        share: of decided pairs, those the tuned model wins.
        p: two-sided exact sign test on the decided pairs.
        kappa: agreement with the rules' own comparison by this criterion, beyond chance.
    """

    criterion: str
    tuned: int
    base: int
    ties: int
    unread: int
    share: Interval
    p: float
    kappa: float


class Judge:
    """A model behind an OpenAI-compatible address."""

    def __init__(self, url: str, model: str, store: Store) -> None:
        if not model:
            raise UsageError("--judge {url}: name the judging model with --judge_model", url=url)
        try:
            import openai
        except ImportError as error:
            raise SystemFault("a judge needs the openai client: pip install 'znatok[judge]'") from error
        self._errors: Any = openai.OpenAIError
        self._client = openai.OpenAI(
            base_url=url,
            api_key=os.environ.get(KEY, "none"),
            max_retries=TRIES,
            timeout=120,
            http_client=openai.DefaultHttpxClient(mounts={f"all://{name}": None for name in LOOPBACK}),
        )
        self.url, self.model, self._store = url, model, store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def verdict(self, prompt: str) -> str:
        """Return A, B, T, or an empty string for a reply that is none of them; what was asked before is remembered.

        Raises:
            SystemFault: the address does not answer, or refuses.
        """
        key = fingerprint("judge", self.url, self.model, prompt)
        if key not in self._store.known:
            try:
                reply = self._client.chat.completions.create(
                    model=self.model, messages=[{"role": "user", "content": prompt}], temperature=0, seed=0
                )
            except self._errors as error:
                raise SystemFault(
                    "the judge at {url} gives no answer: {why}; is the address right, and the key in {variable}?",
                    url=self.url, why=str(error)[:200], variable=KEY,
                ) from error  # fmt: skip
            self._store.put(key, reply.choices[0].message.content or "")
        return letter(self._store.known[key])


def letter(reply: str) -> str:
    """Return the verdict of a reply: its last letter A, B or T that stands alone, whatever it thought before."""
    found = re.findall(r"(?<![^\W_])([ABT])(?![^\W_])", reply)
    return found[-1] if found else ""


def pairs_of(rows: Sequence[Row], count: int, seed: int) -> list[tuple[Row, Row]]:
    """Return (base, tuned) answers of the first run to ``count`` questions of T1 and T2, drawn by lot."""
    own = [row for row in rows if row["kind"] == "open" and row["split"] in {"T1", "T2"}]
    run = next((row["run"] for row in own if row["arm"] == "tuned"), "")
    base = {row["id"]: row for row in own if row["arm"] == "base"}
    tuned = {row["id"]: row for row in own if row["arm"] == "tuned" and row["run"] == run}
    shared = sorted(base.keys() & tuned.keys())
    drawn = np.random.default_rng(seed).permutation(len(shared))[:count]
    return [(base[shared[i]], tuned[shared[i]]) for i in drawn]


def judge_pairs(pairs: Sequence[tuple[Row, Row]], ask: Callable[[str], str]) -> list[Opinion]:
    """Compare all pairs by all five criteria.

    Args:
        pairs: (base, tuned) rows of ``eval/items.jsonl``.
        ask: returns A, B, T or nothing for a prompt.
    """
    found = []
    for criterion in CRITERIA:
        winners, rules, unread = [], [], 0
        for base, tuned in pairs:
            replies = [ask(prompt(criterion, *sides)) for sides in ((base, tuned), (tuned, base))]
            unread += replies.count("")
            winners.append({("A", "B"): "base", ("B", "A"): "tuned"}.get((replies[0], replies[1]), "tie"))
            rules.append(by_rules(base, tuned, criterion))
        counts = Counter(winners)
        decided = counts["tuned"] + counts["base"]
        found.append(
            Opinion(
                criterion, counts["tuned"], counts["base"], counts["tie"], unread,
                wilson(counts["tuned"], decided), mcnemar_exact(counts["base"], counts["tuned"]),
                kappa(list(zip(rules, winners, strict=True))) if pairs else 0.0,
            )
        )  # fmt: skip
        say(_("judge, {criterion}: {done} pairs", criterion=criterion, done=len(pairs)))
    return found


def prompt(criterion: str, first: Row, second: Row) -> str:
    """Return what the judge is asked."""
    return FORM.format(
        rubric=RUBRICS[criterion],
        question=first["question"],
        reference=first["reference"],
        first=first["text"],
        second=second["text"],
    )


def by_rules(base: Row, tuned: Row, criterion: str) -> str:
    """Return whom the rules prefer: base, tuned or tie."""
    before, after = base[criterion] or 0.0, tuned[criterion] or 0.0
    return "tie" if before == after else "tuned" if after > before else "base"
