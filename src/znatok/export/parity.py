"""Does what was exported answer as the adapter does? Asked and compared before anybody gets it.

Two things can go wrong without a sound. The *format*: another program renders a dialogue to other tokens. So the
template in the export is rendered by its own rules, and its ids are compared with those that were trained. The
*weights*: a wrong scale, a spoilt tensor, too coarse a rounding. So the export says greedy tokens, and base and adapter
in float32 read them: by how much does their best token lead the one that was said, and how far apart are the two log
probabilities of it? Identical texts have a lead of 0 everywhere; rounding lets near ties go the other way and moves
probabilities a little, which the limits allow, and nothing else. Where a chat computes in the same numbers, as beside a
server, there is no rounding to allow for: both have to say the same tokens.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment

from znatok.config import SampleOptions
from znatok.data.load import read_pairs
from znatok.errors import GateError, _
from znatok.expert import Expert, Voice
from znatok.export.ollama import rendered
from znatok.generate import llamacpp
from znatok.generate.engine import Request, TokenEngine, sayable
from znatok.generate.llamacpp import LlamaCppEngine, LlamaServer
from znatok.generate.torch_engine import TorchEngine
from znatok.model.gguf import load_gguf
from znatok.model.gguf_header import read_header
from znatok.model.gguf_tokenizer import build_tokenizer
from znatok.model.load import load_directory
from znatok.model.score import head_weight, hidden_states
from znatok.runs import Run
from znatok.tokens.chat import ChatFormat, Message, Role, dialogue

MODEL, ADAPTER, MODELFILE = "model.gguf", "adapter.gguf", "Modelfile"
TOKENS = 32  # of each answer
QUESTIONS = 8
NEUTRAL = (
    "Привет! Кто ты?",
    "Что ты умеешь?",
    "Explain in one sentence what you know best.",
    "Дай три совета новичку.",
)
DIALOGUES = (
    (Message(Role.USER, "Сколько будет 2 + 2?"),),
    (Message(Role.USER, "Привет"), Message(Role.ASSISTANT, "Здравствуйте!"), Message(Role.USER, "What's 0,2 мм?")),
)

Render = Callable[[Sequence[Message]], list[int]]
"""A dialogue without a system message -> the ids another program gives the model."""


@dataclass(frozen=True)
class Limits:
    """How far an export may be from its adapter; what honest and spoilt ones come to is in docs/experiments.md.

    Attributes:
        lead: logits by which the adapter's best token may lead one that the export says.
        drift: nats by which the log probabilities of what the export says may differ on average.
    """

    lead: float
    drift: float


FINE = Limits(lead=0.5, drift=0.05)
LIMITS = {"q4_k_m": Limits(lead=1.0, drift=0.05)}
"""By the number format of a file; every other export answers within :data:`FINE`."""
SERVED = Limits(lead=1.0, drift=0.1)
"""Of a server, which computes in int8 where that is fast: a base that came in four bits is rounded once more."""


@dataclass(frozen=True)
class Parity:
    """How an export answers beside the adapter.

    Attributes:
        engine: what computed the export.
        questions: asked of both.
        identical: answers that are the same token by token.
        tokens: compared.
        agreeing: those that are the adapter's best.
        largest_lead: in logits, by which the adapter's best token leads the one that was said.
        drift: mean difference of the log probabilities of what was said, in nats; None where none were told.
        template: whether its own templates give the ids that were trained; None where it has none.
        limits: within which it passes.
        chat: whether a chat in the same numbers says the same tokens; None where there is none.
    """

    engine: str
    questions: int
    identical: int
    tokens: int
    agreeing: int
    largest_lead: float
    drift: float | None
    template: bool | None
    limits: Limits = FINE
    chat: bool | None = None

    @property
    def passed(self) -> bool:
        """Tell whether the export may be used."""
        return self.template is not False and self.near and self.chat is not False

    @property
    def near(self) -> bool:
        """Tell whether it is within its limits."""
        return self.largest_lead <= self.limits.lead and (self.drift is None or self.drift <= self.limits.drift)

    def line(self) -> str:
        """Return it for people."""
        line = _(
            "answers like the adapter: {identical} of {questions} word for word, {agreeing} of {tokens} tokens;"
            " largest lead {lead:.3f} logits (limit {lead_limit}), {drift}, computed by {engine}",
            identical=self.identical, questions=self.questions, agreeing=self.agreeing, tokens=self.tokens,
            lead=self.largest_lead, lead_limit=self.limits.lead, engine=self.engine,
            drift=self._drift(),
        )  # fmt: skip
        return line + (_("; token for token what a chat in the same numbers says") if self.chat else "")

    def _drift(self) -> str:
        if self.drift is None:
            return _("no log probabilities told")
        return _("log probabilities off by {drift} (limit {limit})", drift=self.drift, limit=self.limits.drift)

    def refuse_failed(self, what: str, remedy: str) -> None:
        """Raise GateError where ``what`` answers otherwise, with what may bring it nearer to its adapter."""
        if self.template is False:
            raise GateError(
                "{what}: its chat template gives other tokens than training did, so it would answer otherwise;"
                " nothing was kept",
                what=what,
            )
        if not self.near:
            raise GateError(
                "{what}: it answers otherwise than the adapter: a token it says trails by {lead:.2f} logits (limit"
                " {lead_limit}), {drift}; nothing was kept; {remedy}",
                what=what, remedy=remedy, lead=self.largest_lead, lead_limit=self.limits.lead, drift=self._drift(),
            )  # fmt: skip
        if self.chat is False:
            raise GateError(
                "{what}: it says other tokens than a chat with the run in the same numbers, so one of the two is"
                " wrong; nothing was kept; please report it",
                what=what,
            )


class Heard(NamedTuple):
    """A greedy answer: its tokens, and their log probabilities as the export has them (NaN where it does not tell)."""

    tokens: tuple[int, ...]
    logprobs: list[float]


class Export(NamedTuple):
    """An export at work.

    Attributes:
        engine: what computes it.
        hear: asks it.
        renders: the templates it has.
        chat: asks a chat that computes in the same numbers, where there is one; called once the export is closed.
    """

    engine: str
    hear: Callable[[Sequence[Request]], list[Heard]]
    renders: list[Render]
    chat: Callable[[Sequence[Request]], list[tuple[int, ...]]] | None = None


def questions_of(run: Run) -> list[str]:
    """Return what is asked: questions the adapter was trained on where its data is at hand, else neutral ones."""
    path = Path(run.read_manifest().get("data", {}).get("path") or "")
    if path.is_file():
        prompts = [pair.prompt for pair in read_pairs(path, skip_bad=True).pairs]
        if prompts:
            return prompts[:: max(1, len(prompts) // QUESTIONS)][:QUESTIONS]
    return list(NEUTRAL)


class Reference:
    """Base and adapter in float32, beside which every form of them is asked the same questions."""

    def __init__(self, expert: Expert, questions: Sequence[str]) -> None:
        """Take the questions; the expert answers them when the first comparison is made."""
        sample = SampleOptions(temperature=0.0, max_new_tokens=TOKENS)
        self._expert = expert
        self._requests = [Request(tuple(dialogue(text, expert.system)), sample, 0) for text in questions]

    def beside(self, opening: AbstractContextManager[Export], limits: Limits = FINE) -> Parity:
        """Ask a form of the adapter, and have the adapter read what it said.

        Args:
            opening: lends it.
            limits: how far its answers may be from the adapter's.
        """
        with opening as export:
            heard = export.hear(self._requests)
            template = same_ids(self._expert, export.renders) if export.renders else None
        chat = None if export.chat is None else export.chat(self._requests) == [one.tokens for one in heard]
        prompts = [self._expert.chat.prompt_ids(request.messages) for request in self._requests]
        may = sorted(sayable(self._expert.chat))
        with self._expert.weights(Voice.TUNED) as model:
            read = [reading(model, ids, answer.tokens, may) for ids, answer in zip(prompts, heard, strict=True)]
        leads = [lead for one in read for lead in one.leads]
        drifts = [
            abs(ours - theirs)
            for one, answer in zip(read, heard, strict=True)
            for ours, theirs in zip(one.logprobs, answer.logprobs, strict=True)
            if math.isfinite(theirs)
        ]
        return Parity(
            engine=export.engine,
            questions=len(heard),
            identical=sum(ours == answer.tokens for ours, answer in zip(self._said, heard, strict=True)),
            tokens=len(leads),
            agreeing=sum(lead == 0 for lead in leads),
            largest_lead=round(max(leads), 4),
            drift=round(fmean(drifts), 5) if drifts else None,
            template=template,
            limits=limits,
            chat=chat,
        )

    @property
    def longest(self) -> int:
        """Return how many tokens the longest prompt has."""
        return max(len(self._expert.chat.prompt_ids(request.messages)) for request in self._requests)

    @cached_property
    def _said(self) -> list[tuple[int, ...]]:
        """The adapter's own answers."""
        with self._expert.weights(Voice.TUNED) as model:
            return spoken(TorchEngine(model, self._expert.chat), self._requests)


