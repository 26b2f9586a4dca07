"""``znatok eval``: ask everything of every arm, score it by rules, and say what is shown.

Start reading at :func:`evaluate`: what models say becomes records (``exam.sitting``, ``exam.record``), and records are
judged without a model. So a published record can be judged again by anybody, in seconds.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from znatok.config import TrainConfig
from znatok.errors import UsageError, _
from znatok.eval import metrics
from znatok.eval.figures import training_loss
from znatok.eval.labels import interval
from znatok.exam.agreement import agreement, read_labels, write_sheet
from znatok.exam.arms import Store
from znatok.exam.claims import score
from znatok.exam.criteria import criteria
from znatok.exam.figures import forest, reliability, verdict_bars
from znatok.exam.items import Item, OpenItem
from znatok.exam.judge import Judge, judge_pairs, pairs_of
from znatok.exam.likelihood import weighed
from znatok.exam.memory import recited
from znatok.exam.plan import Examination, plan_examination
from znatok.exam.proof import Proof, prove
from znatok.exam.publish import write_card
from znatok.exam.record import BASE, RECORDS, About, Record, is_record, read_records, together, write_record
from znatok.exam.report import render_proof
from znatok.exam.sitting import hear
from znatok.exam.text import markdown
from znatok.files import sha256, write_json, write_jsonl, write_text
from znatok.lexicon import Lexicon
from znatok.logs import say, warn
from znatok.runs import Run, find, held


@dataclass(frozen=True)
class Result:
    """What was heard, judged.

    Attributes:
        records: what it was judged from, the base's first.
        rows: a row per arm, run and item; ``eval/items.jsonl``.
        texts: bits per byte of each window of prose, by voice, run and text.
        facts: what a reader must know to judge or repeat it.
    """

    records: list[Record]
    rows: list[dict[str, Any]]
    texts: list[dict[str, Any]]
    facts: dict[str, Any]


def evaluate(examined: Sequence[Run], what: Examination, dtype: str = "auto") -> Result:
    """Ask all arms and judge what they say; the tuned ones of every run, each a training seed of its own.

    Args:
        examined: adapters of one base, trained alike but for their seeds.
        what: the questions and the rules.
        dtype: number format of the base.
    """
    return judge_records(hear(examined, what, dtype), what)


def judge_records(records: Sequence[Record], what: Examination) -> Result:
    """Judge what was heard by the rules; no model is needed.

    Raises:
        UsageError: the records can't be compared.
        DataError: a record holds no answer to a question of this examination.
    """
    base, tuned = together(records)
    rows = [row for record in (base, *tuned) for row in rows_of(record, what)]
    said = hashlib.sha256("\x00".join(row["text"] for row in rows if "text" in row).encode()).hexdigest()
    facts = {
        "runs": [asdict(record.about) for record in tuned],
        "items_sha256": dict(what.items.sha256),
        "lexicon_sha256": sha256(what.lexicon.path) if what.lexicon.path else None,
        "knowledge_sha256": what.knowledge_sha256,
        "sampling": dict(base.about.sampling),
        "seed": what.seed,
        "answers_sha256": said,
        "machines": machines(record.about for record in (base, *tuned)),
    }
    return Result([base, *tuned], rows, [text for record in (base, *tuned) for text in record.texts()], facts)


def machines(asked: Iterable[About]) -> list[dict[str, Any]]:
    """Return the machines that computed, each once."""
    return [dict(pairs) for pairs in dict.fromkeys(tuple(about.machine.items()) for about in asked)]


def rows_of(record: Record, what: Examination) -> list[dict[str, Any]]:
    """Return a row for each item and arm of one voice."""
    voice, run = record.about.voice, record.about.run
    rows = []
    for arm in (arm for arm in what.arms if arm.voice == voice):
        for item in what.open_to(arm):
            line = record.of("open", arm.name, item)
            recital = {"recited": recited(str(line["text"]), what.taught)}
            rows.append(judged(item, line, arm.name, run, what.lexicon) | recital)
    for choice in what.items.choices:
        losses = list(record.of("choice", voice, choice)["losses"])
        values = asdict(weighed(choice, losses)) | {"losses": losses}
        shown = {"question": choice.question, "options": list(choice.options), "answer": choice.answer}
        rows.append({"kind": "choice", **_place(choice), "arm": voice, "run": run, **shown, **values})
    for pair in what.items.pairs:
        line = record.of("pair", voice, pair)
        values = {name: line[name] for name in ("margin", "margin_bare")}
        shown = {"question": pair.question, "true": pair.true, "false": pair.false}
        rows.append({"kind": "pair", **_place(pair), "arm": voice, "run": run, **shown, **values})
    return rows


def _place(item: Item) -> dict[str, str]:
    return {"id": item.id, "split": item.split, "cluster": item.cluster, "topic": item.topic}


def judged(item: OpenItem, answer: Mapping[str, Any], arm: str, run: str, lexicon: Lexicon) -> dict[str, Any]:
    """Return the row of one answer: the text and everything the rules make of it."""
    text = str(answer["text"])
    found = score(item, text, lexicon)
    return {
        "kind": "open",
        **_place(item),
        "type": item.type,
        "arm": arm,
        "run": run,
        "question": item.question,
        "reference": item.reference,
        "text": text,
        "tokens": answer["tokens"],
        "stop": answer["stop"],
        "verdict": str(found.verdict),
        "recall": found.recall,
        "precision": found.precision,
        "contradictions": found.contradictions,
        "hits": [str(hit) for hit in found.hits],
        "right": found.right,
        "wrong": found.wrong,
        "unverified": found.unverified,
        "forbidden": list(found.forbidden),
        "abstained": found.abstained,
        "words": metrics.word_count(text),
        "cjk": metrics.has_cjk(text),
        "mixed_script": len(metrics.mixed_script_words(text)),
        "repetition": round(metrics.repetition(text), 4),
        "names_field": bool(lexicon.entities_of(text)),
        **criteria(item, text, found, lexicon),
    }


@dataclass(frozen=True)
class Sources:
    """What is examined: runs, whose models are asked, and records of what others said before.

    Attributes:
        runs: run directories.
        records: of voices that need not be asked again.
        folder: where everything is written.
    """

    runs: tuple[Run, ...]
    records: tuple[Record, ...]
    folder: Path

    @property
    def data_path(self) -> Path:
        """Return the data that was trained on; the test items are looked for beside it."""
        if self.runs and self.runs[0].options.is_file():
            return Path(TrainConfig.from_toml(self.runs[0].options).data.data_path)
        named = [record.about.data_path for record in self.records if record.about.data_path]
        return Path(named[0] if named else TrainConfig().data.data_path)


def find_sources(names: Sequence[str | None]) -> Sources:
    """Return the runs and records of these names; None is the newest run.

    Raises:
        ModelError: there is no such run.
        DataError: a record can't be read.
    """
    runs: list[Run] = []
    records: list[Record] = []
    folders: list[Path] = []
    for name in names:
        path = Path(name or "")
        if name and is_record(path):
            records += read_records(path)
            folders.append(path if path.is_dir() else path.parent)
        else:
            runs.append(find(name))
    first = runs[0].path if runs else folders[0]
    return Sources(tuple(runs), tuple(records), first / "eval")


def examine(sources: Sources, args: Any) -> Proof:
    """Do what ``znatok eval`` is asked to, and write it down.

    Args:
        sources: adapters of one base, or what they said before.
        args: the verb's flags: questions, lexicon, knowledge, limit, test_seed, fresh, dtype, blind, labels, judge,
            judge_model, judge_items.
    """
    what = plan_examination(
        args.questions,
        args.lexicon,
        args.knowledge,
        sources.data_path,
        limit=args.limit,
        seed=args.test_seed,
        fresh=args.fresh,
    )
    if changed := changed_since(sources.records, what):
        warn(
            _(
                "{files}: changed since these answers were recorded; they are judged by the present keys",
                files=", ".join(changed),
            )
        )
    with held(sources.runs[0]) if sources.runs else nullcontext():
        known = any(record.about.voice == BASE for record in sources.records)
        heard = hear(sources.runs, what, args.dtype, base=not known)
        result = judge_records([*heard, *sources.records], what)
        proof = prove(result.rows, result.texts, what.seed)
        write_proof(sources.folder, result, proof)
        for run in sources.runs:
            write_card(run.path, proof, result.facts)
        if args.labels:
            found = agreement(result.rows, read_labels(args.labels), what.seed)
            write_json(sources.folder / "agreement.json", asdict(found))
            shown = f"{found.same:.2f}, kappa {interval(found.kappa, 2, 'en')}"
            say(_("the rules and the person agree: {shown}, n = {n}", shown=shown, n=found.n))
        if args.judge:
            ask_judge(sources.folder, result, args, what.seed)
        if args.blind:
            write_sheet(result.rows, args.blind, what.seed)
            say(_("{path}: write correct, partial, incorrect or not attempted beside each answer", path=args.blind))
    return proof


def changed_since(records: Iterable[Record], what: Examination) -> list[str]:
    """Return which files of questions are not what they were when a record was made, as far as it says so."""
    now = what.items.sha256
    known = [record.about.items_sha256 or {} for record in records]
    return sorted({name for then in known for name in now.keys() & then.keys() if now[name] != then[name]})


def ask_judge(folder: Path, result: Result, args: Any, seed: int) -> None:
    """Have base and tuned compared by another model; ``judge.json``."""
    if args.judge_model in {name for about in result.facts["runs"] for name in (about["model_name"], about["run"])}:
        raise UsageError("--judge_model {name}: a model is no judge of itself; name another", name=args.judge_model)
    judge = Judge(args.judge, args.judge_model, Store(folder / "judged.jsonl"))
    opinions = judge_pairs(pairs_of(result.rows, args.judge_items, seed), judge.verdict)
    write_json(
        folder / "judge.json",
        {
            "model": judge.model,
            "date": datetime.now(UTC).date().isoformat(),
            "opinions": [asdict(one) for one in opinions],
        },
    )
    for one in opinions:
        say(
            _(
                "judge, {criterion}: tuned {tuned}, base {base}, ties {ties}; p {p}, kappa with the rules {kappa}",
                criterion=one.criterion,
                tuned=one.tuned,
                base=one.base,
                ties=one.ties,
                p=round(one.p, 4),
                kappa=round(one.kappa, 2),
            )
        )


def write_proof(folder: Path, result: Result, proof: Proof) -> None:
    """Write everything a reader may ask for: records, each item, each number, pictures, the report in both languages.

    Args:
        folder: ``eval/`` of a run, or of a folder of records.
        result: what was heard and how it was judged.
        proof: what it shows.
    """
    for record in result.records:
        write_record(record, folder / RECORDS / record.file_name)
    write_jsonl(folder / "items.jsonl", result.rows)
    write_json(folder / "proof.json", {"facts": result.facts, **proof.to_json()})
    for language in ("en", "ru"):
        images = {name: folder / f"{name}.{language}.png" for name in ("forest", "verdicts", "reliability")}
        forest(proof, images["forest"], language)
        verdict_bars(proof, images["verdicts"], language)
        if any(row["kind"] == "choice" for row in result.rows):
            reliability(result.rows, images["reliability"], language)
        for number, record in enumerate(record for record in result.records if record.losses()):
            curve = images.setdefault(f"loss: {record.about.run}", folder / f"loss-{number + 1}.{language}.png")
            training_loss(record.losses(), curve, language)
        shown = {name: path for name, path in images.items() if path.is_file()}
        write_text(folder / f"proof.{language}.md", markdown(proof, language))
        page = render_proof(proof, result.rows, result.texts, result.facts, shown, language)
        write_text(folder / f"report.{language}.html", page)
