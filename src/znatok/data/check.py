"""Everything worth knowing about a data file before training on it."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from znatok.data.clean import Duplicate, Finding, Leak, duplicates, leaks, other_script, suspicious
from znatok.data.load import read_pairs, scan
from znatok.data.schema import shown, shown_path
from znatok.errors import DataError, _

BAR = 40  # characters of the longest bar
BINS = 10
LISTED_LINES = 8


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of texts in characters; ``bins`` are (from, up to and without, how many)."""

    smallest: int
    median: float
    mean: float
    largest: int
    bins: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Report:
    """What :func:`check_file` found.

    Attributes:
        path: The file.
        sha256: The hash of its bytes.
        pairs: How many good records it has.
        problems: An error for each bad record.
        notes: Remarks of the reader, translated; also on the test file, whose bad records are left out.
        duplicates: Records that repeat an earlier one.
        findings: Odd characters.
        leaks: Records of the test file that this file gives away.
        other_script: Lines of answers in another script than most, and likely in another language.
        topics: Topics with their numbers of pairs, the largest first.
        prompts: Lengths of the questions; None where there are no good records.
        answers: Lengths of the answers; None where there are no good records.
    """

    path: Path
    sha256: str
    pairs: int
    problems: tuple[DataError, ...]
    notes: tuple[str, ...]
    duplicates: tuple[Duplicate, ...]
    findings: tuple[Finding, ...]
    leaks: tuple[Leak, ...]
    other_script: tuple[int, ...]
    topics: tuple[tuple[str, int], ...]
    prompts: Lengths | None
    answers: Lengths | None

    def to_json(self) -> dict[str, Any]:
        """Return the report as values that JSON can hold."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "pairs": self.pairs,
            "problems": [{"line": problem.fields.get("line"), "text": str(problem)} for problem in self.problems],
            "notes": list(self.notes),
            "duplicates": [asdict(duplicate) for duplicate in self.duplicates],
            "findings": [asdict(finding) for finding in self.findings],
            "leaks": [asdict(leak) for leak in self.leaks],
            "other_script": list(self.other_script),
            "topics": dict(self.topics),
            "prompts": asdict(self.prompts) if self.prompts else None,
            "answers": asdict(self.answers) if self.answers else None,
        }

    def lines(self) -> list[str]:
        """Return the report for people, line by line, with every problem and every duplicate."""
        lines = [
            _(
                "{path}: pairs {pairs}, bad records {bad}, duplicates {copies}, SHA-256 {sha256}",
                path=shown_path(self.path),
                pairs=self.pairs,
                bad=len(self.problems),
                copies=len(self.duplicates),
                sha256=self.sha256,
            ),
            *self.notes,
            *map(str, self.problems),
        ]
        lines += [_duplicate_line(duplicate) for duplicate in self.duplicates]
        lines += [_leak_line(leak) for leak in self.leaks]
        lines += _finding_lines(self.findings)
        lines += self._script_lines()
        if any(topic for topic, _count in self.topics):
            rows = [(topic if topic.isprintable() else shown(topic), count) for topic, count in self.topics]
            lines += [_("pairs by topic"), *_bars([(topic or "—", count) for topic, count in rows])]
        for title, lengths in ((_("questions"), self.prompts), (_("answers"), self.answers)):
            lines += _length_lines(title, lengths) if lengths else []
        return lines

    def _script_lines(self) -> list[str]:
        if not (count := len(self.other_script)):
            return []
        return [
            _(
                "answers in another script than most: {count} of {pairs}, {share:.0f} %; lines {lines}",
                count=count,
                pairs=self.pairs,
                share=100 * count / self.pairs,
                lines=_listed(self.other_script),
            )
        ]


def check_file(path: Path, *, against: Path | None = None) -> Report:
    """Read a data file and report on it.

    Args:
        path: The file.
        against: A test file; the report then says which of its records this file gives away.

    Raises:
        DataError: One of the files can't be read, or holds no records, or is not JSON Lines at all. Bad records of
            ``path`` are part of the report instead.
    """
    data = scan(path)
    test = read_pairs(against, skip_bad=True) if against else None
    said = (*test.notes, *map(str, test.problems)) if test else ()
    topics = Counter(pair.topic for pair in data.pairs)
    return Report(
        path=path,
        sha256=data.sha256,
        pairs=len(data.pairs),
        problems=data.problems,
        notes=(*data.notes, *said),
        duplicates=tuple(duplicates(data.pairs)),
        findings=tuple(suspicious(data.pairs)),
        leaks=tuple(leaks(data.pairs, test.pairs if test else ())),
        other_script=tuple(other_script(data.pairs)),
        topics=tuple(sorted(topics.items(), key=lambda item: (-item[1], item[0]))),
        prompts=_lengths([len(pair.prompt) for pair in data.pairs]),
        answers=_lengths([len(pair.response) for pair in data.pairs]),
    )


def _lengths(sizes: Sequence[int]) -> Lengths | None:
    if not sizes:
        return None
    low, high = min(sizes), max(sizes)
    width = _round_width((high - low) // BINS + 1)
    counts = Counter(size // width for size in sizes)
    bins = tuple((at * width, (at + 1) * width, counts[at]) for at in range(low // width, high // width + 1))
    return Lengths(low, median(sizes), fmean(sizes), high, bins)


def _round_width(least: int) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, 50… that is not under ``least``."""
    scale: int = 10 ** (len(str(least)) - 1)
    return next(step * scale for step in (1, 2, 5, 10) if step * scale >= least)