class Reading(NamedTuple):
    """What a model makes of a text: by how much its best token leads each, and log probabilities.

    The lead is 0 where the token is the best one, infinite where it may never be said.
    """

    leads: list[float]
    logprobs: list[float]


@torch.no_grad()
def reading(model: Any, ids: Sequence[int], said: Sequence[int], may: Sequence[int]) -> Reading:
    """Have a model read tokens that were said after a prompt.

    Args:
        model: what reads.
        ids: the prompt.
        said: what followed it.
        may: the tokens that engines ever say; its best is among them.
    """
    whole = torch.tensor([[*ids, *said[:-1]]])
    hidden_BTD = hidden_states(model, whole, torch.ones_like(whole))
    weight = head_weight(model)
    logits_TV = (hidden_BTD[0, len(ids) - 1 :].to(weight.dtype) @ weight.T).float()
    said_T = torch.tensor(said)
    chosen_T = logits_TV[torch.arange(len(said)), said_T]
    leads_T = (logits_TV[:, may].max(1).values - chosen_T).masked_fill(~torch.isin(said_T, torch.tensor(may)), math.inf)
    return Reading(leads_T.tolist(), (chosen_T - logits_TV.logsumexp(1)).tolist())


def spoken(engine: TokenEngine, requests: Sequence[Request]) -> list[tuple[int, ...]]:
    """Return the tokens an engine says, request by request."""
    tokens: list[list[int]] = [[] for _request in requests]
    for index, token, _stop in engine.tokens(requests):
        tokens[index].append(token)
    return [tuple(one) for one in tokens]


