"""Compare: base and tuned side by side, blind if one likes, and a file of questions asked of both."""

import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from znatok.config import SampleOptions
from znatok.errors import UsageError, _
from znatok.runs import Run
from znatok.votes import VOTES, Comparison, add_vote, tally
from znatok.web.forms import changing, filled
from znatok.web.studio import AT_ONCE, Studio, told, waiting
from znatok.web.talk import Question, Said

SECONDS = 2.0
HELDOUT = "data/eval/heldout.jsonl"


class CompareTab:
    """The tab; ``run`` is its list of runs, which others renew."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        with gr.Tab(_("Compare"), id="compare"):
            self._ask()
            self._ask_all()

    def _ask(self) -> None:
        """Build the part with one question, two answers and a vote."""
        with gr.Row():
            self.run = changing(self._studio.runs(), label=_("run"), elem_id="compare-run")
            seed = gr.Number(42, precision=0, minimum=0, label="seed", elem_id="compare-seed")
            temperature = gr.Slider(0, 2, 0.7, step=0.05, label="temperature")
            longest = gr.Slider(16, 1024, 256, step=16, label="max_new_tokens", elem_id="compare-longest")
        blind = gr.Checkbox(value=False, label=_("blind: who is who is told after the vote"), elem_id="compare-blind")
        question = gr.Textbox(label=_("question"), lines=2, elem_id="compare-question")
        with gr.Row():
            ask = gr.Button(_("Ask both"), variant="primary", elem_id="compare-ask")
            stop = gr.Button(_("Stop"), variant="stop", elem_id="compare-stop")
        with gr.Row():
            left = gr.Textbox(label="1", lines=12, interactive=False, elem_id="compare-left")
            right = gr.Textbox(label="2", lines=12, interactive=False, elem_id="compare-right")
        with gr.Row():
            names = {
                "left": _("the left one is better"),
                "equal": _("no difference"),
                "right": _("the right one is better"),
            }
            buttons = {vote: gr.Button(name, elem_id=f"compare-vote-{vote}") for vote, name in names.items()}
        verdict = gr.Markdown(elem_id="compare-verdict")
        state = gr.State(None)
        asking: Any = ask.click(
            told(self.both),
            [self.run, question, blind, seed, temperature, longest],
            [left, right, state, verdict],
            concurrency_limit=AT_ONCE,
        )
        stop.click(None, cancels=asking)
        idle = [gr.update(placeholder="")] * 2
        for over in (stop.click, asking.failure):
            over(lambda: idle, None, [left, right], show_progress="hidden")
        for vote, button in buttons.items():
            button.click(told(self.voting(vote)), state, [verdict, state])

    def _ask_all(self) -> None:
        """Build the part with a file of questions."""
        gr.Markdown("### " + _("A file of questions, one on a line"))
        with gr.Row():
            file = gr.File(label=_("questions"), file_types=[".txt"])
            with gr.Column():
                kept = changing(
                    self._studio.data_files(),
                    value=self._studio.usual(HELDOUT),
                    label=_("pairs that were not trained: how likely each model holds their answers"),
                    elem_id="compare-heldout",
                )
                with gr.Row():
                    begin = gr.Button(_("Ask all"), elem_id="compare-begin")
                    stop = gr.Button(_("Stop"), variant="stop", elem_id="compare-end")
        log = gr.Textbox(label=_("what it says"), lines=6, interactive=False, elem_id="compare-log")
        table = gr.Gallery(
            label=_("answers side by side"), columns=1, height=640, object_fit="contain", elem_id="compare-table"
        )
        begin.click(told(self.begun), [self.run, file, kept], log)
        stop.click(self.stopped, None, [log, table])
        gr.Timer(SECONDS).tick(self.look, None, [log, table], show_progress="hidden")

    def both(
        self, name: str, question: str, blind: bool, *drawn: float
    ) -> Iterator[tuple[Any, Any, Comparison | None, str]]:
        """Yield both answers as they grow, under their names or, ``blind``, under numbers in an order drawn anew.

        Raises:
            UsageError: there is no question, no seed, or no run.
        """
        if not question.strip():
            raise UsageError("no question: type one")
        seed, temperature, longest = int(filled(drawn[0], "seed")), drawn[1], int(drawn[2])
        order = ["tuned", "base"] if blind and secrets.randbits(1) else ["base", "tuned"]
        titles = ["1", "2"] if blind else [_("base"), _("tuned")]
        asked = Question(question, SampleOptions(temperature=temperature, max_new_tokens=longest), seed)
        base, run = self._studio.base_of(name), self._studio.run(name).path
        said: list[Said] = []
        for said in self._studio.talk.answers(base, run, order, asked):
            yield *boxes(said, titles), None, ""  # no vote on half an answer
        texts = tuple(one.text for one in said)
        state = Comparison(name, question, seed, temperature, blind, tuple(order), texts)
        yield gr.skip(), gr.skip(), state, _("which one is better?")

    def voting(self, vote: str) -> Any:
        """Return what a click on one of the three buttons does: keep the vote, tell who was who."""

        def voted(state: Comparison | None) -> tuple[str, None]:
            if state is None:
                raise UsageError("there is nothing to vote on: ask both, and wait until they have answered")
            left, right = state.order
            path = self._studio.run(state.run).path / VOTES
            add_vote(path, state, vote)
            names = {"base": _("base"), "tuned": _("tuned")}
            return _("left: {left}, right: {right}", left=names[left], right=names[right]) + f". {tally(path)}", None

        return voted

    def begun(self, name: str, path: str | None, kept: str | None) -> str:
        """Start a comparison on a file of questions.

        Raises:
            UsageError: there is no run, no file, or the pairs lie elsewhere.
        """
        chosen = self._studio.run(name)
        if path is None:
            raise UsageError("no file is chosen")
        words = ["compare", str(chosen.path.relative_to(self._studio.folder)), "--questions", path]
        if kept:
            self._studio.file(kept)
            words += ["--heldout", kept]
        return self._studio.jobs.start("compare", words).command

    def stopped(self) -> tuple[str, Any]:
        """Stop a comparison; it says so itself."""
        self._studio.jobs.stop("compare")
        return self.look()

    def look(self) -> tuple[str, Any]:
        """Return what the newest comparison says, and its pictures, not those of one before, once it has ended."""
        job = self._studio.jobs.get("compare")
        if job is None or job.running:
            return job.said() if job is not None else "", gr.skip()
        images = Run(self._studio.folder / job.words[1]).images
        made = [path for path in sorted(images.glob("comparison*.png")) if path.stat().st_mtime >= job.started]
        return job.said(), [str(path) for path in made]


def boxes(said: Sequence[Said], titles: Sequence[str]) -> tuple[Any, Any]:
    """Return what the two boxes show."""
    left, right = (
        gr.update(value=one.text, label=title, placeholder="" if one.begun else waiting())
        for one, title in zip(said, titles, strict=True)
    )
    return left, right
