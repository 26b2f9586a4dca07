"""Chat: one dialogue, with the base or a run, with sources where it may look things up."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import gradio as gr

from znatok.config import SampleOptions
from znatok.cost import computed
from znatok.errors import UsageError, ZnatokError, _
from znatok.tokens.chat import Message, Role
from znatok.web.forms import changing, filled
from znatok.web.studio import AT_ONCE, Studio, told, waiting
from znatok.web.talk import Question, Said

Turn = dict[str, Any]
WAITS = "waits"
USUAL = SampleOptions()
REFERENCE = re.compile("&(?=[#a-zA-Z])")  # a lone & or < is text to a browser, and stays what somebody copies
TAG = re.compile("<(?=[a-zA-Z/!?])")


def chat_tab(studio: Studio) -> Any:
    """Build the tab; return its list of runs, which others renew."""
    with gr.Tab(_("Chat"), id="chat"):
        run, voice, knowledge = _who_answers(studio)
        talk = gr.Chatbot(
            label=_("dialogue"),
            height=460,
            sanitize_html=True,
            render_markdown=False,
            allow_tags=False,
            elem_id="chat-talk",
            buttons=["copy"],
        )
        with gr.Row():
            text = gr.Textbox(show_label=False, placeholder=_("a question"), scale=8, elem_id="chat-text")
            send = gr.Button(_("Ask"), variant="primary", elem_id="chat-send")
            stop = gr.Button(_("Stop"), variant="stop", elem_id="chat-stop")
            clear = gr.Button(_("New dialogue"), elem_id="chat-clear")
        with gr.Accordion(_("how answers are drawn"), open=False):
            temperature = gr.Slider(0, 2, USUAL.temperature, step=0.05, label="temperature")
            top_p = gr.Slider(0.05, 1, USUAL.top_p, step=0.05, label="top_p")
            longest = gr.Slider(16, 1024, USUAL.max_new_tokens, step=16, label="max_new_tokens", elem_id="chat-longest")
            seed = gr.Number(42, precision=0, minimum=0, label="seed")

    def answered(
        question: str,
        turns: list[Turn],
        name: str,
        who: str,
        where: str,
        *drawn: float,
    ) -> Iterator[tuple[list[Turn], str]]:
        if not question.strip():
            raise UsageError("no question: type one")
        history = history_of(turns)
        turns = [*turns, turn_of(Role.USER, question)]
        asked = [message.text for message in history if message.role is Role.USER]
        if lines := computed([*asked, question]):  # and not guessed
            yield [*turns, turn_of(Role.ASSISTANT, "\n".join(lines))], ""
            return
        knowledge = str(studio.file(where)) if where else None
        wanted = Question(question, sample_of(*drawn), int(filled(drawn[-1], "seed")), history, knowledge)
        speaking = speaker(studio, name, who)
        try:
            for (said,) in studio.talk.answers(*speaking, ["base" if who == "base" else "tuned"], wanted):
                yield [*turns, *answer_of(said)], ""
        except ZnatokError:
            yield turns, ""  # nothing waits any more
            raise

    asking = [text, talk, run, voice, knowledge, temperature, top_p, longest, seed]
    outputs = [talk, text]
    # one event, however it is set off: who presses Enter while an answer is being given doesn't get a second one
    running: Any = gr.on(
        [send.click, text.submit], told(answered), asking, outputs, show_progress="minimal", concurrency_limit=AT_ONCE
    )
    stop.click(None, cancels=running)
    stop.click(without_waiting, talk, talk, show_progress="hidden")
    talk.clear(None, cancels=running)
    clear.click(None, cancels=running)  # first of the two, and by itself: Gradio would else empty the page, then stop
    clear.click(list, None, talk)
    return run


def _who_answers(studio: Studio) -> tuple[Any, Any, Any]:
    """Build what chooses a run, a voice and a file to look things up in."""
    with gr.Row():
        run = changing(studio.runs(), label=_("run"), elem_id="chat-run")
        voice = changing(
            [(_("tuned"), "tuned"), (_("base"), "base"), *((name, name) for name in studio.models())],
            value="tuned",
            label=_("who answers: the run, its base, or any model"),
            elem_id="chat-voice",
        )
        knowledge = changing(["", *studio.texts()], value="", label=_("look things up in"))
    return run, voice, knowledge


def speaker(studio: Studio, name: str | None, who: str) -> tuple[str, Path | None]:
    """Return the base and the run that answer: those chosen, or a base alone by its own name.

    Raises:
        UsageError: a run is to answer, or its base, and none was chosen.
    """
    if who in {"tuned", "base", ""}:
        return studio.base_of(name), studio.run(name).path
    return who, None


def sample_of(temperature: float, top_p: float, longest: float, _seed: float) -> SampleOptions:
    """Return how an answer is drawn."""
    return SampleOptions(temperature=temperature, top_p=top_p, max_new_tokens=int(longest))


def turn_of(role: Role, text: str) -> Turn:
    """Return a turn as the page has to be given it: a Chatbot that renders no Markdown still obeys HTML."""
    return {"role": str(role), "content": TAG.sub("&lt;", REFERENCE.sub("&amp;", text))}


def note_of(kind: str, text: str) -> Turn:
    """Return a turn that the page shows and no model reads: an answer's sources, or that it waits."""
    return {**turn_of(Role.ASSISTANT, text), "metadata": {"id": kind}}


def kind_of(turn: Turn) -> str | None:
    """Return which note a turn is, if it is one; the browser sends metadata back as it was."""
    return (turn.get("metadata") or {}).get("id")


def answer_of(said: Said) -> list[Turn]:
    """Return the turns that show an answer."""
    if not said.begun:
        return [note_of(WAITS, waiting())]
    sources = [note_of("sources", ", ".join(said.sources))] if said.sources and said.ended else []
    return [turn_of(Role.ASSISTANT, said.text), *sources]


def without_waiting(turns: Sequence[Turn]) -> list[Turn]:
    """Return the turns without one that waits: its answer was given up."""
    return [turn for turn in turns if kind_of(turn) != WAITS]


def history_of(turns: Sequence[Turn]) -> list[Message]:
    """Return the dialogue as a terminal's keeps it: bare answers, and no question that got none."""
    said = [Message(Role(turn["role"]), plain(turn)) for turn in turns if kind_of(turn) is None]
    return [
        message
        for question, answer in pairwise(said)
        if (question.role, answer.role) == (Role.USER, Role.ASSISTANT) and answer.text
        for message in (question, Message(Role.ASSISTANT, answer.text.strip()))
    ]


def plain(turn: Any) -> str:
    """Return the text of a turn; Gradio sends it as parts."""
    content = turn["content"]
    text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    return text.replace("&lt;", "<").replace("&amp;", "&")
