"""Base and tuned, asked the same with the same seed, from one loaded model.

The engine the user chose answers; held-out losses always come from torch, which alone gives them.

Writes ``compare/answers.jsonl``, ``compare/summary.json``, ``report.html``, three pictures and the two text files the
project grew from. Every number in the table carries its interval and its n.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from znatok.config import SampleOptions, TrainConfig
from znatok.data.load import read_pairs
from znatok.data.questions import Question, read_questions
from znatok.data.schema import Pair, shown_path
from znatok.data.split import split
from znatok.errors import DataError, _, own_language
from znatok.eval.figures import comparison_table, dataset_example, training_loss
from znatok.eval.records import Answer as AnswerRow
from znatok.eval.report import render_report
from znatok.eval.summary import Summary, summarise
from znatok.eval.texts import FILES, answers_text
from znatok.expert import Expert, Voice
from znatok.files import read_jsonl, sha256, write_json, write_jsonl, write_text
from znatok.generate.engine import Answer, Request
from znatok.logs import say, warn
from znatok.model.machine import machine
from znatok.model.score import answer_losses
from znatok.runs import Run, metrics_rows
from znatok.tokens.chat import dialogue
from znatok.tokens.encode import EncodeRule, encode_pairs

SEED_QUESTIONS = Path("data/eval/questions.txt")
HELDOUT = Path("data/eval/heldout.jsonl")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is asked and how.

    Attributes:
        questions: asked both sampled and greedy.
        heldout: pairs that were not trained; their loss is measured.
        heldout_name: the file they come from.
        heldout_asked: how many of them are also asked, greedily.
        sample: options of the sampled answers.
        seed: of every answer.
    """

    questions: tuple[Question, ...]
    heldout: tuple[Pair, ...]
    heldout_name: str
    heldout_asked: int
    sample: SampleOptions
    seed: int


def plan_comparison(
    run: Run, questions: Path | None, heldout: Path | None, *, asked: int, sample: SampleOptions, seed: int
) -> Comparison:
    """Choose what to ask: the files named, else the project's own, else the run's validation pairs.

    Raises:
        DataError: a file can't be read or is not the one of the training any more, or no held-out pair is to be had.
    """
    trained = TrainConfig.from_toml(run.options) if run.options.is_file() else TrainConfig()
    data = Path(trained.data.data_path)
    listed = questions or _beside(data, SEED_QUESTIONS)
    held = heldout or _beside(data, HELDOUT)
    if held is not None:
        pairs, name = read_pairs(held).pairs, held.name
    else:
        pairs, name = validated(run, trained), "validation"
    if not pairs:
        raise DataError("no held-out pairs: name a file of pairs that were not trained with --heldout")
    return Comparison(
        questions=read_questions(listed) if listed is not None else (),
        heldout=pairs,
        heldout_name=name,
        heldout_asked=asked,
        sample=sample,
        seed=seed,
    )


def validated(run: Run, trained: TrainConfig) -> tuple[Pair, ...]:
    """Return the pairs that a run was validated on: its own file of them, or the share that was split off.

    Raises:
        DataError: the file can't be read, or holds other pairs now, of which some may have been trained.
    """
    own = trained.data.val_path
    path = Path(own or trained.data.data_path)
    found = read_pairs(path, skip_bad=trained.data.skip_bad)
    then = run.read_manifest().get("validation" if own else "data") or {}
    if then.get("sha256", found.sha256) != found.sha256:
        raise DataError(
            "{path}: it has changed since the training, so what was held out is not known any more; name a file of"
            " pairs that were not trained with --heldout",
            path=shown_path(path),
        )
    return found.pairs if own else split(found.pairs, trained.data.val_share, trained.train.seed).validation


def _beside(data: Path, name: Path) -> Path | None:
    """Return the project's own file for its own data set: other data are asked other questions."""
    path = data.parent / name
    return path if data.name == "data.jsonl" and path.is_file() else None


def compare(expert: Expert, run: Run, what: Comparison) -> Summary:
    """Ask, measure, and write everything into the run directory."""
    started = time.perf_counter()
    losses = {voice: heldout_losses(expert, voice, what) for voice in expert.voices}
    rows: list[dict[str, Any]] = []
    for voice in expert.voices:
        rows += ask_all(expert, voice, what)
    write_jsonl(run.compare / "answers.jsonl", rows)
    answers: list[AnswerRow] = read_jsonl(run.compare / "answers.jsonl")  # type: ignore[assignment]  # rows just written
    summary = summarise(answers, {str(voice): found for voice, found in losses.items()}, seed=what.seed)
    facts = report_facts(run, expert, what) | {"compare_seconds": round(time.perf_counter() - started, 1)}
    write_json(run.compare / "summary.json", {"run": facts, **summary.to_json()})
    write_artefacts(run, summary, answers, facts)
    return summary


