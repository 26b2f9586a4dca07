"""The process llama.cpp runs in: a line of JSON in, a line of JSON out, until standard input ends.

It is started as a file and imports nothing of znatok, so that it is reading the model while its parent still imports
torch. A process of its own has more merits: what C code prints can't reach the user's terminal, Ctrl-C reaches the
parent alone, and a file that makes llama.cpp abort ends this process only.

The first line says what to load; the answer is ``{"ready": true}`` or ``{"error": reason}``. Each further line is a
request for completion in llama.cpp's own words, answered with what it said.
"""

import contextlib
import json
import os
import sys
from typing import Any, TextIO

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
"""In the place of the file's own, which llama.cpp would render at its start: that may be an endless loop, and nobody
needs it, for prompts come as ids."""
ERRORS_ONLY = 1  # llama.cpp's verbosity; they go to stderr, which the parent keeps for its own error message


def main() -> int:
    """Load, then answer until the parent closes the pipe or dies."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever C code prints to stdout must not look like a reply
    try:
        server = load(json.loads(sys.stdin.readline()))
    except (ImportError, RuntimeError, ValueError):
        reply(replies, {"error": ""})  # the reason is in the log
        raise
    reply(replies, {"ready": True})
    for line in sys.stdin:
        reply(replies, answer(server, json.loads(line)))
    return 0


def answer(server: Any, order: dict[str, Any]) -> dict[str, Any]:
    """Return what was said as ``tokens``, ``cached`` tokens of the prompt, and ``logprobs`` where they were asked for.

    The rest of llama.cpp's reply repeats the request; a short line goes through the pipe in one piece.
    """
    found = server.handle_completions(order)
    if "error" in found:
        return {"error": found["error"]["message"]}
    tokens, cached = found["__verbose"]["tokens"], found["timings"]["cache_n"]
    return {"tokens": tokens, "cached": cached, "logprobs": found["choices"][0]["logprobs"]}


def reply(replies: TextIO, value: Any) -> None:
    """Write one line."""
    replies.write(json.dumps(value) + "\n")
    replies.flush()


def load(order: dict[str, Any]) -> Any:
    """Open a model, and the adapters named.

    Args:
        order: ``model`` and ``adapters`` (paths), ``context`` in tokens, ``threads``, and ``socket``: a path nobody
            else can reach.

    Returns:
        The server; nothing listens for others any more.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.verbosity = ERRORS_ONLY
    params.model.path = order["model"]
    if order["adapters"]:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in order["adapters"]]
    params.n_ctx = order["context"]
    params.n_parallel = 1  # one answer at a time: see LlamaCppEngine
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = order["threads"]
    params.n_gpu_layers = 0
    params.warmup = False
    params.fit_params = False  # it would make the context smaller than asked for
    params.cache_ram_mib = params.n_ctx_checkpoints = 0  # copies of past states, for many users
    params.swa_full = True  # with only a window of keys kept, a step can't go on from the last one
    # xllamacpp always starts an HTTP server; on a socket that is removed at once, no page or neighbour can find it
    params.hostnames, params.api_keys = [order["socket"]], [os.urandom(32).hex()]
    params.ui = params.endpoint_slots = params.endpoint_props = False
    params.chat_template = TEMPLATE
    params.n_threads_http = 1
    try:
        return xllamacpp.Server(params)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(order["socket"])  # noqa: PTH108  # pathlib is one more import to wait for


if __name__ == "__main__":
    sys.exit(main())
