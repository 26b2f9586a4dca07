"""What the browser may do with the page: run the page's own scripts and speak to its own address, and nothing else.

Whatever the page shows, a question, an answer, a report, is somebody's text. Should it ever be taken for markup, the
browser still runs no script in it and loads nothing by it.
"""

import base64
import hashlib
import re
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
OTHERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Policy:
    """Middleware that sends a Content-Security-Policy and its kin with every response.

    Gradio writes scripts into its page, one of them anew each time: they are allowed by their hashes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; of a page, hold the head back until the scripts in its body are known."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start: Message = {}
        body = b""

        async def sealed(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                MutableHeaders(scope=start).update(OTHERS | {"Content-Security-Policy": policy()})
                if _is_page(start):
                    return
            elif message["type"] == "http.response.body" and _is_page(start):
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


def _is_page(start: Message) -> bool:
    return Headers(raw=start["headers"]).get("content-type", "").startswith("text/html")


def _readable(scope: Scope) -> Scope:
    """Ask for the page itself uncompressed: its scripts are looked for in what comes."""
    if "text/html" not in Headers(scope=scope).get("accept", ""):
        return scope
    return {**scope, "headers": [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]}