# What was exported, opened by its own files alone


@contextmanager
def opened(expert: Expert, folder: Path, to: str) -> Iterator[Export]:
    """Lend an export."""
    if to == "merged":
        model, tokenizer = load_directory(folder, torch.float32)
        yield _in_torch(expert, model, tokenizer, [by_template(str(tokenizer.chat_template or ""), tokenizer)])
        return
    if to == "lora-gguf":
        with _served(expert, expert.loaded.source.path, folder / ADAPTER) as hear:
            yield Export(LlamaCppEngine.name, hear, [])  # it comes without a template: its base has one
        return
    path = folder / MODEL
    header = read_header(path)
    tokenizer = build_tokenizer(header)
    renders = [by_template(header.text("tokenizer.chat_template"), tokenizer)]
    if (folder / MODELFILE).is_file():
        renders.append(by_modelfile((folder / MODELFILE).read_text(encoding="utf-8"), tokenizer))
    if llamacpp.installed():
        with _served(expert, path, None) as hear:
            yield Export(LlamaCppEngine.name, hear, renders)
        return
    found = load_gguf(path, torch.float32, tied=bool(expert.loaded.model.config.tie_word_embeddings))
    yield _in_torch(expert, found.model, found.tokenizer, renders)


def _in_torch(expert: Expert, model: Any, tokenizer: Any, renders: list[Render]) -> Export:
    engine = TorchEngine(model, ChatFormat(expert.chat.name, "", tokenizer, expert.chat.end_id))

    def hear(requests: Sequence[Request]) -> list[Heard]:
        may = sorted(sayable(expert.chat))
        prompts = [expert.chat.prompt_ids(request.messages) for request in requests]
        said = spoken(engine, requests)
        return [
            Heard(tokens, reading(model, ids, tokens, may).logprobs) for ids, tokens in zip(prompts, said, strict=True)
        ]

    return Export(engine.name, hear, renders)


@contextmanager
def _served(expert: Expert, model: Path, adapter: Path | None) -> Iterator[Callable[[Sequence[Request]], list[Heard]]]:
    """Lend a way to ask llama.cpp."""
    header = read_header(model)
    context = header.integer(f"{header.text('general.architecture')}.context_length", high=1 << 24)
    server = LlamaServer(model, [adapter] if adapter else [], context)
    banned = sorted(set(range(len(header.metadata["tokenizer.ggml.tokens"]))) - sayable(expert.chat))
    speaks = 0 if adapter else None
    engine = LlamaCppEngine(server, expert.chat, context, banned, adapter=speaks, probabilities=True)

    def hear(requests: Sequence[Request]) -> list[Heard]:
        found = []
        for request in requests:
            said = [(token, engine.logprob) for _index, token, _stop in engine.tokens([request])]
            found.append(Heard(tuple(token for token, _p in said), [p for _token, p in said]))
        return found

    try:
        server.wait()
        yield hear
    finally:
        server.close()


def by_template(template: str, tokenizer: Any) -> Render:
    """Return how programs render a Jinja template: to one text, in which special tokens are found."""
    compiled = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)  # as they do

    def render(messages: Sequence[Message]) -> list[int]:
        shown = [{"role": str(message.role), "content": message.text} for message in messages]
        text = compiled.render(messages=shown, add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    return render


def by_modelfile(text: str, tokenizer: Any) -> Render:
    """Return how Ollama renders its template."""
    return lambda messages: list(tokenizer(rendered(text, messages), add_special_tokens=False)["input_ids"])


def same_ids(expert: Expert, renders: Sequence[Render]) -> bool:
    """Tell whether every template gives the ids that were trained."""
    opening = [Message(Role.SYSTEM, expert.system)] if expert.system.strip() else []
    return all(
        render(messages) == expert.chat.prompt_ids([*opening, *messages])
        for messages in DIALOGUES
        for render in renders
    )
