"""The examination, whole, on a tiny model: every arm asked, everything written, nothing asked twice."""

import json

import pytest

import helpers
import tiny
from znatok.cli import main
from znatok.config import ModelOptions
from znatok.data.schema import Pair
from znatok.exam import examine as module
from znatok.exam.examine import evaluate, plan_examination, write_proof
from znatok.exam.likelihood import bits_per_byte, choose, prefer
from znatok.exam.proof import prove
from znatok.expert import Voice, open_expert
from znatok.files import read_json, read_jsonl
from znatok.model.score import answer_losses, group_losses
from znatok.tokens.encode import EncodeRule, encode_pairs

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

NUMBER = {"kind": "number", "entity": "PLA", "property": "nozzle_temp", "lo": 180, "hi": 220, "unit": "°C"}
QUESTIONS = [
    {"id": "q1", "split": "T1", "question": "Сколько греть сопло?", "claims": [NUMBER], "cluster": "a"},
    {"id": "q2", "split": "T1", "question": "А стол?", "claims": [{"kind": "term", "any": ["стол"]}], "cluster": "b"},
    {"id": "q3", "split": "T4", "question": "А Брямс-9?", "claims": [], "expects": "abstain", "type": "abstain"},
    {"id": "c1", "split": "T1", "question": "Что греть?", "options": ["сопло", "кота", "дом", "чай"], "answer": 0},
    {"id": "p1", "split": "T1", "question": "Что это?", "true": "Сопло горячее.", "false": "Сопло холодное."},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with questions, knowledge and prose."""
    path = tmp_path_factory.mktemp("exam")
    (path / "questions.jsonl").write_text(
        "".join(json.dumps(q, ensure_ascii=False) + "\n" for q in QUESTIONS), encoding="utf-8"
    )
    (path / "facts.jsonl").write_text('{"claim": "Сопло для PLA греют до 200 °C."}\n', encoding="utf-8")
    (path / "prose.txt").write_text("Лодку дед красил весной. " * 20 + "\n\n***\n\nБыло тихо.", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(tiny_dir, folder):
    """Return a trained run."""
    data = tiny.write_pairs(folder / "pairs.jsonl")
    return helpers.trained(tiny_dir, data, folder / "run", learning_rate=0.02, data_options={"val_share": 0})


def planned(folder, **options):
    questions, data = folder / "questions.jsonl", folder / "pairs.jsonl"
    what = plan_examination([questions], None, folder / "facts.jsonl", data, **options)
    sample = module.SampleOptions(temperature=0.0, max_new_tokens=6)
    return module.Examination(**{**vars(what), "sample": sample, "prose": {"ru": folder / "prose.txt"}})


@pytest.fixture(scope="module")
def result(run, folder):
    """Return what an examination measured."""
    return evaluate([run], planned(folder), "float32")


def test_every_arm_is_asked_every_question(result):
    asked = {(row["arm"], row["id"]) for row in result.rows if row["kind"] == "open"}
    arms = ("base", "prompted", "base+retrieval", "tuned", "tuned+retrieval")
    assert asked == {(arm, q["id"]) for arm in arms for q in QUESTIONS[:3]}
    weighed = {(row["arm"], row["id"]) for row in result.rows if row["kind"] != "open"}
    assert weighed == {(arm, name) for arm in ("base", "tuned") for name in ("c1", "p1")}
    assert {row["arm"] for row in result.texts} == {"base", "tuned"}


def test_what_was_measured_is_not_asked_again(result, run, folder, monkeypatch):
    def forbidden(*_args, **_kwargs):
        raise AssertionError("asked again")

    for name in ("choose", "prefer", "bits_per_byte"):
        monkeypatch.setattr(module, name, forbidden)
    monkeypatch.setattr("znatok.generate.torch_engine.TorchEngine.answers", forbidden)
    again = evaluate([run], planned(folder), "float32")
    assert again.rows == result.rows
    assert again.facts["answers_sha256"] == result.facts["answers_sha256"]


def test_asked_afresh_the_answers_are_the_same(result, run, folder):
    again = evaluate([run], planned(folder, fresh=True), "float32")
    assert again.facts["answers_sha256"] == result.facts["answers_sha256"]
    assert again.rows == result.rows


def test_everything_is_written(result, tmp_path):
    write_proof(tmp_path, result, prove(result.rows, result.texts, 1))
    names = {path.name for path in tmp_path.iterdir()}
    assert {"items.jsonl", "proof.json", "proof.en.md", "report.ru.html", "forest.en.png", "verdicts.ru.png"} <= names
    stored = read_json(tmp_path / "proof.json")
    assert stored["facts"]["runs"][0]["run"] == "run"
    assert read_jsonl(tmp_path / "items.jsonl") == result.rows
    page = (tmp_path / "report.en.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count('id="q1-i"') == 1
    assert 'href="#T1"' in page


def test_hostile_answers_stay_text(result, tmp_path):
    rows = [dict(row, text="<script>alert(1)</script>\x1b[2J") if "text" in row else row for row in result.rows]
    changed = module.Result(rows, result.texts, result.facts)
    write_proof(tmp_path, changed, prove(rows, result.texts, 1))
    page = (tmp_path / "report.ru.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "\x1b" not in page


def test_a_new_adapter_is_measured_anew(result, run, folder, tiny_dir):
    other = helpers.trained(
        tiny_dir, folder / "pairs.jsonl", folder / "other", learning_rate=0.02, seed=7, data_options={"val_share": 0}
    )
    both = evaluate([run, other], planned(folder), "float32")
    assert {row["run"] for row in both.rows if row["arm"] == "tuned"} == {"run", "other"}
    assert sum(row["arm"] == "base" for row in both.rows) == sum(row["arm"] == "base" for row in result.rows)
    margins = {row["run"]: row["margin"] for row in both.rows if row["kind"] == "pair" and row["arm"] == "tuned"}
    assert margins["run"] != margins["other"]


def test_likelihoods_are_those_of_the_model(run, folder):
    expert = open_expert(ModelOptions(model_name="", dtype="float32"), run, "")
    what = planned(folder)
    with expert.weights(Voice.TUNED) as model:
        pairs = [Pair(q["question"], text) for q in QUESTIONS[3:4] for text in q["options"]]
        encoded = encode_pairs(pairs, expert.chat, EncodeRule(expert.system, 512)).examples
        losses = [loss for loss, _n in answer_losses(model, encoded)]
        assert [x for x, _n in group_losses(model, [encoded])[0]] == pytest.approx(losses, rel=1e-5)
        (chosen,) = choose(model, expert.chat, expert.system, what.items.choices, lambda _n: None)
        assert chosen.right_whole == (min(losses) == losses[0])
        assert 0 < chosen.probability <= chosen.confidence <= 1
        (liked,) = prefer(model, expert.chat, expert.system, what.items.pairs, lambda _n: None)
        true, false = (Pair("Что это?", text) for text in ("Сопло горячее.", "Сопло холодное."))
        framed = encode_pairs([true, false], expert.chat, EncodeRule(expert.system, 512)).examples
        (right, _n), (wrong, _m) = answer_losses(model, framed)
        assert liked.margin == pytest.approx(wrong - right, rel=1e-4)
        windows = bits_per_byte(model, expert.chat, folder / "prose.txt")
    assert sum(size for _bits, size in windows) <= len((folder / "prose.txt").read_bytes())
    assert all(bits > 0 for bits, _size in windows)


def test_the_verb_says_what_is_wrong(run, folder, capsys, tmp_path):
    assert main(["eval", str(run.path), "--questions", str(tmp_path / "no.jsonl")]) == 3
    assert "no.jsonl" in capsys.readouterr().err
    assert main(["eval", str(run.path)]) == 3
    assert "--questions" in capsys.readouterr().err
    assert main(["eval", str(run.path), "--limit", "-1"]) == 2
    assert main(["eval", str(tmp_path / "nowhere")]) == 4


def test_the_verb_prints_its_table(run, folder, capsys):
    words = [
        "eval",
        str(run.path),
        "--questions",
        str(folder / "questions.jsonl"),
        "--dtype",
        "float32",
        "--limit",
        "1",
    ]
    assert main(words) == 0
    assert "| P1 knows more" in capsys.readouterr().out
    assert (run.path / "eval" / "report.ru.html").is_file()
