"""Data: bring a file, see what is wrong with it, and what of it is trained."""

from typing import Any

import gradio as gr
import pandas as pd

from znatok.config import LANGUAGE_NEUTRAL_SYSTEM
from znatok.data.check import Lengths, check_file
from znatok.data.load import read_pairs
from znatok.errors import UsageError, _
from znatok.generate.choose import file_format, gguf_base
from znatok.logs import printable, say
from znatok.tokens.chat import ChatFormat, choose_format
from znatok.tokens.encode import EncodeRule, encode_pairs
from znatok.tokens.spans import spans
from znatok.web.forms import changing, filled
from znatok.web.studio import Studio, told

LONGEST = 512


def data_tab(studio: Studio) -> Any:
    """Build the tab; return its list of files, which others renew."""
    with gr.Tab(_("Data"), id="data"):
        with gr.Row():
            upload = gr.File(label=_("bring a file: JSON Lines with prompt and response"), file_types=[".jsonl"])
            with gr.Column():
                files = changing(studio.data_files(), label=_("file"), elem_id="data-file")
                check = gr.Button(_("Check"), variant="primary", elem_id="data-check")
        report = gr.Textbox(label=_("what was found"), lines=8, max_lines=20, elem_id="data-report", interactive=False)
        problems = gr.Dataframe(
            headers=[_("line"), _("problem")], wrap=True, label=_("bad records"), elem_id="data-problems"
        )
        lengths = gr.BarPlot(
            x="characters",
            y="texts",
            color="part",
            sort="x",
            title=_("lengths of texts"),
            height=260,
            elem_id="data-lengths",
        )
        gr.Markdown("### " + _("What of a pair is trained"))
        with gr.Row():
            number = gr.Number(1, precision=0, minimum=1, label=_("pair"), elem_id="data-row")
            model = gr.Dropdown(studio.models(), label=_("tokens of"), allow_custom_value=True, elem_id="data-model")
            show = gr.Button(_("Show"), elem_id="data-show")
        sample = gr.HighlightedText(
            label=_("trained: the answer and the token that ends it"), elem_id="data-sample", show_inline_category=False
        )

    def uploaded(path: str | None) -> Any:
        if path is None:
            return gr.skip()
        name = studio.take_upload(path)
        return gr.update(choices=studio.data_files(), value=name)

    def checked(name: str | None) -> tuple[str, pd.DataFrame, pd.DataFrame]:
        found = check_file(studio.file(name))
        bad = [[problem.fields.get("line"), printable(str(problem))] for problem in found.problems]
        parts = [(_("questions"), found.prompts), (_("answers"), found.answers)]
        bars = [bar for part, sizes in parts if sizes for bar in bars_of(part, sizes)]
        return (
            printable("\n".join(found.lines())),
            pd.DataFrame(bad, columns=[_("line"), _("problem")]),
            pd.DataFrame(bars, columns=["characters", "texts", "part"]),
        )

    def shown(name: str | None, number: float | None, model_name: str) -> list[tuple[str, str | None]]:
        row = int(filled(number, _("pair")))
        pairs = read_pairs(studio.file(name), skip_bad=True).pairs
        if not 1 <= row <= len(pairs):
            raise UsageError("--row {row}: {path} has {n} pairs", row=row, path=name, n=len(pairs))
        chat = format_of(model_name)
        rule = EncodeRule(LANGUAGE_NEUTRAL_SYSTEM, LONGEST, "shorten")
        (example,) = encode_pairs([pairs[row - 1]], chat, rule).examples
        names = {"green underline": _("trained"), "dim": _("control"), "": None}
        return [(printable(text), names[style]) for text, style in spans(chat, example)]

    upload.upload(told(uploaded), upload, files)
    check.click(told(checked), files, [report, problems, lengths])
    show.click(told(shown), [files, number, model], sample)
    return files


def bars_of(part: str, sizes: Lengths) -> list[tuple[str, int, str]]:
    """Return the bins of lengths as bars; names in the order of letters are in that of numbers too.

    Another order would have to be sent along with each file's bars, and Gradio then draws those of the file before.
    """
    return [(f"{low:7}–{high - 1}", count, part) for low, high, count in sizes.bins]


def format_of(name: str) -> ChatFormat:
    """Return a model's chat format, from its file where that is enough."""
    if (base := gguf_base(name, say)) is not None:
        return file_format(base, "auto")
    from znatok.config import ModelOptions
    from znatok.model.load import load_base

    loaded = load_base(ModelOptions(model_name=name), say=say)
    return choose_format(loaded.tokenizer, loaded.model.get_input_embeddings().weight)
