"""``znatok eval``: ask everything of every arm, score it by rules, and say what is shown.

Start reading at :func:`evaluate`. Whatever was measured before for the same weights and the same question is taken from
the store, so a run cut short goes on where it stopped, and the base is asked once however many adapters it has.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from znatok.config import EngineOptions, ModelOptions, SampleOptions, TrainConfig
from znatok.data.load import read_pairs
from znatok.errors import DataError, UsageError, _
from znatok.eval import metrics
from znatok.eval.figures import training_loss
from znatok.eval.labels import interval
from znatok.exam.agreement import agreement, read_labels, write_sheet
from znatok.exam.arms import ARMS, Arm, Store, ask, fingerprint, identity, request
from znatok.exam.claims import score
from znatok.exam.criteria import criteria
from znatok.exam.figures import forest, reliability, verdict_bars
from znatok.exam.items import Items, OpenItem, read_items
from znatok.exam.judge import Judge, judge_pairs, pairs_of
from znatok.exam.likelihood import bits_per_byte, choose, prefer
from znatok.exam.memory import recited, runs
from znatok.exam.proof import MEMORISED, Proof, prove
from znatok.exam.publish import write_card
from znatok.exam.report import render_proof
from znatok.exam.text import markdown
from znatok.expert import Expert, Voice, open_expert
from znatok.files import cache_home, read_jsonl, sha256, write_json, write_jsonl, write_text
from znatok.lexicon import Lexicon, lexicon_near, load_lexicon
from znatok.logs import say
from znatok.model.machine import machine
from znatok.retrieve import Knowledge, read_knowledge
from znatok.runs import Run, held

STANDARD = ("t0", "t1", "t2", "t3", "t4", "t5", "choices", "minimal_pairs")
ANSWER_TOKENS = 256  # of one answer at most


@dataclass(frozen=True)
class Examination:
    """Everything that is asked, and by what it is judged.

    Attributes:
        items: open questions, choices and pairs.
        lexicon: the words of the field.
        knowledge: passages for the arms that may look things up; without them those arms are left out.
        prose: texts by a name, for bits per byte.
        sample: how answers are drawn; greedy.
        seed: of drawing, and of the statistics.
        fresh: ask everything again.
        taught: runs of words of the answers that were trained, see :mod:`znatok.exam.memory`.
    """

    items: Items
    lexicon: Lexicon
    knowledge: Knowledge | None
    prose: Mapping[str, Path]
    sample: SampleOptions
    seed: int
    fresh: bool = False
    taught: frozenset[tuple[str, ...]] = frozenset()

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Return the arms that can be asked."""
        return tuple(arm for arm in ARMS if self.knowledge is not None or not arm.informed)


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
    words = load_lexicon(lexicon or lexicon_near(files[0]))
    facts = own.parent / "facts.jsonl"
    chosen = knowledge or (facts if standard and facts.is_file() else None)
    prose = {language: own / f"prose_{language}.txt" for language in ("ru", "en")} if standard else {}
    return Examination(
        items=read_items(files).limited(limit),
        lexicon=words,
        knowledge=read_knowledge(chosen, words) if chosen else None,
        prose={name: path for name, path in prose.items() if path.is_file()} if not limit else {},
        sample=SampleOptions(temperature=0.0, max_new_tokens=ANSWER_TOKENS),
        seed=seed,
        fresh=fresh,
        taught=runs(pair.response for pair in read_pairs(data, skip_bad=True).pairs) if data.is_file() else frozenset(),
    )


def _beside(data: Path) -> tuple[Path, ...]:
    """Return where a data set's own test items may be: for ``data.jsonl`` and for ``data/expanded.jsonl``."""
    return data.parent / "data" / "eval", data.parent / "eval"


@dataclass(frozen=True)
class Result:
    """What was measured.

    Attributes:
        rows: a row per arm, run and item; ``eval/items.jsonl``.
        texts: bits per byte of each window of prose, by voice, run and text.
        facts: what a reader must know to judge or repeat it.
    """

    rows: list[dict[str, Any]]
    texts: list[dict[str, Any]]
    facts: dict[str, Any]


