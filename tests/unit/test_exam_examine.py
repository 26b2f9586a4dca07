"""The examination, whole, on a tiny model: every arm asked, everything written, nothing asked twice."""

import json
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

import helpers
import tiny
from znatok.cli import main
from znatok.config import ModelOptions, SampleOptions
from znatok.data.schema import Pair
from znatok.eval.labels import labels, number
from znatok.exam import sitting
from znatok.exam.arms import identity
from znatok.exam.examine import Result, evaluate, judge_records, write_proof
from znatok.exam.items import read_items
from znatok.exam.likelihood import choose, prefer
from znatok.exam.plan import Examination, plan_examination
from znatok.exam.proof import Proof, prove
from znatok.exam.publish import MARKS, write_card
from znatok.exam.record import read_records, write_record
from znatok.exam.report import render_proof
from znatok.exam.text import claims_table, runs_table
from znatok.expert import Voice, open_expert
from znatok.files import read_json, read_jsonl, sha256
from znatok.model.score import answer_losses, bits_per_byte, group_losses
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
    sample = SampleOptions(temperature=0.0, max_new_tokens=6)
    return Examination(**{**vars(what), "sample": sample, "prose": {"ru": folder / "prose.txt"}})


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
        monkeypatch.setattr(sitting, name, forbidden)
    monkeypatch.setattr("znatok.generate.torch_engine.TorchEngine.answers", forbidden)
    again = evaluate([run], planned(folder), "float32")
    assert again.rows == result.rows
    assert again.facts["answers_sha256"] == result.facts["answers_sha256"]


def test_asked_afresh_the_answers_are_the_same(result, run, folder):
    again = evaluate([run], planned(folder, fresh=True), "float32")
    assert again.facts["answers_sha256"] == result.facts["answers_sha256"]
    assert again.rows == result.rows


