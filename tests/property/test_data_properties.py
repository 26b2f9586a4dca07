import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from znatok.data.check import check_file
from znatok.data.clean import duplicates, leaks
from znatok.data.load import read_pairs, scan
from znatok.data.schema import FORBIDDEN, Pair, is_visible
from znatok.data.split import split
from znatok.errors import ZnatokError
from znatok.files import write_jsonl

in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "data.jsonl"


# Bytes that come near to being a file of pairs, so that more than the first check is reached
pieces = st.sampled_from(
    [
        b'{"prompt": "a", "response": "b"}',
        b"\n",
        b"\r",
        b"\r\n",
        b"{",
        b"}",
        b"[",
        b'"',
        b",",
        b":",
        b"\\ud800",
        b"\\u0000",
    ]
    + [
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\x00",
        b"NaN",
        b"1e999",
        b"9" * 5000,
        b'"prompt"',
        b'"response"',
        b"null",
    ]
    + ["Сопло греют".encode(code) for code in ("utf-8", "cp1251", "koi8-r", "utf-16-le")]
)
contents = st.binary(max_size=300) | st.lists(pieces | st.binary(max_size=4), max_size=30).map(b"".join)


@in_one_folder
@given(content=contents, skip_bad=st.booleans())
def test_the_reader_raises_nothing_but_its_own_errors_and_these_can_be_shown(file, content, skip_bad):
    file.write_bytes(content)
    try:
        data = read_pairs(file, skip_bad=skip_bad)
    except ZnatokError as error:
        lines = str(error).split("\n")
    else:
        assert data.pairs
        assert skip_bad or not data.problems
        lines = check_file(file).lines()
    assert all(line.isprintable() for line in lines)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["\ud800", "\x1b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(["prompt", "response", "topic", "fact_ids", "source", "id", "instruction", "x"])


@in_one_folder
@given(records=st.lists(st.dictionaries(keys, json_values | st.just("text")) | json_values, min_size=1, max_size=4))
def test_every_json_value_is_a_pair_or_a_problem_of_its_line(file, records):
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    try:
        data = scan(file)
    except ZnatokError as error:
        found = str(error)
    else:
        lines = [pair.line for pair in data.pairs] + [problem.fields["line"] for problem in data.problems]
        found = sorted(lines)
    assert found == list(range(1, len(records) + 1)) or "one JSON array" in found or "not JSON Lines" in found


def is_kept(text):
    """Whether a text is one that the reader takes as it is."""
    return text == text.strip() and is_visible(text) and not FORBIDDEN.search(text)


texts = st.text(min_size=1, max_size=40).map(str.strip).filter(is_kept)
labels = st.text(max_size=10).map(str.strip).filter(lambda text: not FORBIDDEN.search(text))
fact_ids = st.lists(labels.filter(bool), unique=True, max_size=3).map(tuple)
any_pairs = st.builds(Pair, prompt=texts, response=texts, topic=labels, fact_ids=fact_ids, source=labels)


@in_one_folder
@given(pairs=st.lists(any_pairs, min_size=1, max_size=5))
def test_what_is_written_is_read_back(file, pairs):
    rows = [
        {"prompt": p.prompt, "response": p.response, "topic": p.topic, "fact_ids": p.fact_ids, "source": p.source}
        for p in pairs
    ]
    write_jsonl(file, rows)
    expected = [Pair(p.prompt, p.response, p.topic, p.fact_ids, line, p.source) for line, p in enumerate(pairs, 1)]
    assert list(read_pairs(file).pairs) == expected


# Few letters, so that copies, near copies and shared facts are common
near_texts = st.text("абв ", min_size=1, max_size=3) | st.builds(
    lambda start, end: start + "Сопло греют до двухсот градусов, а стол — до шестидесяти" + end,
    st.text("абвгд", max_size=4),
    st.text("абвгд", max_size=4),
)
close_pairs = st.lists(
    st.builds(
        Pair,
        prompt=near_texts.filter(str.strip),
        response=near_texts.filter(str.strip),
        fact_ids=st.lists(st.integers(0, 30).map(str), max_size=2).map(tuple),
    ),
    max_size=16,
)


@settings(deadline=None)
@given(pairs=close_pairs, share=st.floats(0, 0.5), seed=st.integers(0, 2**31 - 1))
def test_a_split_loses_nothing_and_shares_nothing(pairs, share, seed):
    pairs = [Pair(p.prompt, p.response, p.topic, p.fact_ids, line) for line, p in enumerate(pairs, 1)]
    parts = split(pairs, share, seed)
    assert sorted(pair.line for pair in (*parts.train, *parts.validation)) == list(range(1, len(pairs) + 1))
    assert leaks(parts.train, parts.validation) == []
    assert leaks(parts.validation, parts.train) == []
    assert len(parts.validation) <= 2 * max(1, round(share * len(pairs)))
    assert parts.train or not pairs
    wanted = len(pairs) >= 3 and share > 0
    assert not wanted or parts.notes or len(parts.validation) == max(1, round(share * len(pairs)))


@settings(deadline=None)
@given(pairs=close_pairs, share=st.floats(0.01, 0.5), order=st.randoms(use_true_random=False))
def test_a_split_does_not_depend_on_the_order_of_the_file(pairs, share, order: random.Random):
    shuffled = pairs.copy()
    order.shuffle(shuffled)

    def contents_of(side):
        return sorted((pair.prompt, pair.response) for pair in side)

    one, other = split(pairs, share, 42), split(shuffled, share, 42)
    assert contents_of(one.train) == contents_of(other.train)
    assert contents_of(one.validation) == contents_of(other.validation)


@settings(deadline=None)
@given(pairs=close_pairs)
def test_without_the_duplicates_there_are_no_duplicates(pairs):
    pairs = [Pair(p.prompt, p.response, p.topic, p.fact_ids, line) for line, p in enumerate(pairs, 1)]
    copies = {duplicate.second for duplicate in duplicates(pairs)}
    rest = [pair for pair in pairs if pair.line not in copies]
    assert duplicates(rest) == []
    assert bool(rest) == bool(pairs)