def evaluate(examined: Sequence[Run], what: Examination, dtype: str = "auto") -> Result:
    """Ask all arms; the tuned ones of every run, each a training seed of its own.

    Args:
        examined: adapters of one base, trained alike but for their seeds.
        what: the questions and the rules.
        dtype: number format of the base.
    """
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    texts: list[dict[str, Any]] = []
    about: list[dict[str, Any]] = []
    for number, run in enumerate(examined):
        expert = open_expert(ModelOptions(model_name="", dtype=dtype), run, "", EngineOptions().engine, many=True)
        adapter = sha256(run.path / "adapter_model.safetensors")
        about.append(_about(run, expert, adapter))
        for voice in expert.voices:
            if voice is Voice.BASE and number:
                continue  # the base is the same for all
            name = run.path.name if voice is Voice.TUNED else ""
            who = identity(expert, voice, adapter)
            sitting = Sitting(expert, voice, name, what, _store(what, run, expert, voice), who)
            rows += [*sitting.answers(), *sitting.choices(), *sitting.pairs()]
            texts += sitting.prose()
    said = hashlib.sha256("\x00".join(row["text"] for row in rows if "text" in row).encode()).hexdigest()
    facts = {
        "runs": about,
        "items_sha256": dict(what.items.sha256),
        "lexicon_sha256": sha256(what.lexicon.path) if what.lexicon.path else None,
        "sampling": asdict(what.sample),
        "seed": what.seed,
        "answers_sha256": said,
        "machine": machine(),
        "seconds": round(time.perf_counter() - started, 1),
    }
    return Result(rows, texts, facts)


def _about(run: Run, expert: Expert, adapter: str) -> dict[str, Any]:
    manifest = run.read_manifest()
    return {
        "run": run.path.name,
        "model_name": expert.base_name,
        "base_sha256": expert.base_sha256,
        "adapter_sha256": adapter,
        "engine": expert.engine,
        "dtype": expert.loaded.format if expert.engine == "torch" else None,
        "train_seed": manifest.get("seed"),
        "data_sha256": manifest.get("data", {}).get("sha256"),
        "options": manifest.get("options"),
    }


def _store(what: Examination, run: Run, expert: Expert, voice: Voice) -> Store:
    """Return where results are kept: a tuned model's in its run, the base's for all its runs."""
    path = run.path / "eval" / "measured.jsonl"
    if voice is Voice.BASE:
        path = cache_home() / "measured" / f"{expert.base_sha256[:32]}.jsonl"
    return Store(None if what.fresh else path)


@dataclass(frozen=True)
class Sitting:
    """One voice of one run before all questions; every method returns rows.

    Attributes:
        expert: the loaded model.
        voice: base or tuned.
        run: the name of the run for the tuned voice, empty for the base.
        what: the questions and the rules.
        store: what was measured before.
        who: what identifies the weights and what computes them.
    """

    expert: Expert
    voice: Voice
    run: str
    what: Examination
    store: Store
    who: tuple[Any, ...]

    def answers(self) -> list[dict[str, Any]]:
        """Ask the open questions in every arm of this voice, and judge the answers."""
        rows = []
        what = self.what
        for arm in (arm for arm in what.arms if arm.voice is self.voice):
            items = [item for item in what.items.open if item.split != MEMORISED or arm.bare]
            requests = [
                request(arm, item.question, self.expert.system, what.lexicon, what.knowledge, what.sample, what.seed)
                for item in items
            ]
            done = self._progress(arm.name, len(requests))
            answers = ask(self.expert, self.voice, requests, self.who, self.store, done)
            rows += [
                judged(item, answer, arm.name, self.run, what.lexicon)
                | {"recited": recited(str(answer["text"]), what.taught)}
                for item, answer in zip(items, answers, strict=True)
            ]
        return rows

    def choices(self) -> list[dict[str, Any]]:
        """Weigh the options of the choices."""
        items = self.what.items.choices
        done = self._progress("choices", len(items))
        return self._weighed(
            "choice", items, lambda model: choose(model, self.expert.chat, self.expert.system, items, done)
        )

    def pairs(self) -> list[dict[str, Any]]:
        """Weigh the true and the false statements."""
        items = self.what.items.pairs
        done = self._progress("pairs", len(items))
        return self._weighed(
            "pair", items, lambda model: prefer(model, self.expert.chat, self.expert.system, items, done)
        )

    def prose(self) -> list[dict[str, Any]]:
        """Read the texts."""
        rows = []
        for name, path in self.what.prose.items():
            key = fingerprint(self.who, "prose", sha256(path))
            if key not in self.store.known:
                with self.expert.weights(self.voice) as model:
                    self.store.put(key, bits_per_byte(model, self.expert.chat, path))
                say(_("{what}: read", what=f"{path.name}, {self.run or self.voice}"))
            rows.append({"text": name, "arm": str(self.voice), "run": self.run, "windows": self.store.known[key]})
        return rows

    def _weighed(
        self, kind: str, items: Sequence[Any], measure: Callable[[Any], Sequence[Any]]
    ) -> list[dict[str, Any]]:
        key = fingerprint(self.who, kind, self.expert.system, [asdict(item) for item in items])
        if key not in self.store.known:
            with self.expert.weights(self.voice) as model:
                self.store.put(key, [asdict(one) for one in measure(model)])
        return [
            {"kind": kind, "id": item.id, "split": item.split, "cluster": item.cluster, "topic": item.topic}
            | {"arm": str(self.voice), "run": self.run, **values}
            for item, values in zip(items, self.store.known[key], strict=True)
        ]

    def _progress(self, name: str, total: int) -> Callable[[int], None]:
        shown = time.monotonic()

        def done(count: int) -> None:
            nonlocal shown
            if count == total or time.monotonic() - shown > 10:
                shown = time.monotonic()
                say(f"{name}, {self.run or self.voice}: {count}/{total}")

        return done