# Lines for people


def _duplicate_line(duplicate: Duplicate) -> str:
    return _(
        "lines {first} and {second}: {part}, similarity {similarity:.2f}",
        first=duplicate.first,
        second=duplicate.second,
        part=_part(duplicate.part),
        similarity=duplicate.similarity,
    )


def _leak_line(leak: Leak) -> str:
    return _(
        "line {test} of the test file is given away by line {train}: {part}, similarity {similarity:.2f}",
        test=leak.test,
        train=leak.train,
        part=", ".join((_part(leak.part), *map(shown, leak.fact_ids))),
        similarity=leak.similarity,
    )


def _part(part: str) -> str:
    names = {
        "both": _("same question and answer"),
        "prompt": _("same question"),
        "response": _("same answer"),
        "facts": _("same facts"),
    }
    return names[part]


def _finding_lines(findings: Sequence[Finding]) -> list[str]:
    names = {
        "decomposed": _("letters written as a letter and a mark (NFD)"),
        "no_break_space": _("no-break spaces"),
        "invisible": _("invisible characters"),
        "bidi": _("marks that change the direction of text"),
        "replacement": _("replacement characters, left by a broken conversion"),
        "private_use": _("private-use characters"),
        "mixed_script": _("words that mix look-alike Latin and Cyrillic letters"),
        "control_token": _("texts that look like control tokens (they are read as plain text)"),
    }
    kinds: defaultdict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        kinds[finding.kind].append(finding)
    return [
        _(
            "{what}: {count}; first {sample}; lines {lines}",
            what=names[kind],
            count=sum(finding.count for finding in found),
            sample=found[0].sample,
            lines=_listed(list(dict.fromkeys(finding.line for finding in found))),
        )
        for kind, found in kinds.items()
    ]


def _listed(lines: Sequence[int]) -> str:
    return ", ".join(map(str, lines[:LISTED_LINES])) + (", …" if len(lines) > LISTED_LINES else "")


def _length_lines(title: str, lengths: Lengths) -> list[str]:
    head = _(
        "{title}, characters: shortest {smallest}, median {median:.0f}, mean {mean:.0f}, longest {largest}",
        title=title,
        **{name: getattr(lengths, name) for name in ("smallest", "median", "mean", "largest")},
    )
    return [head, *_bars([(f"{low}-{high - 1}", count) for low, high, count in lengths.bins])]


def _bars(rows: Sequence[tuple[str, int]]) -> list[str]:
    wide, most = max(len(label) for label, _count in rows), max(count for _label, count in rows)
    digits = len(str(most))
    # a row that is not empty shows at least one mark
    return [f"  {label:>{wide}} {count:>{digits}} {'#' * -(-count * BAR // most)}".rstrip() for label, count in rows]
