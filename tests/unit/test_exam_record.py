"""Records: what is kept, and what is refused rather than judged by questions that were never asked."""

import json
from dataclasses import replace

import pytest

from znatok.errors import DataError, SystemFault, UsageError
from znatok.exam.arms import Store
from znatok.exam.items import ChoiceItem, OpenItem, PairItem
from znatok.exam.record import About, Record, asked, curve, is_record, read_records, together, write_record

ITEM = OpenItem("q1", "T1", "", "numeric", (), "a", "Сколько?", "200", (), (), "answer")
CHOICE = ChoiceItem("c1", "T1", "", (), "a", "Что?", ("сопло", "стол"), 0)
PAIR = PairItem("p1", "T1", "", (), "a", "", "Как?", "так", "эдак")
ABOUT = About(
    voice="base", run="", model_name="m", base_sha256="ab", adapter_sha256=None, engine="torch", dtype="int8",
    train_seed=None, data_path=None, data_sha256=None, options=None, knowledge_sha256="k",
    sampling={"temperature": 0.0}, seed=42, machine={"threads": 2},
)  # fmt: skip
LINE = {"kind": "open", "arm": "base", "id": "q1", "asked": "Сколько?", "text": "200 °C", "tokens": 5, "stop": "end"}
BASE = Record(ABOUT, [LINE, {"kind": "prose", "id": "ru", "sha256": "x", "windows": [[3.0, 8]]}])
TUNED = Record(replace(ABOUT, voice="tuned", run="s1", train_seed=1), [{**LINE, "arm": "tuned"}])


def test_what_is_written_is_read_back(tmp_path):
    for record in (BASE, TUNED):
        write_record(record, tmp_path / record.file_name)
    found = read_records(tmp_path)
    assert [(one.about, one.lines) for one in found] == [(one.about, one.lines) for one in (BASE, TUNED)]
    assert [one.about.run for one in read_records(tmp_path / "s1.jsonl")] == ["s1"]
    old = json.loads((tmp_path / "base.jsonl").read_text(encoding="utf-8").split("\n")[0])
    del old["system"], old["items_sha256"]
    (tmp_path / "old.jsonl").write_text(json.dumps(old), encoding="utf-8")
    assert read_records(tmp_path / "old.jsonl")[0].about == ABOUT  # of before these two were kept
    assert is_record(tmp_path)
    assert is_record(tmp_path / "s1.jsonl")
    assert found[0].texts() == [{"text": "ru", "arm": "base", "run": "", "windows": [[3.0, 8]]}]


def test_an_answer_may_hold_any_line_end_but_the_files_own(tmp_path):
    text = "200\u2028°C\u2029и\x85всё\nтут"
    record = Record(ABOUT, [{**LINE, "text": text}])
    write_record(record, tmp_path / "base.jsonl")
    assert read_records(tmp_path / "base.jsonl")[0].lines[0]["text"] == text
    Store(tmp_path / "measured.jsonl").put("key", text)
    assert Store(tmp_path / "measured.jsonl").known == {"key": text}


def test_what_was_measured_before_a_crash_is_kept(tmp_path):
    path = tmp_path / "measured.jsonl"
    Store(path).put("first", "сопло")
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: whole.index("о".encode()) + 1])  # cut within a letter
    assert Store(path).known == {"first": "сопло"}


def test_a_cache_that_can_not_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemFault, match="can't be written"):
        Store(tmp_path / "file" / "measured.jsonl").put("key", 1)


def test_a_run_directory_is_no_record(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "run.toml").write_text("", encoding="utf-8")
    assert not is_record(tmp_path)
    assert not is_record(tmp_path / "nowhere")


def test_everything_a_model_is_shown_is_what_was_asked():
    assert asked(ITEM) == "Сколько?"
    assert asked(CHOICE) == "Что? | сопло | стол"
    assert asked(PAIR) == "Как? | так | эдак"


def test_other_words_are_another_question():
    assert BASE.of("open", "base", ITEM) == LINE
    for item, arm in ((replace(ITEM, question="Почём?"), "base"), (replace(ITEM, id="q2"), "base"), (ITEM, "tuned")):
        with pytest.raises(DataError, match=r"holds no answer to q"):
            BASE.of("open", arm, item)