def judged(item: OpenItem, answer: Mapping[str, Any], arm: str, run: str, lexicon: Lexicon) -> dict[str, Any]:
    """Return the row of one answer: the text and everything the rules make of it."""
    text = str(answer["text"])
    found = score(item, text, lexicon)
    return {
        "kind": "open",
        "id": item.id,
        "split": item.split,
        "cluster": item.cluster,
        "topic": item.topic,
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


def examine(examined: Sequence[Run], args: Any) -> Proof:
    """Do what ``znatok eval`` is asked to, and write ``eval/`` of the first run.

    Args:
        examined: adapters of one base.
        args: the verb's flags: questions, lexicon, knowledge, limit, test_seed, fresh, dtype, blind, labels, judge,
            judge_model, judge_items.
    """
    options = TrainConfig.from_toml(examined[0].options) if examined[0].options.is_file() else TrainConfig()
    what = plan_examination(
        args.questions,
        args.lexicon,
        args.knowledge,
        Path(options.data.data_path),
        limit=args.limit,
        seed=args.test_seed,
        fresh=args.fresh,
    )
    with held(examined[0]):
        result = evaluate(examined, what, args.dtype)
        proof = prove(result.rows, result.texts, what.seed)
        write_proof(examined, result, proof)
        if args.labels:
            found = agreement(result.rows, read_labels(args.labels), what.seed)
            write_json(examined[0].path / "eval" / "agreement.json", asdict(found))
            shown = f"{found.same:.2f}, kappa {interval(found.kappa, 2, 'en')}"
            say(_("the rules and the person agree: {shown}, n = {n}", shown=shown, n=found.n))
        if args.judge:
            ask_judge(examined[0], result, args, what.seed)
        if args.blind:
            write_sheet(result.rows, args.blind, what.seed)
            say(_("{path}: write correct, partial, incorrect or not attempted beside each answer", path=args.blind))
    return proof


def ask_judge(run: Run, result: Result, args: Any, seed: int) -> None:
    """Have base and tuned compared by another model; ``eval/judge.json``."""
    if args.judge_model in {name for about in result.facts["runs"] for name in (about["model_name"], about["run"])}:
        raise UsageError("--judge_model {name}: a model is no judge of itself; name another", name=args.judge_model)
    judge = Judge(args.judge, args.judge_model, Store(run.path / "eval" / "judged.jsonl"))
    opinions = judge_pairs(pairs_of(result.rows, args.judge_items, seed), judge.verdict)
    write_json(
        run.path / "eval" / "judge.json",
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


def write_proof(examined: Sequence[Run], result: Result, proof: Proof) -> None:
    """Write everything a reader may ask for: each item, each number, pictures, the report in both languages.

    Args:
        examined: the runs; everything goes to ``eval/`` of the first.
        result: what was measured.
        proof: what it shows.
    """
    folder = examined[0].path / "eval"
    write_jsonl(folder / "items.jsonl", result.rows)
    write_json(folder / "proof.json", {"facts": result.facts, **proof.to_json()})
    for language in ("en", "ru"):
        images = {name: folder / f"{name}.{language}.png" for name in ("forest", "verdicts", "reliability")}
        forest(proof, images["forest"], language)
        verdict_bars(proof, images["verdicts"], language)
        if any(row["kind"] == "choice" for row in result.rows):
            reliability(result.rows, images["reliability"], language)
        for number, run in enumerate(run for run in examined if run.metrics.is_file()):
            curve = images.setdefault(f"loss: {run.path.name}", folder / f"loss-{number + 1}.{language}.png")
            training_loss(read_jsonl(run.metrics), curve, language)
        shown = {name: path for name, path in images.items() if path.is_file()}
        write_text(folder / f"proof.{language}.md", markdown(proof, language))
        write_text(folder / f"report.{language}.html", render_proof(proof, result.rows, result.facts, shown, language))
    for run in examined:
        write_card(run.path, proof, result.facts)
