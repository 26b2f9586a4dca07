"""Reports and exports of a run."""

import html
from typing import Any

import gradio as gr

from znatok.config import ExportOptions
from znatok.errors import UsageError, _, own_language
from znatok.runs import Run
from znatok.web.forms import changing, component, specs, words
from znatok.web.studio import Studio, told

EXPORT = specs(ExportOptions, without=("export_dir", "model_name"))


def report_tab(studio: Studio) -> Any:
    """Build the tab of reports; return its list of runs, which others renew."""
    with gr.Tab(_("Report"), id="report"):
        with gr.Row():
            run = changing(studio.runs(), label=_("run"), elem_id="report-run")
            kind = gr.Radio(
                [(_("comparison"), "compare"), (_("examination"), "eval")], value="compare", label=_("report")
            )
            show = gr.Button(_("Show"), variant="primary", elem_id="report-show")
        page = gr.HTML(elem_id="report-page")

    def shown(name: str, which: str) -> str:
        return framed(report_of(studio.run(name), which))

    show.click(told(shown), [run, kind], page)
    return run


def report_of(run: Run, which: str) -> str:
    """Return a report as HTML.

    Raises:
        UsageError: there is none yet.
    """
    path = run.path / ("report.html" if which == "compare" else f"eval/report.{own_language()}.html")
    if not path.is_file():
        verb = "compare" if which == "compare" else "eval"
        raise UsageError("{path}: no report yet; znatok {verb} {path} makes one", path=run.path.name, verb=verb)
    return path.read_text(encoding="utf-8")


def framed(page: str) -> str:
    """Return a page inside a frame that may run nothing, whatever stands in it."""
    return (
        f'<iframe sandbox="" srcdoc="{html.escape(page, quote=True)}" '
        'style="width:100%;height:80vh;border:1px solid var(--border-color-primary);background:white"></iframe>'
    )


def export_tab(studio: Studio) -> Any:
    """Build the tab of exports; return its list of runs, which others renew."""
    with gr.Tab(_("Export"), id="export"):
        run = changing(studio.runs(), label=_("run"), elem_id="export-run")
        inputs = [component(spec, spec.default) for spec in EXPORT]
        with gr.Row():
            begin = gr.Button(_("Export"), variant="primary", elem_id="export-begin")
            stop = gr.Button(_("Stop"), variant="stop", elem_id="export-stop")
        log = gr.Textbox(label=_("what it says"), lines=10, interactive=False, elem_id="export-log")
        timer = gr.Timer(2.0)

    def begun(name: str, *values: Any) -> str:
        chosen = studio.run(name)
        where = str(chosen.path.relative_to(studio.folder))
        return studio.jobs.start("export", ["export", where, *words(EXPORT, values, "seed")]).command

    def looked() -> str:
        job = studio.jobs.get("export")
        return job.said() if job is not None else ""

    begin.click(told(begun), [run, *inputs], log)
    stop.click(lambda: studio.jobs.stop("export"), None, None)
    timer.tick(looked, None, log, show_progress="hidden")
    return run
