"""Options: whatever is typed or stands in a file, they are within their limits or it is said in one line."""

import dataclasses
import math

import hypothesis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from znatok.config import TrainConfig, read_group
from znatok.errors import UsageError
from znatok.scripts import train_config, train_parser

FIELDS = [field for group in dataclasses.fields(TrainConfig) for field in dataclasses.fields(group.default)]
NAMES = [field.name for field in FIELDS]
values = (
    st.integers().map(str)
    | st.floats().map(str)
    | st.sampled_from(
        ["true", "нет", "auto", "best", "", " ", "1e-4 ", "0x10", "-", "--", "１２", "1_000", "\x00", "a\nb"]
    )
    | st.text(max_size=8)
)
words = st.lists(
    st.sampled_from(NAMES).map("--{}".format)
    | st.sampled_from(NAMES).map(lambda name: f"--{name.replace('_', '-')}")
    | st.text("-_abelnorst", max_size=12).map("--{}".format)
    | values,
    max_size=6,
)


def within_limits(config):
    """Every value is of its type, a finite number, and one of those allowed: what the group itself demands."""
    for group in dataclasses.fields(config):
        options = getattr(config, group.name)
        assert type(options)(**dataclasses.asdict(options)) == options
        for value in dataclasses.asdict(options).values():
            assert not isinstance(value, float) or math.isfinite(value)


@given(words=words)
def test_words_are_options_within_their_limits_or_a_usage_error(words):
    try:
        config = train_config(train_parser("znatok train").parse_args(words), words)
    except SystemExit as error:  # --help, which argparse ends so
        assert error.code == 0  # noqa: PT017  # SystemExit is no failure to be raised
    except UsageError as error:
        hypothesis.event(error.template)
    else:
        within_limits(config)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "run.toml"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stated=st.dictionaries(
        st.sampled_from(FIELDS),
        st.none() | st.booleans() | st.integers(-10, 2000) | st.floats(0, 2) | st.sampled_from(["a", "int8", "best"]),
        max_size=6,
    )
)
def test_options_that_are_taken_are_written_and_read_back_the_same(file, stated):
    groups = {}
    for field, value in stated.items():
        owner = next(group for group in dataclasses.fields(TrainConfig) if field in dataclasses.fields(group.default))
        groups.setdefault(owner, {})[field.name] = value
    try:
        config = TrainConfig(
            **{owner.name: read_group(file, type(owner.default), values) for owner, values in groups.items()}
        )
    except UsageError:
        return
    file.write_text(config.to_toml(), encoding="utf-8")
    assert TrainConfig.from_toml(file) == config


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_any_file_is_options_or_a_usage_error(file, content):
    file.write_bytes(content)
    try:
        config = TrainConfig.from_toml(file)
    except UsageError as error:
        hypothesis.event(error.template)
    else:
        within_limits(config)
