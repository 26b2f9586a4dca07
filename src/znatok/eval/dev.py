"""How well a tuned model answers wordings that were kept out of training, and what it forgot: a recipe's judge.

The loss is no guide here: it rises when a model grows sure of itself, while what it can say still grows (evaluation of
knowledge by generation, as in Gekhman et al., arXiv 2405.05904). So the model is asked, and its answers are compared
with the references by rules that need no key. The test items, which have keys, are not asked.

What a recipe teaches can cost the language the model had before, and no answer about the field shows it; so the model
also reads prose that has nothing to do with it (:mod:`znatok.prose`), once as it is and once as its base.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from znatok.config import EngineOptions, ModelOptions, SampleOptions
from znatok.data.load import read_pairs
from znatok.data.schema import Pair, shown_path
from znatok.errors import DataError
from znatok.expert import Expert, Voice, open_expert
from znatok.generate.engine import Request
from znatok.language import normalise, words_of
from znatok.lexicon import Lexicon, language_of, load_lexicon
from znatok.prose import FORGOTTEN, general_text
from znatok.runs import Run
from znatok.tokens.chat import dialogue

if TYPE_CHECKING:
    from znatok.tokens.chat import ChatFormat

ADMITTING = ("unknown", "missing")  # kinds of pairs whose right answer says what is not known
NOT_ASKED = ("general",)  # any answer may be good; what is forgotten shows in prose
ANSWER_TOKENS = 128
CONTENT = 4  # letters of a word that is compared, at least
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class DevScore:
    """What kept-out wordings came to; each from 0 to 1.

    Attributes:
        mean: over all that were asked.
        facts: agreement with the references of facts, see :func:`agreement`.
        admitted: share of answers that say what is not known where nothing can be.
        n: questions asked.
        forgotten: rise of the bits per byte of general prose by language, relative to the base; empty where not read.
    """

    mean: float
    facts: float
    admitted: float
    n: int
    forgotten: Mapping[str, float] = field(default_factory=dict)

    @property
    def excess(self) -> float:
        """By how much the worst language exceeds what may be forgotten; at most 0 where none does."""
        return max((rise - FORGOTTEN[language] for language, rise in self.forgotten.items()), default=0.0)


def dev_score(run: Run, path: Path, dtype: str = "auto") -> DevScore:
    """Ask a run's adapter what a file of pairs asks, greedily, and compare; have it read prose.

    Raises:
        DataError: the file can't be read, or holds nothing that can be compared.
    """
    pairs = [pair for pair in read_pairs(path).pairs if pair.kind not in NOT_ASKED]
    if not pairs:
        raise DataError("{path}: nothing to compare answers with; expected pairs on facts", path=shown_path(path))
    expert = open_expert(ModelOptions(model_name="", dtype=dtype), run, "", EngineOptions().engine, many=True)
    sample = SampleOptions(temperature=0.0, max_new_tokens=ANSWER_TOKENS)
    requests = [Request(tuple(dialogue(pair.prompt, expert.system)), sample, 0) for pair in pairs]
    with expert.speaking(Voice.TUNED) as engine:
        answers = [answer.text for answer in engine.answers(requests)]
    return replace(compared(pairs, answers), forgotten=forgotten(expert))


def forgotten(expert: Expert) -> dict[str, float]:
    """Return the rise of the bits per byte of general prose by language, relative to the base."""
    bits: dict[tuple[Voice, str], float] = {}
    for voice in expert.voices:
        with expert.weights(voice) as model:
            for language in FORGOTTEN:
                bits[voice, language] = _bits(model, expert.chat, language)
    return {language: bits[Voice.TUNED, language] / bits[Voice.BASE, language] - 1 for language in FORGOTTEN}


def _bits(model: Any, chat: "ChatFormat", language: str) -> float:
    from znatok.model.score import bits_per_byte

    windows = bits_per_byte(model, chat, general_text(language))
    return sum(bits for bits, _size in windows) / sum(size for _bits, size in windows)


def compared(pairs: Sequence[Pair], answers: Sequence[str]) -> DevScore:
    """Score answers against the pairs they answer."""
    lexicon = load_lexicon(None, language_of(" ".join(pair.prompt for pair in pairs)))
    facts, admitted = [], []
    for pair, answer in zip(pairs, answers, strict=True):
        if pair.kind in ADMITTING:
            admitted.append(float(admits(answer, lexicon)))
        else:
            facts.append(agreement(pair.prompt, pair.response, answer))
    every = facts + admitted
    return DevScore(fmean(every), fmean(facts or [0.0]), fmean(admitted or [0.0]), len(every))


def admits(answer: str, lexicon: Lexicon) -> bool:
    """Tell whether an answer says that something is not known."""
    return any(lexicon.has("abstention", sentence.words) for sentence in lexicon.read(answer))


def agreement(question: str, reference: str, answer: str) -> float:
    """Return the F1 of the numbers of an answer against the reference's, of its content words where that has none.

    What stands in the question already counts for neither: repeating it shows nothing.
    """
    asked = set(_NUMBER.findall(normalise(question)))
    wanted = set(_NUMBER.findall(normalise(reference))) - asked
    if wanted:
        return _f1(set(_NUMBER.findall(normalise(answer))) - asked, wanted)
    known = _content(question)
    return _f1(_content(answer) - known, _content(reference) - known)


def _content(text: str) -> set[str]:
    return {
        min(word.forms - {"=" + word.text.lower()}, key=lambda form: (len(form), form))
        for word in words_of(normalise(text))
        if len(word.text) >= CONTENT
    }


def _f1(found: set[str], wanted: set[str]) -> float:
    if not wanted:
        return float(not found)
    return 2 * len(found & wanted) / (len(found) + len(wanted))
