"""One voice of one run before all questions; what it says becomes a record.

Whatever was measured before for the same weights and the same question is taken from the store, so an examination cut
short goes on where it stopped, and the base is asked once however many adapters it has.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from znatok.config import EngineOptions, ModelOptions
from znatok.errors import _
from znatok.exam.arms import Arm, Store, ask, fingerprint, identity
from znatok.exam.likelihood import choose, prefer
from znatok.exam.plan import Examination
from znatok.exam.record import About, Line, Record, asked, curve
from znatok.expert import Expert, Voice, open_expert
from znatok.files import cache_home, sha256
from znatok.generate.engine import Request
from znatok.logs import say
from znatok.model.machine import machine
from znatok.model.score import bits_per_byte
from znatok.retrieve import inform
from znatok.runs import Run, metrics_rows
from znatok.tokens.chat import dialogue


def hear(runs: Sequence[Run], what: Examination, dtype: str = "auto", *, base: bool = True) -> list[Record]:
    """Ask the base and every run's tuned voice; return their records.

    Args:
        runs: adapters of one base, trained alike but for their seeds.
        what: the questions.
        dtype: number format of the base.
        base: whether the base is asked, too.
    """
    records = []
    for number, run in enumerate(runs):
        expert = open_expert(ModelOptions(model_name="", dtype=dtype), run, "", EngineOptions().engine, many=True)
        wanted = [voice for voice in expert.voices if voice is Voice.TUNED or (base and not number)]  # the base once
        records += [Sitting.of(expert, voice, run, what).record() for voice in wanted]
    return records


@dataclass(frozen=True)
class Sitting:
    """One voice before all questions.

    Attributes:
        expert: the loaded model.
        voice: base or tuned.
        what: the questions and the rules.
        about: who is asked, as the record says it.
        store: what was measured before.
        who: what identifies the weights and what computes them.
        losses: the training curve of the tuned voice.
    """

    expert: Expert
    voice: Voice
    what: Examination
    about: About
    store: Store
    who: tuple[Any, ...]
    losses: Sequence[Line]

    @classmethod
    def of(cls, expert: Expert, voice: Voice, run: Run, what: Examination) -> "Sitting":
        """Return the sitting of one voice of a run."""
        tuned = voice is Voice.TUNED
        adapter = sha256(run.path / "adapter_model.safetensors") if tuned else None
        manifest = run.read_manifest() if tuned else {}
        about = About(
            voice=str(voice),
            run=run.path.name if tuned else "",
            model_name=expert.base_name,
            base_sha256=expert.base_sha256,
            adapter_sha256=adapter,
            engine=expert.engine,
            dtype=expert.loaded.format if expert.engine == "torch" else None,
            train_seed=manifest.get("seed"),
            data_path=manifest.get("data", {}).get("path"),
            data_sha256=manifest.get("data", {}).get("sha256"),
            options={**manifest.get("lora", {}), **manifest.get("options", {})} if manifest else None,
            knowledge_sha256=what.knowledge_sha256,
            sampling=what.sample.described(),
            seed=what.seed,
            machine=machine(),
            system=expert.system,
            items_sha256=dict(what.items.sha256),
        )
        path = run.path / "eval" / "measured.jsonl"
        if not tuned:
            path = cache_home() / "measured" / f"{expert.base_sha256[:32]}.jsonl"
        losses = curve(metrics_rows(run.metrics)) if tuned else []
        store = Store(None if what.fresh else path)
        return cls(expert, voice, what, about, store, identity(expert, voice, adapter), losses)

    def record(self) -> Record:
        """Ask everything."""
        return Record(self.about, [*self._answers(), *self._choices(), *self._pairs(), *self._prose(), *self.losses])

    def _answers(self) -> Iterator[Line]:
        """Ask the open questions in every arm of this voice."""
        what = self.what
        for arm in (arm for arm in what.arms if arm.voice is self.voice):
            items = what.open_to(arm)
            with self.expert.speaking(self.voice) as engine:
                requests = [self._request(arm, item.question, engine.fits) for item in items]
            answers = ask(self.expert, self.voice, requests, self.who, self.store, self._progress(arm.name, len(items)))
            for item, answer in zip(items, answers, strict=True):
                yield {"kind": "open", "arm": arm.name, "id": item.id, "asked": asked(item), **answer}

    def _request(self, arm: Arm, question: str, fits: Callable[[Request], bool]) -> Request:
        """Return what an arm is asked; with fewer passages where the model does not see as many."""
        what = self.what
        message = what.lexicon.prompts["expert"] if arm.prompted else self.expert.system

        def asking(text: str) -> Request:
            return Request(tuple(dialogue(text, message)), what.sample, what.seed)

        if arm.informed and what.knowledge is not None:
            form = what.lexicon.prompts["knowledge"]
            question = inform(question, what.knowledge, form, fits=lambda text: fits(asking(text))).text
        return asking(question)

    def _choices(self) -> Iterator[Line]:
        """Weigh the options of the choices."""
        items = self.what.items.choices
        done = self._progress("choices", len(items))
        chat, system = self.expert.chat, self.expert.system
        return self._weighed("choice", items, lambda model: choose(model, chat, system, items, done))

    def _pairs(self) -> Iterator[Line]:
        """Weigh the true and the false statements."""
        items = self.what.items.pairs
        done = self._progress("pairs", len(items))
        chat, system = self.expert.chat, self.expert.system
        return self._weighed("pair", items, lambda model: prefer(model, chat, system, items, done))

    def _prose(self) -> Iterator[Line]:
        """Read the texts."""
        for name, path in self.what.prose.items():
            digest = sha256(path)
            key = fingerprint(self.who, "prose", digest)
            if key not in self.store.known:
                with self.expert.weights(self.voice) as model:
                    self.store.put(key, bits_per_byte(model, self.expert.chat, path))
                say(_("{what}: read", what=f"{path.name}, {self.about.run or self.voice}"))
            yield {
                "kind": "prose",
                "id": name,
                "sha256": digest,
                "windows": [list(pair) for pair in self.store.known[key]],
            }

    def _weighed(self, kind: str, items: Sequence[Any], measure: Callable[[Any], Sequence[Any]]) -> Iterator[Line]:
        key = fingerprint(self.who, kind, self.expert.system, [asdict(item) for item in items])
        if key not in self.store.known:
            with self.expert.weights(self.voice) as model:
                self.store.put(key, [asdict(one) for one in measure(model)])
        for item, values in zip(items, self.store.known[key], strict=True):
            yield {"kind": kind, "arm": str(self.voice), "id": item.id, "asked": asked(item), **values}

    def _progress(self, name: str, total: int) -> Callable[[int], None]:
        shown = time.monotonic()

        def done(count: int) -> None:
            nonlocal shown
            if count == total or time.monotonic() - shown > 10:
                shown = time.monotonic()
                say(f"{name}, {self.about.run or self.voice}: {count}/{total}")

        return done
