"""A proof where others look for it: between two marks in a repository's READMEs, and in the adapter's model card.

The card holds every judged difference in ``model-index``, the form in which Hugging Face reads results, and the same
table as the README. Numbers are copied from ``eval/proof.json``, never computed again.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from znatok.errors import UsageError, _
from znatok.eval.labels import labels
from znatok.eval.publish import READMES, SHOWN_HASH, plain, put, renewed
from znatok.exam.proof import Claim, Proof
from znatok.exam.record import RECORDS
from znatok.exam.text import claims_table
from znatok.files import read_json, write_text
from znatok.logs import warn
from znatok.runs import slug, unused

MARKS = ("<!-- proof:start -->", "<!-- proof:end -->")
IMAGES = ("forest", "verdicts")
CARD = "README.md"
RESULTS = "results"
PROOF = "proof.json"


def publish_proof(run: Path, repo: Path) -> list[Path]:
    """Put a proof with its pictures and records into ``results/MODEL`` of a repository, and renew both READMEs.

    The READMEs show every model that stands in ``results``; with its records there, anybody can judge the answers
    again: ``znatok eval results/MODEL``.

    Args:
        run: a run directory, or a folder of records, after ``znatok eval``.
        repo: the repository; each README must have the two marks.

    Returns:
        The files written.

    Raises:
        UsageError: a file or a mark is missing.
    """
    made = run / "eval"
    proof, facts = read_proof(made / PROOF)
    folder = repo / RESULTS / slug(facts["runs"][0]["model_name"])
    names = [PROOF, *(f"{name}.{language}.png" for name in IMAGES for language in READMES.values())]
    for name in names:
        if not (made / name).is_file():
            raise UsageError("{path}: not found; run znatok eval on this run first", path=made / name)
    others = [path for path in sorted((repo / RESULTS).glob(f"*/{PROOF}")) if path.parent != folder]
    proofs = {path.parent.name: read_proof(path) for path in others} | {folder.name: (proof, facts)}
    texts = {}
    for readme, language in READMES.items():
        blocks = [block(*proofs[model], model, language) for model in sorted(proofs)]
        text = "\n\n".join([*blocks, labels(language)["proof.note"]])
        texts[repo / readme] = renewed(repo / readme, text, MARKS)
    copies = {made / name: folder / name for name in names}
    copies |= {path: folder / path.name for path in sorted((made / RECORDS).glob("*.jsonl"))}
    _set_aside({path for path in folder.glob("*.jsonl") if path not in copies.values()})
    return put(copies, texts)


def _set_aside(records: Collection[Path]) -> None:
    """Move records of an earlier proof out of the folder, whose records are judged together."""
    if records:
        folder = next(iter(records)).parent
        aside = unused(folder / "earlier")
        aside.mkdir()
        for path in records:
            path.rename(aside / path.name)
        names = ", ".join(sorted(path.name for path in records))
        warn(_("{path}: {names} of another proof now stand in {aside}", path=folder, names=names, aside=aside))


def read_proof(path: Path) -> tuple[Proof, dict[str, Any]]:
    """Return a proof and what it is of.

    Raises:
        UsageError: there is none.
    """
    if not path.is_file():
        raise UsageError("{path}: not found; run znatok eval on this run first", path=path)
    stored = read_json(path)
    return Proof.from_json(stored), stored["facts"]


def block(proof: Proof, facts: Mapping[str, Any], model: str, language: str) -> str:
    """Return what a README shows of a model: data and seeds, machine, the claims, the picture of the differences."""
    caption = labels(language)["image.forest"]
    return f"{stated(proof, facts, language)}\n\n![{caption}]({RESULTS}/{model}/{IMAGES[0]}.{language}.png)"


def stated(proof: Proof, facts: Mapping[str, Any], language: str) -> str:
    """Return the claims as a table, under a line that says which model, data, seeds and machine they are of."""
    words = labels(language)
    runs = facts["runs"]
    machine = "; ".join(
        ", ".join(f"{key} {value}" for key, value in one.items() if value is not None) for one in facts["machines"]
    )
    first = runs[0]
    line = words["publish.proof"].format(
        model=plain(first["model_name"]),
        sha256=str(first["base_sha256"])[:SHOWN_HASH],
        data=str(first["data_sha256"])[:SHOWN_HASH],
        seeds=", ".join(str(run["train_seed"]) for run in runs),
        dtype=plain(str(first["dtype"] or first["engine"])),
        machine=plain(machine),
    )
    return f"{line}\n\n{claims_table(proof, language)}"


def write_card(run: Path, proof: Proof, facts: Mapping[str, Any]) -> Path:
    """Write the model card of an adapter, ``README.md`` of its run; a card somebody wrote by hand is left alone.

    Args:
        run: the run directory.
        proof: what was shown.
        facts: models, data, seeds, machine.
    """
    path = run / CARD
    if path.is_file() and MARKS[0] not in path.read_text(encoding="utf-8"):
        return path
    own = next((one for one in facts["runs"] if one["run"] == run.name), facts["runs"][0])
    data = ModelCardData(
        library_name="peft",
        pipeline_tag="text-generation",
        language=["ru", "en"],
        tags=["lora", "znatok"],
        model_name=run.name,
        eval_results=results_of(proof, facts),
    )
    text = (
        f"---\n{data.to_yaml()}\n---\n\n# {plain(run.name)}\n\nA LoRA adapter for `{plain(own['model_name'])}` "
        f"(SHA-256 `{own['base_sha256']}`), trained by znatok on data with SHA-256 `{own['data_sha256']}`.\n\n"
        f"{MARKS[0]}\n{stated(proof, facts, 'en')}\n\n{labels('en')['proof.note']}\n{MARKS[1]}\n"
    )
    ModelCard(text)  # its own reader checks the header
    write_text(path, text)
    return path


def results_of(proof: Proof, facts: Mapping[str, Any]) -> list[EvalResult]:
    """Return the tuned arm's value of each claim, with its interval, the difference and the verdict."""
    tests = str(next(iter(facts["items_sha256"].values())))[:SHOWN_HASH]
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="znatok",
            dataset_name=f"znatok test items ({tests})",
            metric_type=claim.key.lower().replace(" ", "_") + ("_retrieval" if "retrieval" in claim.b else ""),
            metric_name=labels("en").get(f"proof.{claim.key}", claim.key) + f", {claim.b}",
            metric_value=round(claim.after.value, 4),
            metric_args=_details(claim),
        )
        for claim in proof.claims
        if claim.after.value is not None
    ]


def _details(claim: Claim) -> dict[str, Any]:
    def ends(interval: Any) -> list[float | None]:
        return [None if end is None else round(end, 4) for end in (interval.low, interval.high)]

    return {
        "n": claim.n,
        "interval_95": ends(claim.after),
        "compared_with": claim.a,
        "before": None if claim.before.value is None else round(claim.before.value, 4),
        "difference": None if claim.difference.value is None else round(claim.difference.value, 4),
        "difference_95": ends(claim.difference),
        "rule": claim.rule,
        "verdict": str(claim.verdict),
    }
