"""Chat completions as the OpenAI API words them: requests with every limit stated, replies as plain dicts.

What znatok can't do is part of the schema as well: such a parameter may only say that it asks for nothing, so that it
is refused where a client relies on it and harmless where a client merely names it.
"""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, Tag

from znatok.config import SampleOptions
from znatok.errors import UsageError, ZnatokError, _
from znatok.generate.engine import Stop, TooLong
from znatok.serve.desk import Ended, Likely, Piece
from znatok.tokens.chat import Message, Role, dialogue

T = TypeVar("T")

TURNS = 1000  # messages of a dialogue, at most
CHOICES = 8  # answers to one request, at most
STOPS = 4  # stop strings, as OpenAI has it
LIKELIEST = 20  # tokens told in the place of one, as OpenAI has it
IMPOSSIBLE = -9999.0  # what OpenAI tells for a logarithm of nothing: JSON has no infinity

Nothing = Annotated[list[T], Field(max_length=0)]
Text = Annotated[str, StringConstraints(max_length=1_000_000)]
StopWord = Annotated[str, StringConstraints(min_length=1, max_length=200)]

EITHER = "|"
"""What pydantic calls the sides of a union in the place of a fault, where it would else tell its own type names."""


class Strict(BaseModel):
    """What holds for all parts of a request: known keys only, no NaN, no «true» for 1."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class TextPart(Strict):
    """A part of a message; text is the only kind there is."""

    type: Literal["text"]
    text: Text
    prompt_cache_breakpoint: None = None


class Turn(Strict):
    """One message. Clients send back what they were sent, so the empty fields of a reply are taken."""

    role: Literal["system", "developer", "user", "assistant"]
    content: (
        Annotated[Text, Tag(EITHER)] | Annotated[list[TextPart], Field(min_length=1, max_length=TURNS), Tag(EITHER)]
    )
    name: None = None
    refusal: None = None
    annotations: Nothing[Any] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Nothing[Any] | None = None

    @property
    def words(self) -> str:
        """Return the text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class PlainText(Strict):
    """The one response format."""

    type: Literal["text"]


class StreamOptions(Strict):
    """How to stream."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class ChatRequest(Strict):
    """``POST /v1/chat/completions``. What is left out is as ``znatok chat`` has it, or as the server was told."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    messages: Annotated[list[Turn], Field(min_length=1, max_length=TURNS)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0.01, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=32768)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=32768)] | None = None
    n: Annotated[int, Field(ge=1, le=CHOICES)] | None = None
    stop: (
        Annotated[StopWord, Tag(EITHER)]
        | Annotated[list[StopWord], Field(min_length=1, max_length=STOPS), Tag(EITHER)]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    # not OpenAI's: as vLLM and llama.cpp name them
    top_k: Annotated[int, Field(ge=0, le=10**6)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.5, le=5)] | None = None
    return_token_ids: bool | None = None
    # where torch answers
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=LIKELIEST)] | None = None
    # taken and without effect on an answer
    user: Annotated[str, StringConstraints(max_length=1000)] | None = None
    safety_identifier: Annotated[str, StringConstraints(max_length=1000)] | None = None
    prompt_cache_key: Annotated[str, StringConstraints(max_length=1000)] | None = None
    metadata: dict[str, str] | None = None
    # taken where they ask for nothing
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    response_format: PlainText | None = None
    tools: Nothing[Any] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    # not done; null comes from clients that name all there is
    audio: None = None
    function_call: None = None
    functions: None = None
    moderation: None = None
    prediction: None = None
    prompt_cache_options: None = None
    prompt_cache_retention: None = None
    reasoning_effort: None = None
    verbosity: None = None
    web_search_options: None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Return the stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def choices(self) -> int:
        """Return how many answers are wanted."""
        return self.n or 1

    @property
    def likeliest(self) -> int | None:
        """Return how many tokens to tell in the place of each that is said; None where no probabilities are wanted.

        Raises:
            UsageError: tokens are wanted, and no probabilities.
        """
        if not self.logprobs and self.top_logprobs:
            raise UsageError(
                "top_logprobs: {n} are wanted without logprobs; set logprobs true",
                n=self.top_logprobs,
                param="top_logprobs",
            )
        return self.top_logprobs or 0 if self.logprobs else None

    @property
    def wants_usage(self) -> bool:
        """Tell whether a stream shall end with its token counts.

        Raises:
            UsageError: it is said how to stream, and nothing is to be streamed.
        """
        if self.stream_options is not None and not self.stream:
            raise UsageError("stream_options: nothing is streamed; set stream true", param="stream_options")
        return self.stream_options is not None and self.stream_options.include_usage

    def sample(self, otherwise: SampleOptions) -> SampleOptions:
        """Return how an answer is drawn; what the request leaves open is as in ``otherwise``."""
        names = ("temperature", "top_p", "top_k", "repetition_penalty", "frequency_penalty", "presence_penalty")
        stated = {name: value for name in names if (value := getattr(self, name)) is not None}
        longest = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        return replace(otherwise, **stated, **({} if longest is None else {"max_new_tokens": longest}))

    def dialogue(self, system: str) -> tuple[list[Message], str]:
        """Return the messages before the last question, and that question.

        Args:
            system: the system message where the request has none.

        Raises:
            UsageError: the order of the messages makes no dialogue.
        """
        turns = list(self.messages)
        if turns[0].role in {"system", "developer"}:
            system = turns.pop(0).words
        for turn in turns:
            if turn.role in {"system", "developer"}:
                raise UsageError("messages: a {role} message can only be the first", param="messages", role=turn.role)
        if not turns or turns[-1].role != "user":
            raise UsageError("messages: the last one must be the user's", param="messages")
        if not turns[-1].words.strip():
            raise UsageError("messages: the last one is empty", param="messages")
        *before, last = dialogue("", system, [Message(Role(turn.role), turn.words) for turn in turns])[:-1]
        return before, last.text