def test_everything_is_written(result, run):
    proof = prove(result.rows, result.texts, 1)
    write_proof(run.path / "eval", result, proof)
    folder = run.path / "eval"
    names = {path.name for path in folder.iterdir()}
    assert {"items.jsonl", "proof.json", "proof.en.md", "report.ru.html", "forest.en.png", "verdicts.ru.png"} <= names
    assert "loss-1.en.png" in names
    stored = read_json(folder / "proof.json")
    assert stored["facts"]["runs"][0]["run"] == "run"
    assert stored["facts"]["runs"][0]["train_seed"] == run.read_manifest()["seed"] == 42
    assert Proof.from_json(stored) == proof
    assert read_jsonl(folder / "items.jsonl") == result.rows
    page = (folder / "report.en.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count('id="q1-i"') == 1
    assert 'href="#T1"' in page


class Page(HTMLParser):
    """The links, ids and table rows of a page; a row is its text and its links."""

    def __init__(self, text):
        super().__init__()
        self.links, self.ids, self.rows = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        if tag == "tr":
            self.rows.append(["", []])
        elif tag == "a":
            self.links.append(values["href"])
            self.rows[-1][1].append(values["href"])

    def handle_data(self, data):
        if self.rows:
            self.rows[-1][0] += data


@pytest.fixture(scope="module")
def page(run, folder):
    """Return the report of an examination with everything in it: every kind, a split's own pairs, two runs."""
    more = [{**QUESTIONS[4], "id": "p2", "split": "control"}, {**QUESTIONS[0], "id": "q5", "split": "T5"}]
    path = folder / "all.jsonl"
    path.write_text("".join(json.dumps(q) + "\n" for q in (*QUESTIONS, *more)), encoding="utf-8")
    what = Examination(**{**vars(planned(folder)), "items": read_items([path])})
    base, tuned = evaluate([run], what, "float32").records
    twice = judge_records([base, tuned, replace(tuned, about=replace(tuned.about, run="other"))], what)
    proof = prove(twice.rows, twice.texts, 1)
    return proof, Page(render_proof(proof, twice.rows, twice.texts, twice.facts, {}, "en"))


def test_every_link_of_the_report_has_its_end(page):
    """Choices, pairs and prose had no log, «control» no heading, and their numbers led to open questions or nowhere."""
    _proof, shown = page
    assert {link for link in shown.links if not link.startswith("#")} == set()
    assert {link[1:] for link in shown.links} <= set(shown.ids)
    assert {"T1", "T1-choices", "T1-pairs", "control-pairs", "prose-ru"} <= {link[1:] for link in shown.links}
    twice = [name for name, count in Counter(shown.ids).items() if count > 1]
    assert twice == []


def test_every_claim_leads_to_the_log_it_is_made_from(page):
    proof, shown = page
    words = labels("en")
    ends = {"P1": "T1", "P5 choices": "T1-choices", "P5 pairs": "T1-pairs", "P7 prose ru": "prose-ru"}
    ends |= {"P7 control pairs": "control-pairs", "P3": "T4"}
    assert ends.keys() <= {claim.key for claim in proof.claims}
    for claim in proof.claims:
        name = words[f"proof.{claim.key}"]
        rows = [links for text, links in shown.rows if text.startswith(f"{name} ")]
        assert len(rows) >= 1, claim.key
        assert all(rows), claim.key  # in the claims, in what was forgotten, and run by run
        if claim.key in ends:
            assert all(f"#{ends[claim.key]}" in links for links in rows), claim.key


def test_the_report_shows_what_was_weighed(result, page):
    _proof, shown = page
    (choice,) = [row for row in result.rows if row["kind"] == "choice" and row["arm"] == "base"]
    (option,) = [text for text, _links in shown.rows if text.startswith("сопло")]
    assert option.startswith(f"сопло{choice['probability']:.2f} (")
    assert ("✓" in option.split(")")[1]) == choice["right"]
    (pair,) = [row for row in result.rows if row["kind"] == "pair" and row["arm"] == "base"]
    assert any(
        text.startswith(f"Сопло горячее.{number(pair['margin'], 2, 'en', sign=True)} (") for text, _ in shown.rows
    )
    assert any("mixed_script" in text or "mixed" in text for text, _links in shown.rows)


def test_the_model_card_holds_the_same_numbers(result, run):
    proof = prove(result.rows, result.texts, 1)
    write_card(run.path, proof, result.facts)
    card = ModelCard.load(run.path / "README.md")
    found = {one.metric_name: one for one in card.data.eval_results}
    assert len(found) == len([claim for claim in proof.claims if claim.after.value is not None])
    claim = next(claim for claim in proof.claims if claim.key == "P6 stop" and claim.b == "tuned")
    shown = found["P6 ends its answers, tuned"]
    assert shown.metric_value == round(claim.after.value, 4)
    assert shown.metric_args["verdict"] == str(claim.verdict)
    assert claims_table(proof, "en") in card.text
    (run.path / "README.md").write_text("мой текст", encoding="utf-8")
    write_card(run.path, proof, result.facts)
    assert (run.path / "README.md").read_text(encoding="utf-8") == "мой текст"  # a card of one's own stays
    (run.path / "README.md").unlink()


def test_a_record_is_judged_again_without_a_model(result, run, folder, tmp_path, monkeypatch, capsys):
    for record in result.records:
        write_record(record, tmp_path / record.file_name)
    again = judge_records(read_records(tmp_path), planned(folder))
    assert again.rows == result.rows
    assert again.texts == result.texts
    assert again.facts == json.loads(json.dumps(result.facts))
    monkeypatch.setattr("znatok.exam.sitting.open_expert", None)  # no weights from here on
    questions = ["--questions", str(folder / "questions.jsonl"), "--knowledge", str(folder / "facts.jsonl")]
    assert main(["eval", str(tmp_path), *questions]) == 0
    assert "| P1 knows more" in capsys.readouterr().out
    assert (tmp_path / "eval" / "report.en.html").is_file()
    assert read_jsonl(tmp_path / "eval" / "items.jsonl") == result.rows


def test_questions_changed_since_are_said(result, run, folder, tmp_path, capsys):
    """An edited key judged published answers anew, and nothing told."""
    for record in result.records:
        write_record(record, tmp_path / record.file_name)
    asked = tmp_path / "asked" / "questions.jsonl"
    asked.parent.mkdir()
    asked.write_bytes((folder / "questions.jsonl").read_bytes())
    words = ["eval", str(tmp_path), "--questions", str(asked), "--knowledge", str(folder / "facts.jsonl")]
    assert main(words) == 0
    assert "changed since" not in capsys.readouterr().err
    asked.write_text(asked.read_text(encoding="utf-8").replace("180", "190"), encoding="utf-8")
    assert main(words) == 0
    assert "questions.jsonl: changed since these answers were recorded" in " ".join(capsys.readouterr().err.split())


def test_a_record_says_what_was_heard(result, run, folder):
    digest = {"questions.jsonl": sha256(folder / "questions.jsonl")}
    for record in result.records:
        assert record.about.system == run.read_manifest()["chat"]["system"]
        assert record.about.items_sha256 == digest
    assert result.facts["items_sha256"] == digest


def test_a_new_run_is_judged_beside_records(result, run, folder, tmp_path):
    base, _tuned = result.records
    write_record(base, tmp_path / "base.jsonl")
    what = planned(folder)
    heard = sitting.hear([run], what, "float32", base=False)
    assert [record.about.voice for record in heard] == ["tuned"]
    assert judge_records([*heard, *read_records(tmp_path)], what).rows == result.rows


def test_a_proof_is_published_between_its_marks(result, run, tmp_path):
    write_proof(run.path / "eval", result, prove(result.rows, result.texts, 1))
    for name in ("README.md", "README.ru.md"):
        (tmp_path / name).write_text(f"до\n{MARKS[0]}\nстарое\n{MARKS[1]}\nпосле\n", encoding="utf-8")
    assert main(["publish", str(run.path), "--repo", str(tmp_path)]) == 0
    text = (tmp_path / "README.ru.md").read_text(encoding="utf-8")
    assert text.startswith("до\n")
    assert text.endswith("после\n")
    assert "старое" not in text
    assert "| P1 знает больше" in text
    assert str(run.path) not in text
    (results,) = (tmp_path / "results").iterdir()
    names = {path.name for path in results.iterdir()}
    assert names >= {"base.jsonl", "run.jsonl", "proof.json", "forest.en.png", "verdicts.ru.png"}
    assert f"(results/{results.name}/forest.ru.png)" in text
    another = results.with_name("another-model")
    another.mkdir()
    (another / "proof.json").write_bytes((results / "proof.json").read_bytes())
    assert main(["publish", str(run.path), "--repo", str(tmp_path)]) == 0
    both = (tmp_path / "README.ru.md").read_text(encoding="utf-8")
    assert both.count("| P1 знает больше") == 2
    assert both.index("another-model/forest") < both.index(f"{results.name}/forest")
    assert str(tmp_path) not in (results / "run.jsonl").read_text(encoding="utf-8")
    (results / "run.jsonl").rename(results / "older.jsonl")
    assert main(["publish", str(run.path), "--repo", str(tmp_path)]) == 0
    assert (results / "run.jsonl").is_file()
    assert not (results / "older.jsonl").exists()  # records that stand together are judged together
    assert (results / "earlier" / "older.jsonl").is_file()
    (tmp_path / "README.md").write_text("без меток", encoding="utf-8")
    assert main(["publish", str(run.path), "--repo", str(tmp_path)]) == 2


def test_training_questions_are_asked_bare_and_decide_nothing(run, folder, tmp_path):
    learnt = {**QUESTIONS[0], "id": "q0", "split": "T0"}
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(q) + "\n" for q in (learnt, *QUESTIONS[:3])), encoding="utf-8")
    what = Examination(**{**vars(planned(folder)), "items": read_items([path]), "prose": {}})
    result = evaluate([run], what, "float32")
    assert {row["arm"] for row in result.rows if row["id"] == "q0"} == {"base", "tuned"}
    with_it, without = (
        prove([row for row in result.rows if row["id"] != left_out], result.texts, 1) for left_out in ("", "q0")
    )
    assert with_it.claims == without.claims
    assert {cell.measure for cell in with_it.cells if cell.split == "T0"} >= {"recall", "memorised", "recited"}


