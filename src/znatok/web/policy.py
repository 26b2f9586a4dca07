"""What the browser may do with the page: run the page's own scripts and speak to its own address, and nothing else.

Whatever the page shows, a question, an answer, a report, is somebody's text. Should it ever be taken for markup, the
browser still runs no script in it and loads nothing by it. And what of Gradio may be asked for: what the page asks for.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

FILE = "/gradio_api/file="
PAGE = "/"
NEEDED = re.compile(
    r"/|/(config|login|theme\.css|manifest\.json|favicon\.ico)|/(assets|static)/.+"
    r"|/gradio_api/(queue/(join|data)|upload|upload_progress|cancel|reset|app_id|heartbeat/[^/]+)"
)
INLINE = re.compile(rb"<script\b[^>]*>(.*?)</script>", re.DOTALL | re.IGNORECASE)
DIRECTIVES = {
    "default-src": "'none'",
    "script-src": "'self' 'unsafe-eval'",  # Vega, which draws the plots, and gr.HTML make functions of strings
    "style-src": "'self' 'unsafe-inline'",  # Svelte sets styles on elements
    "img-src": "'self' data: blob:",
    "font-src": "'self'",
    "connect-src": "'self'",
    "manifest-src": "'self'",
    "frame-ancestors": "'none'",
    "base-uri": "'self'",
    "form-action": "'self'",
}
OF_A_FILE = "sandbox; default-src 'none'; frame-ancestors 'none'"
OTHERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Routes:
    """Middleware that knows what the page asks for, and files of one folder; all else is not found.

    Gradio has more: it fetches any address of the web for whoever asks, opens files, keeps links and logs.
    """

    def __init__(self, app: ASGIApp, files: Path) -> None:
        self._app = app
        self._files = f"{FILE}{files}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on where the page could have made it."""
        known = scope["type"] != "http" or NEEDED.fullmatch(scope["path"]) or scope["path"].startswith(self._files)
        await (self._app if known else PlainTextResponse("Not Found", 404))(scope, receive, send)


class Policy:
    """Middleware that sends a Content-Security-Policy and its kin with every response.

    Gradio writes scripts into its page, one of them anew each time: they are allowed by their hashes, in the page
    alone. A file, should a browser ever open it as a page of its own, is one without rights.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; of a page, hold the head back until the scripts in its body are known."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        usual = OF_A_FILE if scope["path"].startswith(FILE) else policy()
        start: Message = {}
        body = b""

        async def sealed(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                MutableHeaders(scope=start).update(OTHERS | {"Content-Security-Policy": usual})
                if scope["path"] == PAGE:
                    return
            elif message["type"] == "http.response.body" and scope["path"] == PAGE:
                body += message.get("body", b"")
                if message.get("more_body"):
                    return
                MutableHeaders(scope=start)["Content-Security-Policy"] = policy(INLINE.findall(body))
                await send(start)
                message = {**message, "body": body}
            await send(message)

        await self._app(_readable(scope), receive, sealed)


def policy(scripts: Sequence[bytes] = ()) -> str:
    """Return the policy's text; ``scripts`` may run beside those in files."""
    hashes = "".join(f" 'sha256-{base64.b64encode(hashlib.sha256(one).digest()).decode()}'" for one in scripts)
    stated = DIRECTIVES | {"script-src": DIRECTIVES["script-src"] + hashes}
    return "; ".join(f"{name} {value}" for name, value in stated.items())


def _readable(scope: Scope) -> Scope:
    """Ask for the page itself uncompressed: its scripts are looked for in what comes."""
    if scope["path"] != PAGE:
        return scope
    return {**scope, "headers": [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]}