# Replies


@dataclass
class Said:
    """One answer as it comes.

    Attributes:
        text: what was said.
        tokens: the same, the end token included.
        chances: of each token, where they are told.
        stop: why it ended; None while it goes on.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    chances: list[Sequence[Likely]] = field(default_factory=list)
    stop: Stop | None = None

    def add(self, event: Piece | Ended) -> None:
        """Take what was said next."""
        self.text += event.text
        self.tokens += event.tokens
        self.chances += event.chances
        self.stop = event.stop


class Reply:
    """What is the same in all parts of the reply to one request."""

    def __init__(self, model: str, fingerprint: str) -> None:
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def whole(self, answers: Sequence[Said], prompt: int) -> dict[str, Any]:
        """Return a reply that is not streamed."""
        choices: list[dict[str, Any]] = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": finish_reason(answer.stop),
            }
            for index, answer in enumerate(answers)
        ]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": usage(prompt, answers)}

    def chunk(self, index: int, delta: dict[str, Any], stop: Stop | None, *, with_usage: bool) -> dict[str, Any]:
        """Return a part of a stream; where usage will follow, its place is held."""
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason(stop)}
        held = {"usage": None} if with_usage else {}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice], **held}

    def closing(self, prompt: int, answers: Sequence[Said]) -> dict[str, Any]:
        """Return the part of a stream that tells the usage."""
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage(prompt, answers)}


Told = Said | Piece | Ended
"""An answer, or a part of one."""


def with_ids(reply: dict[str, Any], *answers: Told) -> dict[str, Any]:
    """Add to each choice of a reply or a part of one the tokens that were said, under the name vLLM has for them."""
    return _with(reply, [{"token_ids": list(answer.tokens)} for answer in answers])


def with_logprobs(reply: dict[str, Any], *answers: Told) -> dict[str, Any]:
    """Add to each choice of a reply or a part of one how likely its tokens were, the end token included."""
    return _with(
        reply,
        [{"logprobs": {"content": [_chances(one) for one in answer.chances], "refusal": None}} for answer in answers],
    )


def _with(reply: dict[str, Any], more: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return reply | {"choices": [choice | extra for choice, extra in zip(reply["choices"], more, strict=True)]}


def _chances(likely: Sequence[Likely]) -> dict[str, Any]:
    said, *best = [
        {
            "token": one.spelled.decode(errors="replace"),
            "logprob": max(one.logprob, IMPOSSIBLE),
            "bytes": list(one.spelled),
        }
        for one in likely
    ]
    return {**said, "top_logprobs": best}


def finish_reason(stop: Stop | None) -> str | None:
    """Return OpenAI's word for why an answer ended; None while it goes on."""
    return None if stop is None else "length" if stop is Stop.LENGTH else "stop"


def usage(prompt: int, answers: Sequence[Said]) -> dict[str, int]:
    """Return the token counts."""
    tokens = sum(len(answer.tokens) for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}


def error_body(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """Return an error as OpenAI's clients read it; half a character that a request has escaped is escaped again."""
    return {"error": {"message": _whole(message), "type": kind, "param": param and _whole(param), "code": code}}


def _whole(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def error_of(error: ZnatokError) -> dict[str, Any]:
    """Return an error of ours as OpenAI's clients read it; a field ``param`` of it names the parameter at fault."""
    if isinstance(error, TooLong):  # its own words are for a terminal, where a dialogue can be cleared
        message = _(
            "messages: the dialogue takes {n} tokens and the model sees {limit}; send fewer or shorter ones",
            **error.fields,
        )
        return error_body(message, "invalid_request_error", "context_length_exceeded", "messages")
    if not isinstance(error, UsageError):
        return error_body(str(error), "server_error")
    param = str(error.fields["param"]) if "param" in error.fields else None
    return error_body(str(error), "invalid_request_error", "invalid_value", param)