def test_hostile_answers_stay_text(result, run):
    rows = [dict(row, text="<script>alert(1)</script>\x1b[2J") if "text" in row else row for row in result.rows]
    changed = Result(result.records, rows, result.texts, result.facts)
    write_proof(run.path / "eval", changed, prove(rows, result.texts, 1))
    page = (run.path / "eval" / "report.ru.html").read_text(encoding="utf-8")
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
    proof = prove(both.rows, both.texts, 1)
    assert {cell.arm for cell in proof.by_run} == {"run", "other"}
    assert "| run | other |" in runs_table(proof, "en") or "| other | run |" in runs_table(proof, "en")
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


def test_other_tokens_are_another_model():
    """The weights of a directory say nothing of its tokenizer."""

    def expert(tokens):
        tokenizer = SimpleNamespace(backend_tokenizer=SimpleNamespace(to_str=lambda: tokens))
        chat = SimpleNamespace(tokenizer=tokenizer, name="chatml")
        return SimpleNamespace(base_sha256="ab", engine="llamacpp", chat=chat)

    assert identity(expert("a"), Voice.BASE, None) == identity(expert("a"), Voice.BASE, None)
    assert identity(expert("a"), Voice.BASE, None) != identity(expert("b"), Voice.BASE, None)
    assert identity(expert("a"), Voice.BASE, "x") == identity(expert("a"), Voice.BASE, None)
    assert identity(expert("a"), Voice.TUNED, "x") != identity(expert("a"), Voice.TUNED, "y")
