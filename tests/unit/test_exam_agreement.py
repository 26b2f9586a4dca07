"""Blinded answers and the agreement of a person with the rules."""

import csv
import io

import pytest

from znatok.errors import DataError
from znatok.exam.agreement import agreement, blind_sheet, kappa, key_of, read_labels, write_sheet

ROWS = [
    {
        "kind": "open", "arm": arm, "run": "" if arm == "base" else "s1", "id": f"q{i}", "split": "T1",
        "text": f"ответ {arm} {i}",
        "question": f"вопрос {i}?", "reference": "эталон", "verdict": "correct" if i % 3 else "incorrect",
    }
    for arm in ("base", "tuned", "prompted")
    for i in range(40)
]  # fmt: skip


def test_the_sheet_is_balanced_and_tells_nothing():
    lines = list(csv.DictReader(io.StringIO(blind_sheet(ROWS, 1))))
    by_key = {key_of(row): row for row in ROWS}
    arms = [by_key[line["key"]]["arm"] for line in lines]
    assert (len(lines), arms.count("base"), arms.count("tuned")) == (60, 30, 30)
    assert set(lines[0]) == {"key", "question", "reference", "answer", "label"}
    assert arms != sorted(arms)
    assert blind_sheet(ROWS, 1) == blind_sheet(ROWS[::-1], 1)
    assert blind_sheet(ROWS, 2) != blind_sheet(ROWS, 1)


def test_a_labelled_sheet_gives_the_agreement(tmp_path):
    path = tmp_path / "sheet.csv"
    write_sheet(ROWS, path, 1)
    lines = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    verdicts = {key_of(row): row["verdict"] for row in ROWS}
    for number, line in enumerate(lines):
        line["label"] = "" if number == 0 else "Partial" if number < 6 else verdicts[line["key"]]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    found = agreement(ROWS, read_labels(path), 1)
    assert found.n == 59
    assert found.same == pytest.approx(54 / 59)
    assert found.kappa.low < found.kappa.value < found.kappa.high <= 1
    assert sum(found.confusion["partial"].values()) == 5


@pytest.mark.parametrize(
    ("pairs", "wanted"),
    [
        ([("a", "a"), ("b", "b")], 1.0),
        ([("a", "b"), ("b", "a")], -1.0),
        ([("a", "a"), ("a", "b"), ("b", "a"), ("b", "b")], 0.0),
        ([("a", "a")], 1.0),
    ],
)
def test_kappa(pairs, wanted):
    assert kappa(pairs) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("text", "why"),
    [("a,b\n1,2\n", "expected the columns"), ("key,label\nx,good\n", r"sheet.csv:2: label good")],
)
def test_bad_sheets_are_refused(tmp_path, text, why):
    (tmp_path / "sheet.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=why):
        read_labels(tmp_path / "sheet.csv")


def test_labels_of_another_examination_are_refused():
    with pytest.raises(DataError, match="no label belongs"):
        agreement(ROWS, {"0" * 16: "correct"}, 1)
    with pytest.raises(DataError, match="needs 30 answers"):
        blind_sheet(ROWS[:20], 1)
