"""Put a run's pictures, answers and measured table into a repository, between two marks in its READMEs."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from znatok.errors import UsageError
from znatok.eval.labels import labels
from znatok.eval.records import Manifest, portable, run_facts, visible
from znatok.eval.summary import Summary
from znatok.eval.texts import FILES
from znatok.files import read_json, replacing, write_text

START, END = "<!-- results:start -->", "<!-- results:end -->"
IMAGES = ("training_loss.png", "comparison_table.png", "dataset_example.png")
READMES = {"README.md": "en", "README.ru.md": "ru"}
SHOWN_HASH = 16  # hexadecimal digits; the whole hash is in the report


def publish(run: Path, repo: Path) -> list[Path]:
    """Copy what a run made into a repository and renew the results in its READMEs.

    Everything is checked before the first file is written; each file is replaced whole or not at all.

    Args:
        run: a run directory after ``znatok compare``: ``images/``, the two text files, and ``compare/summary.json``,
            which holds what is known of the run under "run" beside :meth:`Summary.to_json`.
        repo: the repository; each README must have the two marks.

    Returns:
        The files written.

    Raises:
        UsageError: a file or a mark is missing.
    """
    copies = {run / "images" / name: repo / "images" / name for name in IMAGES}
    copies |= {run / "compare" / name: repo / name for name in FILES.values()}
    found = run / "compare" / "summary.json"
    for path in (found, *copies):
        if not path.is_file():
            raise UsageError("{path}: not found; run znatok compare on this run first", path=path)
    stored = read_json(found)
    summary, manifest = Summary.from_json(stored), cast("Manifest", stored.get("run", {}))
    texts = {
        repo / name: renewed(repo / name, results_block(summary, manifest, language))
        for name, language in READMES.items()
    }
    return put(copies, texts)


def put(copies: Mapping[Path, Path], texts: Mapping[Path, str]) -> list[Path]:
    """Copy files to their targets and write texts, each whole or not at all; return what was written."""
    for source, target in copies.items():
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)
    for path, text in texts.items():
        write_text(path, text)
    return [*copies.values(), *texts]


def results_block(summary: Summary, manifest: Manifest, language: str) -> str:
    """Return what stands between the marks: what was run on what, the table, how to make it again."""
    words = labels(language)
    facts = {fact.key: plain(fact.value) for fact in run_facts(manifest, language)}
    model = f"**{words['publish.model']}**: `{facts.get('model_name', '?')}`"
    if "base_sha256" in facts:
        model += f" (SHA-256 `{facts['base_sha256'][:SHOWN_HASH]}…`)"
    parts = [model]
    if "seed" in facts:
        parts.append(words["publish.seed"].format(seed=facts["seed"]))
    parts.append(words["publish.n"].format(n=summary.questions))
    if "machine" in facts:
        parts.append(f"{words['fact.machine'].lower()}: {facts['machine']}")
    commands = [facts["command"]] if "command" in facts else []
    made = ", ".join(f"`{command}`" for command in [*commands, "znatok compare"])
    line = words["publish.made"].format(commands=made)
    return f"{'; '.join(parts)}.\n\n{summary.markdown(language)}\n{line}"


def renewed(path: Path, block: str, marks: tuple[str, str] = (START, END)) -> str:
    """Return a README with the text between two marks replaced.

    Raises:
        UsageError: the file or a mark is missing.
    """
    start, end = marks
    if not path.is_file():
        raise UsageError("{path}: not found; a repository needs both README.md and README.ru.md", path=path)
    text = path.read_text(encoding="utf-8")
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise UsageError(
            "{path}: needs one line {start} and one line {end} after it; add them where the results belong",
            path=path, start=start, end=end,
        )  # fmt: skip
    before, rest = text.split(start)
    return f"{before}{start}\n{block}\n{end}{rest.split(end)[1]}"


def plain(text: str) -> str:
    """Make a value from a manifest harmless in Markdown: one line, no code marks, cells, tags or absolute paths."""
    return re.sub(r"\s+", " ", re.sub(r"[`|<>]", "", portable(visible(text)))).strip()
