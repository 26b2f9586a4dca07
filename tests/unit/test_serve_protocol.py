"""Which orders of messages are a dialogue."""

import pytest

from znatok.errors import UsageError
from znatok.serve.protocol import ChatRequest


def ordered(*roles):
    messages = [{"role": role, "content": f"{place} {role}"} for place, role in enumerate(roles)]
    before, last = ChatRequest(model="base", messages=messages).dialogue("")
    return [(message.role.value, message.text) for message in before], last


def test_turns_of_one_role_in_a_row_are_kept_as_two():
    """OpenAI's API takes them, and clients send them: nothing is merged or dropped."""
    assert ordered("user", "user") == ([("user", "0 user")], "1 user")
    before, last = ordered("system", "user", "assistant", "assistant", "user")
    assert [role for role, _text in before] == ["system", "user", "assistant", "assistant"]
    assert last == "4 user"


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        (("user", "assistant"), "the last one must be the user's"),
        (("system",), "the last one must be the user's"),
        (("user", "system", "user"), "a system message can only be the first"),
        (("system", "developer", "user"), "a developer message can only be the first"),
    ],
)
def test_orders_that_nobody_can_answer_are_refused(roles, said):
    with pytest.raises(UsageError, match=said):
        ordered(*roles)