def heldout_losses(expert: Expert, voice: Voice, what: Comparison) -> list[tuple[str, float, int]]:
    """Return (id, summed loss in nats, answer tokens) of every held-out pair."""
    rule = EncodeRule(expert.system, max_length=2048)
    encoded = encode_pairs(what.heldout, expert.chat, rule)
    with expert.weights(voice) as model:
        found = answer_losses(model, encoded.examples)
    mean = sum(total for total, _n in found) / sum(n for _t, n in found)
    say(_("{voice}: held-out loss {loss:.4f} over {n} pairs", voice=voice, loss=mean, n=len(found)))
    return [(f"heldout-{pair.line}", *loss) for pair, loss in zip(what.heldout, found, strict=True)]


def ask_all(expert: Expert, voice: Voice, what: Comparison) -> list[dict[str, Any]]:
    """Ask one voice everything; return rows of ``answers.jsonl``."""
    greedy = replace(what.sample, temperature=0.0)
    asked = [Question(f"heldout-{p.line}", p.prompt, p.response) for p in what.heldout[: what.heldout_asked]]
    jobs: list[tuple[str, Question, str, SampleOptions]] = []
    for question in what.questions:
        jobs += [("seed", question, "sampled", what.sample), ("seed", question, "greedy", greedy)]
    jobs += [("heldout", question, "greedy", greedy) for question in asked]
    requests = [
        Request(tuple(dialogue(question.text, expert.system)), sample, what.seed) for _set, question, _m, sample in jobs
    ]
    with expert.speaking(voice) as engine:
        answers = engine.answers(requests, done=_progress(voice, len(requests)))
    return [
        _row(set_name, question, mode, voice, answer, what.seed)
        for (set_name, question, mode, _sample), answer in zip(jobs, answers, strict=True)
    ]


def _progress(voice: Voice, total: int) -> Any:
    ended = 0

    def report(_index: int, answer: Answer) -> None:
        nonlocal ended
        ended += 1
        say(
            _(
                "{voice}: {n}/{total} answers, {seconds:.0f} s",
                voice=voice,
                n=ended,
                total=total,
                seconds=answer.seconds,
            )
        )

    return report


def _row(set_name: str, question: Question, mode: str, voice: Voice, answer: Answer, seed: int) -> dict[str, Any]:
    return {
        "id": question.id,
        "set": set_name,
        "question": question.text,
        "reference": question.reference,
        "mode": mode,
        "arm": str(voice),
        "text": answer.text,
        "tokens": answer.tokens,
        "stop": str(answer.stop),
        "seconds": round(answer.seconds, 2),
        "seed": seed,
    }


def report_facts(run: Run, expert: Expert, what: Comparison) -> dict[str, Any]:
    """Return what a reader must know to judge or repeat the comparison."""
    manifest = run.read_manifest()
    result = manifest.get("result") or {}
    return {
        "model_name": expert.base_name,
        "base_sha256": expert.base_sha256,
        "adapter_sha256": sha256(run.path / "adapter_model.safetensors"),
        "command": manifest.get("command"),
        "data_path": manifest.get("data", {}).get("path"),
        "data_sha256": manifest.get("data", {}).get("sha256"),
        "pairs": manifest.get("data", {}).get("pairs"),
        "heldout": what.heldout_name,
        "seed": what.seed,
        "sampling": what.sample.described(),
        "engine": expert.engine,
        "dtype": expert.loaded.format,
        "lora": manifest.get("lora"),
        "options": manifest.get("options"),
        "plan": manifest.get("plan"),
        "result": result,
        "machine": machine(),
        "versions": manifest.get("versions"),
        "created": manifest.get("started"),
        "seconds": result.get("wall_seconds"),
    }


def write_artefacts(run: Run, summary: Summary, answers: Sequence[AnswerRow], facts: dict[str, Any]) -> None:
    """Draw the pictures and write the report in the language of the messages, and the two text files in Russian."""
    language = own_language()
    run.images.mkdir(exist_ok=True)
    images = {name: run.images / f"{name}.png" for name in ("training_loss", "comparison_table", "dataset_example")}
    for path in images.values():
        path.unlink(missing_ok=True)  # none of an earlier comparison stays among those of this one
    steps = metrics_rows(run.metrics)
    if steps:  # an adapter that znatok did not train has no curve
        training_loss(steps, images["training_loss"], language)
    if answers:  # with --asked 0 and no questions only losses are measured
        comparison_table(answers, images["comparison_table"], language)
    data = Path(str(facts.get("data_path") or "data.jsonl"))
    if shown := _first_pairs(data):
        dataset_example([asdict(pair) for pair in shown], images["dataset_example"], language, name=data.name)
    present = {name: path for name, path in images.items() if path.is_file()}
    extra: Any = facts  # keys of our own are kept
    html = render_report(summary, answers, extra, steps, present, language)
    write_text(run.path / "report.html", html)
    for voice, name in FILES.items():
        write_text(run.compare / name, answers_text(answers, voice, facts))  # type: ignore[arg-type]


def _first_pairs(data: Path) -> tuple[Pair, ...]:
    """Return what a picture of the data shows; data that can't be read any more are no reason to lose the report."""
    try:
        return read_pairs(data, skip_bad=True).pairs[:3] if data.is_file() else ()
    except DataError as error:
        warn(str(error))
        return ()
