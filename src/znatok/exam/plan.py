"""What an examination asks and by what it judges: the files named, else the project's own beside its data set."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from znatok.config import SampleOptions
from znatok.data.load import read_pairs
from znatok.data.schema import quoted
from znatok.errors import DataError, _
from znatok.exam.arms import ARMS, Arm
from znatok.exam.items import SPLITS, UNNAMED, Items, OpenItem, read_items
from znatok.exam.memory import runs
from znatok.exam.scores import MEMORISED
from znatok.files import sha256
from znatok.lexicon import Lexicon, language_of, lexicon_near, load_lexicon
from znatok.logs import say, warn
from znatok.retrieve import Knowledge, read_knowledge

STANDARD = ("t0", "t1", "t2", "t3", "t4", "t5", "choices", "minimal_pairs")
ANSWER_TOKENS = 256  # of one answer at most


@dataclass(frozen=True)
class Examination:
    """Everything that is asked, and by what it is judged.

    Attributes:
        items: open questions, choices and pairs.
        lexicon: the words of the field.
        knowledge: passages for the arms that may look things up; without them those arms are left out.
        knowledge_sha256: of their file.
        prose: texts by a name, for bits per byte.
        sample: how answers are drawn; greedy.
        seed: of drawing, and of the statistics.
        fresh: ask everything again.
        taught: runs of words of the answers that were trained, see :mod:`znatok.exam.memory`.
    """

    items: Items
    lexicon: Lexicon
    knowledge: Knowledge | None
    knowledge_sha256: str | None
    prose: Mapping[str, Path]
    sample: SampleOptions
    seed: int
    fresh: bool = False
    taught: frozenset[tuple[str, ...]] = frozenset()

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Return the arms that can be asked."""
        return tuple(arm for arm in ARMS if self.knowledge is not None or not arm.informed)

    def open_to(self, arm: Arm) -> list[OpenItem]:
        """Return the open questions an arm is asked: those of training only where nothing is added to them."""
        return [item for item in self.items.open if item.split != MEMORISED or arm.bare]


def plan_examination(
    questions: Sequence[Path],
    lexicon: Path | None,
    knowledge: Path | None,
    data: Path,
    *,
    limit: int = 0,
    seed: int = 42,
    fresh: bool = False,
) -> Examination:
    """Choose what to ask: the files named, else the project's own beside its data set.

    Raises:
        DataError: a file can't be read, an item is bad, or there is nothing to ask.
    """
    own = next((folder for folder in _beside(data) if (folder / "t1.jsonl").is_file()), data.parent)
    standard = not questions and (own / "t1.jsonl").is_file()
    if not questions and not standard:
        raise DataError("{path} has no test items beside it: name some with --questions", path=data)
    files = [own / f"{name}.jsonl" for name in STANDARD] if standard else list(questions)
    items = read_items(files)
    _say_splits(items)
    words = _words_for(items, lexicon or lexicon_near(files[0]))
    facts = own.parent / "facts.jsonl"
    chosen = knowledge or (facts if standard and facts.is_file() else None)
    prose = {language: own / f"prose_{language}.txt" for language in ("ru", "en")} if standard else {}
    return Examination(
        items=items.limited(limit),
        lexicon=words,
        knowledge=read_knowledge(chosen, words) if chosen else None,
        knowledge_sha256=sha256(chosen) if chosen else None,
        prose={name: path for name, path in prose.items() if path.is_file()} if not limit else {},
        sample=SampleOptions(temperature=0.0, max_new_tokens=ANSWER_TOKENS),
        seed=seed,
        fresh=fresh,
        taught=runs(pair.response for pair in read_pairs(data, skip_bad=True).pairs) if data.is_file() else frozenset(),
    )


def _say_splits(items: Items) -> None:
    """Say which items were put into a split that they do not name, and which ones no claim will be made of."""
    for place, count in items.unnamed.items():
        say(
            _(
                '{place}: items without a "split": {count}; they count as {split}, trained facts in new words '
                '("split": "T2" for facts that were not trained)',
                place=place, count=count, split=UNNAMED,
            )
        )  # fmt: skip
    if others := sorted({item.split for item in items.all} - {*SPLITS}):
        warn(
            _(
                '"split" {found}: no claim is made of these items, they are in the tables only; expected {known}',
                found=quoted(others), known=", ".join(SPLITS),
            )
        )  # fmt: skip


def _words_for(items: Items, path: Path | None) -> Lexicon:
    """Return the lexicon of a file; without one, or where it names no language, that of most questions' language."""
    written = Counter(language_of(item.question) for item in items.all)
    language = written.most_common(1)[0][0]
    if path is None:
        say(
            _(
                "no lexicon.toml beside the questions, and no --lexicon: judged by the words of language {language}, "
                "which most questions are in; nothing is known of the field's own names and quantities",
                language=language,
            )
        )
    return load_lexicon(path, language)


def _beside(data: Path) -> tuple[Path, ...]:
    """Return where a data set's own test items may be: for ``data.jsonl`` and for ``data/expanded.jsonl``."""
    return data.parent / "data" / "eval", data.parent / "eval"
