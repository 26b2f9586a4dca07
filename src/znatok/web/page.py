"""The page: six tabs, in the order in which an expert comes to be."""

from collections.abc import Iterator
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder, is_in_or_equal

from znatok.errors import UsageError
from znatok.web.chat_tab import chat_tab
from znatok.web.compare_tab import CompareTab
from znatok.web.data_tab import data_tab
from znatok.web.report_tab import export_tab, report_tab
from znatok.web.studio import Studio, shown
from znatok.web.train_tab import TrainTab

CSS = """
.gradio-container > main {width: 100%; max-width: 1100px; margin: auto}
#data-report textarea, #train-log textarea, #compare-log textarea, #export-log textarea {font-family: monospace}
"""


class Page(gr.Blocks):
    """Blocks that take uploaded files only.

    Gradio looks where a file lies if it is launched, and not if it is mounted; an address it fetches in any case.
    """

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False) -> Any:
        """Refuse files that nobody has uploaded; pass all else on."""
        if not all(is_in_or_equal(path, get_upload_folder()) for path in _paths(inputs)):
            raise shown(UsageError("no file is chosen"))
        return await super().preprocess_data(block_fn, inputs, state, explicit_call)


def _paths(sent: Any) -> Iterator[str]:
    """Yield the path of every file in what a browser sent."""
    if isinstance(sent, dict):
        if "path" in sent:
            yield str(sent["path"])
        sent = list(sent.values())
    if isinstance(sent, list):
        for one in sent:
            yield from _paths(one)


def build_page(studio: Studio) -> gr.Blocks:
    """Return the page for a folder."""
    page = Page(title="znatok", analytics_enabled=False)
    with page:
        gr.Markdown("# знаток")
        with gr.Tabs() as tabs:
            files = data_tab(studio)
            train = TrainTab(studio, files)
            lists = [CompareTab(studio).run, chat_tab(studio), report_tab(studio), export_tab(studio)]

        def renewed(*chosen: str | None) -> list[Any]:
            """Offer the runs there are now, and the newest to whoever has chosen none of them.

            What is chosen is not sent back: it may be another by now.
            """
            runs = studio.runs()
            newest = runs[0] if runs else None
            return [gr.update(choices=runs) if one in runs else gr.update(choices=runs, value=newest) for one in chosen]

        page.load(train.typed, train.form, train.line, show_progress="hidden")
        page.load(renewed, lists, lists, show_progress="hidden")
        page.load(lambda: gr.update(choices=studio.data_files()), None, files, show_progress="hidden")
        tabs.select(renewed, lists, lists, show_progress="hidden")
        gr.Timer(5.0).tick(renewed, lists, lists, show_progress="hidden")
    return page
