"""What a run will take, known before it starts.

Steps, tokens and parameters are counted. Seconds and memory come from a probe: one forward and backward pass over a few
real examples on this machine, once to warm up and once measured.
"""

import gc
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil
import torch

from znatok.config import TrainOptions
from znatok.errors import _
from znatok.fast.memory import BESIDE, give_back
from znatok.logs import peak_rss_bytes
from znatok.model.score import head_weight
from znatok.tokens.collate import Collator, ExampleSet
from znatok.tokens.encode import Example
from znatok.train.batches import LengthGroupedBatches
from znatok.train.callbacks import duration
from znatok.train.computation import Computation
from znatok.train.team import ALONE, Team

PROBE_TOKENS = 384  # a few seconds for 1.5 billion parameters on two cores
COUNTED = 10_000  # examples; with more, the rows of the first epoch stand for those of the others
FEW_STEPS = 50  # below so many an adapter has hardly begun; the recipes that were examined took 108 and 750
ADAM_BYTES = 4 * 4  # per trained parameter: weight, gradient and two moments, float32


@dataclass(frozen=True, slots=True)
class Plan:
    """A run, counted and estimated; seconds are of training and validation, without loading.

    ``tokens`` are text, ``answer_tokens`` of them are trained; ``computed_tokens`` are the rows that are computed for
    it, more where batches are padded and fewer where shared beginnings are computed once; all for the whole run.
    ``batch`` is that of one of the ``processes``, and so is the memory.
    """

    examples: int
    validation: int
    steps: int
    epochs: float
    tokens: int
    computed_tokens: int
    answer_tokens: int
    trainable: int
    parameters: int
    batch: int = 1
    seconds: float | None = None
    peak_rss_bytes: int | None = None
    probe_tokens_per_second: float | None = None
    processes: int = 1

    def to_json(self) -> dict[str, Any]:
        """Return a dict for ``manifest.json`` and ``--json``."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the plan for people."""
        share = 100 * self.trainable / self.parameters
        lines = [
            _("pairs: {train} to train, {validation} to validate", train=self.examples, validation=self.validation),
            _("steps: {steps} in {epochs:g} epochs", steps=self.steps, epochs=self.epochs),
            *(
                [_("processes: {count}, each computes its part of every batch", count=self.processes)]
                if self.processes > 1
                else []
            ),
            _(
                "tokens: {tokens}, of them {answer} trained; rows computed for it: {computed}",
                tokens=self.tokens,
                answer=self.answer_tokens,
                computed=self.computed_tokens,
            ),
            _(
                "adapter: {trainable} parameters, {share:.2f} % of the model's {all}",
                trainable=f"{self.trainable:,}".replace(",", " "),
                share=share,
                all=f"{self.parameters:,}".replace(",", " "),
            ),
        ]
        if self.steps < FEW_STEPS:
            enough = math.ceil(FEW_STEPS * self.epochs / self.steps)
            lines.insert(
                2,
                _(
                    "so few steps teach little: --num_train_epochs {epochs} makes {steps}",
                    epochs=enough,
                    steps=FEW_STEPS,
                ),
            )
        if self.seconds is not None and self.peak_rss_bytes is not None:
            memory, free = self.peak_rss_bytes / 1e9, psutil.virtual_memory().available / 1e9
            lines.append(_("time: about {time}, from a probe on this machine", time=duration(self.seconds)))
            lines.append(_("memory: about {memory:.1f} GB at most; free now: {free:.1f} GB", memory=memory, free=free))
        return lines


def count(
    train: Sequence[Example],
    validation: Sequence[Example],
    options: TrainOptions,
    model: Any,
    computation: Computation,
    team: Team = ALONE,
) -> Plan:
    """Count steps, tokens and parameters without computing anything."""
    size = options.per_device_train_batch_size * team.size  # batches of all, whoever computes them
    order = LengthGroupedBatches([len(e.ids) for e in train], size, options.seed)
    steps_per_epoch = max(1, math.ceil(len(order) / options.gradient_accumulation_steps))
    steps = options.max_steps or math.ceil(options.num_train_epochs * steps_per_epoch)
    epochs = steps / steps_per_epoch
    computed = rows = 0
    for epoch in range(math.ceil(epochs)):
        if epoch == 0 or len(train) <= COUNTED:
            order.set_epoch(epoch)
            rows = sum(computation.rows([train[i] for i in batch]) for batch in order)
        computed += round(min(1.0, epochs - epoch) * rows)
    return Plan(
        examples=len(train),
        validation=len(validation),
        steps=steps,
        epochs=round(epochs, 3),
        tokens=round(epochs * sum(len(e.ids) for e in train)),
        computed_tokens=computed,
        answer_tokens=round(epochs * sum(e.answer_tokens for e in train)),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        parameters=sum(p.numel() for p in model.parameters()),
        batch=options.per_device_train_batch_size,
        processes=team.size,
    )


def probe(
    plan: Plan, train: Sequence[Example], validation: Sequence[Example], model: Any, computation: Computation
) -> Plan:
    """Add seconds and peak memory to a plan by computing a few examples; weights, mode and generators stay."""
    few = _few(train)
    where = head_weight(model).device
    batch = {k: v.to(where) for k, v in Collator(pad_id=0)([ExampleSet(few)[i] for i in range(len(few))]).items()}
    given_back = give_back()  # or what was freed before hides what the probe needs
    before, was_training = psutil.Process().memory_info().rss, model.training
    forward_seconds, step_seconds = 0.0, 0.0
    with torch.random.fork_rng(devices=[]):
        for _round in range(2):  # the first warms caches up
            forward_seconds, step_seconds = _step(computation, batch)
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    gc.collect()
    largest = max(computation.largest(longest(train, plan)), computation.largest(few))
    # The allocator keeps what was freed, so that the probe's peak is still to be seen.
    reached = psutil.Process().memory_info().rss if given_back else peak_rss_bytes()
    grown = max(reached - before, 0) * largest / computation.largest(few)
    computed = computation.rows(few)
    validated = sum(len(e.ids) for e in validation) * max(1, math.ceil(plan.epochs))
    return replace(
        plan,
        seconds=(plan.computed_tokens * step_seconds + validated * forward_seconds) / computed / plan.processes,
        # Between two packs holes may take as much as a pack does (fast.memory.Holes), so it counts twice.
        peak_rss_bytes=max(peak_rss_bytes(), int(before + 2 * grown + ADAM_BYTES * plan.trainable + BESIDE)),
        probe_tokens_per_second=round(computed / step_seconds, 2),
    )


def longest(train: Sequence[Example], plan: Plan) -> list[Example]:
    """Return the longest examples, as many as a batch holds."""
    return sorted(train, key=lambda example: -len(example.ids))[: plan.batch]


def _few(train: Sequence[Example]) -> list[Example]:
    """Return examples of about the median length, PROBE_TOKENS of them together, so that little is padding."""
    by_length = sorted(train, key=lambda e: len(e.ids))
    middle = len(by_length) // 2
    wanted = max(1, PROBE_TOKENS // max(1, len(by_length[middle].ids)))
    start = max(0, min(middle - wanted // 2, len(by_length) - wanted))
    return by_length[start : start + wanted]


def _step(computation: Computation, batch: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Return the seconds of the forward pass and of the whole step."""
    started, forward = time.perf_counter(), 0.0
    parts, before = computation.parts(batch), started
    for part in parts:
        forward += time.perf_counter() - before
        part.backward()
        before = time.perf_counter()
    return forward, time.perf_counter() - started
