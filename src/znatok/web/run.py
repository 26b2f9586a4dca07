"""Start the server of the page, say where it is, stop it."""

import os
import tempfile
from pathlib import Path
from typing import Any

from znatok.config import ServeOptions, WebOptions
from znatok.errors import SystemFault, _
from znatok.logs import say

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported
USER = "znatok"
UPLOAD = 64 << 20  # bytes of an uploaded file
PATIENCE = 2.0  # seconds that running requests have when it is stopped; an open page always has one


def build_app(folder: Path, key: str | None, hosts: Any) -> tuple[Any, Any]:
    """Return the application and the studio behind it.

    Args:
        folder: with data and runs.
        key: the password of user ``znatok``, where one is needed.
        hosts: names a request may call the server by; None for any.
    """
    import gradio as gr
    from fastapi import FastAPI

    from znatok.serve.guard import Guard
    from znatok.web.page import CSS, build_page
    from znatok.web.policy import Policy, Routes
    from znatok.web.studio import Studio

    # Gradio keeps uploads and pictures there and serves all of it; its own folder is one that any user can make first
    files = Path(tempfile.mkdtemp(prefix="znatok-")).resolve()  # stays: a verb at work may not have read its file yet
    os.environ["GRADIO_TEMP_DIR"] = str(files)
    studio = Studio(folder)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page = build_page(studio)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        auth=(USER, key) if key else None,
        footer_links=[],
        css=CSS,
        max_file_size=UPLOAD,
        ssr_mode=False,
        show_error=True,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )
    app.add_middleware(Routes, files=files)
    app.add_middleware(Guard, hosts=hosts, key=None, largest=UPLOAD)
    app.add_middleware(Policy)
    return app, studio


def web(options: WebOptions) -> None:
    """Serve the page until SIGINT or SIGTERM; verbs at work go on.

    Raises:
        SystemFault: the extra is not installed, or the address can't be had.
        UsageError: an address others can reach, and no key.
    """
    try:
        import gradio  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise SystemFault("the page needs Gradio: pip install 'znatok[web]'") from error
    from znatok.serve.run import allowed_hosts, api_key, listen, open_doors, quiet_signals
    from znatok.serve.server import Server

    address = ServeOptions(host=options.host, port=options.port, api_key_file=options.api_key_file)
    key = api_key(address)
    listener = listen(address)
    try:
        app, studio = build_app(Path.cwd(), key, allowed_hosts(address))
        server = Server(app, PATIENCE)
        with quiet_signals(server.handle_exit):  # whoever reads the address may open the page, or stop it, at once
            try:
                open_doors(listener, address)
                host = f"[{options.host}]" if ":" in options.host else options.host
                say(_("open http://{host}:{port} in a browser", host=host, port=listener.getsockname()[1]))
                if key:
                    say(_("user {user}, password: the API key", user=USER))
                server.run(sockets=[listener])
            finally:
                studio.close()
        say(_("stopped"))
    finally:
        listener.close()
