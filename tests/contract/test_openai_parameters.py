"""Every parameter of OpenAI's chat completions is known: obeyed or refused by name; null is as good as absent."""

import json
from pathlib import Path

import llm_comply
import pytest
from openai.types import chat
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from pydantic import ValidationError

from znatok.serve.protocol import ChatRequest, StreamOptions, TextPart, Turn

ORDER = {"model": "base", "messages": [{"role": "user", "content": "x"}]}
SPECIFICATION = Path(llm_comply.__file__).with_name("specs") / "openai_chat.json"
NOT_DONE = {name for name, field in ChatRequest.model_fields.items() if field.annotation is type(None)}


def of_specification():
    """Return the parameters by the API's published specification."""
    schemas = json.loads(SPECIFICATION.read_text(encoding="utf-8"))["components"]["schemas"]

    def of(schema):
        schema = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        return set(schema.get("properties", ())).union(*map(of, schema.get("allOf", ())))

    return of({"$ref": "CreateChatCompletionRequest"})


PARAMETERS = of_specification() | set(CompletionCreateParamsBase.__annotations__)


def test_the_lists_are_found():
    assert {"messages", "model", "functions", "reasoning_effort", "top_p"} <= of_specification()
    assert {"verbosity", "prompt_cache_key"} <= PARAMETERS


@pytest.mark.parametrize("name", sorted(PARAMETERS - set(ORDER)))
def test_null_is_as_good_as_absent(name):
    """Clients that serialise every field were refused for a parameter they did not use."""
    assert ChatRequest(**ORDER, **{name: None}) == ChatRequest(**ORDER)


@pytest.mark.parametrize("value", [{}, [], "", "none", 0, False, {"type": "x"}], ids=repr)
@pytest.mark.parametrize("name", sorted(NOT_DONE))
def test_what_is_not_done_is_refused_whatever_it_says(name, value):
    with pytest.raises(ValidationError) as caught:
        ChatRequest(**ORDER, **{name: value})
    assert [fault["loc"] for fault in caught.value.errors()] == [(name,)]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Turn, chat.ChatCompletionUserMessageParam),
        (Turn, chat.ChatCompletionSystemMessageParam),
        (Turn, chat.ChatCompletionDeveloperMessageParam),
        (Turn, chat.ChatCompletionAssistantMessageParam),
        (TextPart, chat.ChatCompletionContentPartTextParam),
        (StreamOptions, chat.ChatCompletionStreamOptionsParam),
    ],
)
def test_the_parts_of_a_request_have_the_fields_that_clients_name(ours, theirs):
    assert set(theirs.__annotations__) <= set(ours.model_fields)
