import copy
import gettext
import pickle  # noqa: TID251  # nothing is loaded that this test did not just dump

import pytest

from znatok import errors
from znatok.data.load import BadRecords
from znatok.errors import (
    DataError,
    GateError,
    Interrupted,
    ModelError,
    SystemFault,
    TrainingError,
    UsageError,
    ZnatokError,
)

TREE = [
    (UsageError, ValueError, 2),
    (DataError, ValueError, 3),
    (ModelError, ValueError, 4),
    (SystemFault, RuntimeError, 5),
    (GateError, AssertionError, 6),
    (TrainingError, ArithmeticError, 1),
    (Interrupted, Exception, 130),
]


@pytest.mark.parametrize(("kind", "standard", "code"), TREE)
def test_every_error_is_one_of_ours_and_a_standard_one_with_its_exit_code(kind, standard, code):
    error = kind("x")
    assert isinstance(error, ZnatokError)
    assert isinstance(error, standard)
    assert error.exit_code == code


@pytest.mark.parametrize(("kind", "_standard", "code"), TREE)
def test_the_docstring_draws_every_error_with_its_exit_code(kind, _standard, code):
    line = next(line for line in errors.__doc__.splitlines() if f"── {kind.__name__} " in line)
    assert str(code) in line.split(")")[1].split()


def test_a_message_is_its_template_filled_in():
    error = DataError("{path}:{line}: not JSON: {why}", path="a.jsonl", line=3, why="{braces} stay")
    assert str(error) == "a.jsonl:3: not JSON: {braces} stay"
    assert error.fields["line"] == 3


def test_a_message_without_fields_keeps_its_braces():
    assert str(UsageError("write {}")) == "write {}"


@pytest.mark.parametrize(
    "error",
    [
        UsageError("{a} and {b}", a=1, b="two"),
        Interrupted("stopped at {step}", exit_code=143, step=7),
        BadRecords("{path}: {count}", path="f", count=1, problems=(DataError("one"),)),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("again", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])  # noqa: S301
def test_an_error_survives_the_way_to_another_process(error, again):
    twin = again(error)
    assert type(twin) is type(error)
    assert str(twin) == str(error)
    assert twin.exit_code == error.exit_code


def test_an_error_is_translated_where_it_is_shown(monkeypatch):
    class Russian(gettext.NullTranslations):
        def gettext(self, message):
            return {"{n} tokens": "токенов: {n}"}.get(message, message)

    error = UsageError("{n} tokens", n=5)
    monkeypatch.setattr(errors, "catalogue", lambda language=None: Russian())
    assert str(error) == "токенов: 5"
    assert errors._("untranslated {n}", n=1) == "untranslated 1"


def test_an_unknown_language_falls_back_to_the_messages_as_written():
    assert errors.catalogue("xx").gettext("{n} tokens") == "{n} tokens"
