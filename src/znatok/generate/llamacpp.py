"""Answers by llama.cpp, from a GGUF file and a LoRA-GGUF adapter, at the speed at which memory delivers the weights.

llama.cpp runs in a process of its own (see ``llama_worker``) and draws one token per request. That costs about 1 ms a
token and makes everything ours that has to be: the prompt's ids, what ends an answer, what must never be said, which
tokens a repetition penalty counts (llama.cpp's own counts the prompt's too), and when to stop.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import torch

from znatok.config import SampleOptions
from znatok.errors import ModelError, _
from znatok.generate.engine import Request, Stop, TokenEngine
from znatok.generate.sampling import COLDEST
from znatok.tokens.chat import ChatFormat

WORKER = Path(__file__).with_name("llama_worker.py")
CONTEXT = 4096  # tokens there is room for at first; the keys and values of 32 768 would take 0.9 GB in a 1.5B model
SPINS = "1000"
"""How long llama.cpp's threads wait for one another before they let others compute. GNU's default is so long that with
another busy process a token takes over a second instead of 22 ms (0.5B, two cores); with this 55 ms, at a cost of 2 %.
"""
PARTING = 5.0  # seconds in which a process that gave up has to end
LOGGED = re.compile(r"[\d.]+ E \S+ +")  # time stamp, level and function before an error of llama.cpp's


def installed() -> bool:
    """Tell whether the xllamacpp wheel is there."""
    return find_spec("xllamacpp") is not None


class LlamaServer:
    """A llama.cpp process with one model and any number of adapters for it; it ends with this object.

    Starting returns at once, while the process is still reading the model.
    """

    def __init__(self, model: Path, adapters: Sequence[Path], context: int) -> None:
        self.adapters = tuple(adapters)
        self.model = model
        self._most = context
        self._run = 0
        self._start(min(CONTEXT, context))

    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens; a bigger room needs a new process."""
        if tokens > self._room:
            self.close()
            self._start(min(self._most, max(tokens, 2 * self._room)))

    def wait(self) -> None:
        """Wait until the model is loaded; ModelError where it can't be."""
        while self._owed:
            self._receive()

    def begin(self) -> int:
        """Return the number of a new run of requests that go on from one another."""
        self._run += 1
        return self._run

    def holds(self, run: int) -> bool:
        """Tell whether the last request was of this run, so that the next one goes on from it."""
        return self._run == run

    def ask(self, order: dict[str, Any], run: int) -> dict[str, Any]:
        """Send a request in llama.cpp's words; return its reply.

        Raises:
            ModelError: llama.cpp refused it, could not load the model, or has ended.
        """
        self._run = run
        self.wait()  # also for replies to requests whose sender was interrupted
        with contextlib.suppress(BrokenPipeError):  # it has ended: the reply will say why
            self._send(order)
        return self._receive()

    def close(self) -> None:
        """End the process."""
        self._finalizer()

    def _start(self, room: int) -> None:
        self._room = room
        folder = tempfile.TemporaryDirectory(prefix="znatok-")
        # it must outlive this method: the process writes to it, and its last line is the reason of a failure
        self._log: IO[bytes] = (Path(folder.name) / "log").open("w+b")
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],  # -P: the modules beside the worker are not its own
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C is for this process; it stops asking
            env={"GOMP_SPINCOUNT": SPINS, **os.environ},
        )
        self._finalizer = weakref.finalize(self, _end, self._process, self._log, folder)
        self._owed = 0
        self._send(
            {
                "model": str(self.model),
                "adapters": [str(path) for path in self.adapters],
                # llama.cpp keeps one place free and rounds down to what its kernels like
                "context": -(-(room + 1) // 256) * 256,
                "threads": torch.get_num_threads(),
                "socket": str(Path(folder.name) / "s.sock"),
            }
        )

    def _send(self, value: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(value).encode() + b"\n")
        self._owed += 1
        self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self._owed -= 1
        reply: dict[str, Any] = json.loads(line) if line else {"error": ""}
        if "error" in reply:
            raise ModelError(
                "{path}: llama.cpp can't go on: {why}; answer with --engine torch",
                path=self.model,
                why=reply["error"] or self._first_error(),
            )
        return reply

    def _first_error(self) -> str:
        """Return the first error in llama.cpp's log, which names the cause, without time stamp and function."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PARTING)  # a thread of its own writes the log, which is whole at the end only
        self._log.seek(0)
        lines = [line for line in self._log.read().decode("utf-8", "replace").split("\n") if line.strip()]
        cause = next((line for line in lines if LOGGED.match(line)), lines[0] if lines else "")
        return LOGGED.sub("", cause, count=1).strip()[:300] or _("its process has ended")


def _end(process: "subprocess.Popen[bytes]", log: IO[bytes], folder: "tempfile.TemporaryDirectory[str]") -> None:
    process.kill()  # it has nothing to save
    process.wait()
    for pipe in (process.stdin, process.stdout, log):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # what it never read
                pipe.close()
    folder.cleanup()


class LlamaCppEngine(TokenEngine):
    """One voice of a :class:`LlamaServer`.

    Answers are drawn one after another, also in :meth:`answers`: drawn side by side they would be faster together, but
    llama.cpp rounds a row differently when it is computed with others, and a prompt differently when the beginning of
    it was kept from an earlier one. So neither is done, and a text is the same alone, in a batch and after any other.
    """

    name = "llamacpp"

    def __init__(
        self,
        server: LlamaServer,
        chat: ChatFormat,
        context: int,
        banned: list[int],
        *,
        adapter: int | None,
        probabilities: bool = False,
    ) -> None:
        """Take one of a server's voices.

        Args:
            server: where the model is.
            chat: the format it was trained in.
            context: tokens it sees at most.
            banned: ids it may never say.
            adapter: the place of the adapter that speaks among the server's; None for the base.
            probabilities: keep :attr:`logprob`.
        """
        super().__init__(chat, context)
        self.logprob = math.nan
        """Of the last token among all, in nats, before anything was banned or cut off.

        NaN after a token that is a part of a character: llama.cpp tells no probabilities there.
        """
        self._server = server
        self._fixed: dict[str, Any] = {
            "n_predict": 1,
            "verbose": True,  # its only way to say ids
            "return_tokens": True,
            "logit_bias": [[token, False] for token in banned],
            "lora": [{"id": place, "scale": float(place == adapter)} for place in range(len(server.adapters))],
            "n_probs": int(probabilities),
        }

    def tokens(self, requests: Sequence[Request]) -> Iterator[tuple[int, int, Stop | None]]:
        """Yield (request, token, why it ended or None), one request after another."""
        for index, request in enumerate(requests):
            ids, limit = self._prompt(request)
            self._server.reserve(len(ids) + limit)
            run, said = self._server.begin(), list[int]()
            stop = None
            while stop is None:
                said.append(self._next(request, ids, said, run))
                stop = self._stop(said[-1], len(said), limit)
                yield index, said[-1], stop

    def _next(self, request: Request, ids: list[int], said: list[int], run: int) -> int:
        """Draw the token that follows ``ids`` and ``said``.

        Where somebody else has asked in between, what was said is read again as it was drawn, one token at a time.
        """
        reply = {}
        for known in range(len(said) if self._server.holds(run) else 0, len(said) + 1):
            order = self._fixed | options(request.sample, known) | {"seed": step_seed(request.seed, known)}
            order |= {"prompt": ids + said[:known], "cache_prompt": known > 0}
            reply = self._server.ask(order, run)
        (token,) = reply["tokens"]
        if self._fixed["n_probs"]:
            told = (reply["logprobs"] or {}).get("content")
            self.logprob = float(told[0]["logprob"]) if told else math.nan
        return int(token)


def options(sample: SampleOptions, said: int) -> dict[str, Any]:
    """Return llama.cpp's words for ``sample``, such that it draws from the distribution :func:`sampling.draw` has.

    Samplers work in the order named, and those not named (min_p, DRY, XTC ...) not at all; llama.cpp's own order puts
    the temperature last, so that top_p would not see it.

    Args:
        sample: what the user wants.
        said: tokens of the answer so far: the penalty's window ends where the prompt does.
    """
    words: dict[str, Any] = {
        "samplers": ["penalties", "temperature", "top_k", "top_p"],
        "temperature": sample.temperature,
        "top_k": sample.top_k,
        "top_p": sample.top_p,
        "repeat_penalty": sample.repetition_penalty,
        "repeat_last_n": said,
        "frequency_penalty": sample.frequency_penalty,
        "presence_penalty": sample.presence_penalty,
    }
    if sample.temperature < COLDEST:
        words |= {"samplers": ["penalties", "top_k"], "top_k": 1}
    return words


def step_seed(seed: int, step: int) -> int:
    """Return llama.cpp's seed, 32 bits, for one step of an answer; 2³² - 1 would mean «any» and never comes out."""
    digest = hashlib.blake2b(f"{seed} {step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) % ((1 << 32) - 1)