@pytest.mark.parametrize(
    "text",
    ["", "[]\n", "{}\n", "не json\n", '{"kind": "about", "form": 99}\n', '{"kind": "about", "form": 1}\n', "7\n"],
)
def test_what_is_no_record_is_refused(tmp_path, text):
    path = tmp_path / "x.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"x\.jsonl: not a record"):
        read_records(path)
    with pytest.raises(DataError, match="can't be read"):
        read_records(tmp_path / "nowhere.jsonl")


def test_only_what_is_alike_is_compared():
    base, tuned = together([TUNED, BASE])
    assert (base, tuned) == (BASE, [TUNED])
    for lonely in ([BASE], [TUNED]):
        with pytest.raises(UsageError, match="comparison needs"):
            together(lonely)
    for key, value in (("base_sha256", "cd"), ("dtype", "float32"), ("knowledge_sha256", None), ("sampling", {})):
        other = Record(replace(TUNED.about, **{key: value}), TUNED.lines)
        with pytest.raises(UsageError, match=key):
            together([BASE, other])
    with pytest.raises(UsageError, match="s1: two runs"):
        together([BASE, TUNED, TUNED])


def read(prose, about=ABOUT):
    """Return a record of a text read, of (SHA-256, windows)."""
    digest, windows = prose
    return Record(about, [{"kind": "prose", "id": "ru", "sha256": digest, "windows": windows}])


@pytest.mark.parametrize("other", [("y", [[3.0, 8]]), ("x", [[3.0, 8], [2.0, 5]])], ids=["text", "windows"])
def test_windows_of_two_texts_are_no_pairs(other):
    """They were compared one by one: nonsense was shown, or there were too few of them and an IndexError came."""
    base = read(("x", [[3.0, 8]]))
    assert together([base, read(("x", [[2.5, 8]]), TUNED.about)])
    with pytest.raises(UsageError, match=r's1: prose "ru" is another text.*leave that record out'):
        together([base, read(other, TUNED.about)])


def heard(message, **about):
    """Return a record of what was said under a system message."""
    return Record(replace(ABOUT, system=message, **about), [])


def test_one_system_message_is_heard_by_all():
    """Runs trained with different --system were averaged as seeds of one recipe, and held against any base's record."""
    one, other = heard("Отвечай кратко.", voice="tuned", run="s1"), heard("Отвечай\nстихами.", voice="tuned", run="s2")
    assert together([heard("Отвечай кратко."), one])
    assert together([heard(None), one])  # a record of before says nothing of it
    with pytest.raises(
        UsageError, match=r"s2: system is 'Отвечай\\nстихами.', that of the base's record 'Отвечай кратко"
    ):
        together([heard("Отвечай кратко."), other])
    with pytest.raises(UsageError, match=r"s2: system is .*, in s1 .*differ in their seed only"):
        together([heard(None), one, other])


def trained(run, data="d", **options):
    """Return the record of a run that was trained so."""
    about = replace(TUNED.about, run=run, data_sha256=data, options={"learning_rate": 2e-4, "seed": 1, **options})
    return Record(about, TUNED.lines)


def test_runs_of_one_recipe_may_differ_in_their_seed_and_in_what_changes_nothing():
    runs = [trained("s1"), trained("s2", seed=2, save_steps=5), TUNED]  # of the last nobody knows how it was trained
    assert together([BASE, *[replace(run, about=replace(run.about, run=str(i))) for i, run in enumerate(runs)]])


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (trained("s2", learning_rate=4e-4), "s2: learning_rate is 0.0004, in s1 0.0002; .*seed only"),
        (trained("s2", data="e"), "s2: data_sha256 is e, in s1 d"),
    ],
    ids=["recipe", "data"],
)
def test_runs_of_two_recipes_have_no_mean(other, said):
    with pytest.raises(UsageError, match=said):
        together([BASE, trained("s1"), other])


def test_a_training_curve_keeps_what_is_drawn():
    rows = [{"step": 1, "epoch": 0.5, "loss": 2.0, "tokens": 9}, {"step": 1, "val_loss": 1.0}, {"other": 1}]
    lines = [{"kind": "loss", "step": 1, "epoch": 0.5, "loss": 2.0}, {"kind": "loss", "step": 1, "val_loss": 1.0}]
    assert curve(rows) == lines
    assert Record(ABOUT, lines).losses() == lines
