"""The page without a browser: forms and flags, verbs at work, files and runs, answers side by side."""

import dataclasses
import json
import os
import subprocess
import time

import gradio as gr
import pytest

import serving
from serving import wait_until
from znatok import config
from znatok.config import RECIPES, SampleOptions, TrainOptions
from znatok.data.check import Lengths
from znatok.errors import ModelError, SystemFault, UsageError
from znatok.scripts import train_config, train_parser
from znatok.web.compare_tab import CompareTab, add_vote, tally
from znatok.web.data_tab import bars_of
from znatok.web.forms import by_recipe, command, component, default, specs, typed, words
from znatok.web.jobs import Jobs
from znatok.web.page import build_page
from znatok.web.report_tab import framed, report_of
from znatok.web.studio import Studio, told
from znatok.web.talk import Question, Talk
from znatok.web.train_tab import FIELDS

QUICK = SampleOptions(temperature=0.0, max_new_tokens=8)


# Forms


@pytest.mark.parametrize("recipe", ["seed", "expert"])
def test_a_form_left_alone_states_nothing(recipe):
    assert words(FIELDS, [default(spec, recipe) for spec in FIELDS], recipe) == []
    sent = ["" if default(spec, recipe) is None else default(spec, recipe) for spec in FIELDS]  # as browsers send None
    assert words(FIELDS, sent, recipe) == []


def test_what_a_form_states_is_what_the_verb_reads():
    """Every field changed: the flags, parsed by the verb's own parser, give the values of the form."""
    changed = {bool: lambda _v: True, int: lambda v: int(v or 0) + 1, float: lambda v: round(float(v) * 0.5 + 0.25, 6)}
    values = []
    for spec in FIELDS:
        usual, choices = default(spec, "seed"), spec.metadata["choices"]
        other = next((one for one in choices if one != usual), None)
        values.append(other or changed.get(spec.type, lambda _v: "a name with spaces")(usual))
    flags = ["--recipe", "seed", *words(FIELDS, values, "seed")]
    read = train_config(train_parser("znatok train", "seed").parse_args(flags), flags)
    groups = (read.model, read.data, read.lora, read.train)
    found = {name: value for group in groups for name, value in dataclasses.asdict(group).items()}
    for spec, value in zip(FIELDS, values, strict=True):
        assert found[spec.name] == typed(spec, value), spec.name


def test_the_form_offers_every_option_of_training_but_those_with_buttons():
    offered = {spec.name for spec in FIELDS}
    every = {
        spec.name
        for group in (config.ModelOptions, config.DataOptions, config.LoraOptions, config.TrainOptions)
        for spec in dataclasses.fields(group)
    }
    assert every - offered == {"use_lora", "resume", "dry_run", "force", "low_memory"}


def test_numbers_are_typed_as_people_type_them():
    (rate, epochs) = specs(TrainOptions)[1:3]
    assert words([rate, epochs], [2e-5, 2.0], "seed") == ["--learning_rate", "2e-05", "--num_train_epochs", "2"]
    assert command("train", ["--system", "Ты знаток."]) == "znatok train --system 'Ты знаток.'"


def test_another_recipe_changes_what_recipes_set():
    updates = by_recipe(FIELDS, "expert")
    changed = {spec.name: update["value"] for spec, update in zip(FIELDS, updates, strict=True) if "value" in update}
    assert changed == RECIPES["expert"]


def test_an_input_knows_its_limits():
    spec = next(spec for spec in FIELDS if spec.name == "lora_dropout")
    number = component(spec, 0.1)
    assert isinstance(number, gr.Number)
    assert (number.minimum, number.maximum) == (0, 0.9)
    assert isinstance(component(next(s for s in FIELDS if s.name == "keep"), "last"), gr.Dropdown)


# Verbs at work


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path / "runs" / ".web", tmp_path)


def test_a_verb_is_found_again_by_another_server(jobs, tmp_path):
    job = jobs.start("model", ["model", "list"])
    assert job.command == "znatok model list"
    wait_until(lambda: not jobs.get("model").running, 60)
    again = Jobs(tmp_path / "runs" / ".web", tmp_path).get("model")
    assert again == job
    assert "qwen2.5-coder-0.5b-instruct" in again.said()
    assert jobs.get("train") is None


def test_one_of_a_kind_at_a_time_and_stopped_like_ctrl_c(jobs, monkeypatch):
    real = subprocess.Popen
    monkeypatch.setattr(
        "znatok.web.jobs.subprocess.Popen", lambda _command, **options: real(["/bin/sleep", "60"], **options)
    )
    job = jobs.start("train", ["train"])
    assert job.running
    with pytest.raises(SystemFault, match="znatok train is at work already"):
        jobs.start("train", ["train"])
    jobs.stop("train")
    wait_until(lambda: not jobs.get("train").running)
    jobs.stop("train")  # ended already: nothing happens
    jobs.stop("never")


# Files and runs


@pytest.fixture
def studio(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "a.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "data" / "b.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "notes.md").write_text("PLA.\n", encoding="utf-8")
    return Studio(tmp_path)


def test_files_are_those_of_the_folder(studio, tmp_path):
    assert studio.data_files() == ["a.jsonl", "data/b.jsonl"]
    assert studio.texts() == ["a.jsonl", "data/b.jsonl", "notes.md"]
    assert studio.file("data/b.jsonl") == (tmp_path / "data/b.jsonl").resolve()
    for name in ("../a.jsonl", "/etc/passwd", "", None, "data", "nowhere"):
        with pytest.raises(UsageError, match="no file is chosen"):
            studio.file(name)


def test_an_upload_is_kept_under_a_plain_name_and_replaces_nothing(studio, tmp_path):
    source = tmp_path / "мои пары; rm -rf.jsonl"
    source.write_text('{"prompt": "Что?", "response": "Да."}\n', encoding="utf-8")
    assert studio.take_upload(str(source)) == "uploads/мои-пары-rm--rf.jsonl"
    assert studio.take_upload(str(source)) == "uploads/мои-пары-rm--rf-2.jsonl"
    assert (tmp_path / "uploads/мои-пары-rm--rf.jsonl").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("name", ["../x", "/etc", ".web", "nowhere", "", None])
def test_a_run_is_a_folder_under_runs(studio, tmp_path, name):
    (tmp_path / "runs" / ".web").mkdir(parents=True)
    with pytest.raises(UsageError, match="no run is chosen"):
        studio.run(name)


def test_runs_are_offered_newest_first(tmp_path):
    for seed, name in enumerate(("old", "new"), 1):
        path = serving.write_run(tmp_path / "runs" / name, seed, "some-base", "0" * 64)
        os.utime(path, (seed * 1000, seed * 1000))
    (tmp_path / "runs" / "latest").symlink_to("new")
    studio = Studio(tmp_path)
    assert studio.runs() == ["new", "old"]
    assert studio.base_of("old") == "some-base"


def test_an_error_of_ours_is_a_message():
    def failing():
        raise UsageError("no file is chosen")

    def streaming():
        yield 1
        raise UsageError("no file is chosen")

    with pytest.raises(gr.Error, match="no file is chosen"):
        told(failing)()

    def quoting():
        raise UsageError("{name}: no such column", name="<img src=https://elsewhere/x.png>")

    with pytest.raises(gr.Error) as caught:
        told(quoting)()
    assert caught.value.message == "&lt;img src=https://elsewhere/x.png&gt;: no such column"  # the page renders HTML
    stream = told(streaming)()
    assert next(stream) == 1
    with pytest.raises(gr.Error, match="no file is chosen"):
        next(stream)


# Answers


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    base, runs = serving.write_world(tmp_path_factory.mktemp("web"), names=("mine",))
    return base.parent, runs


def test_two_answers_come_together_and_are_what_each_says_alone(world, monkeypatch):
    monkeypatch.chdir(world[0])
    studio = Studio(world[0])
    with gr.Blocks():
        tab = CompareTab(studio)
    try:
        last = list(tab.both("mine", "Что такое PLA?", False, 1, 0.0, 16))[-1]
        texts, order = last[2]["answers"], last[2]["order"]
        models = studio.talk.open(studio.base_of("mine"), studio.run("mine").path)
        sample = SampleOptions(temperature=0.0, max_new_tokens=16)
        alone = {
            model.name: list(studio.talk.stream(model, Question("Что такое PLA?", sample, 1)))[-1].text
            for model in models
        }
        assert order == ["base", "tuned"]
        assert texts == [alone["base"], alone["mine"]]
        assert texts[0] != texts[1]
        with pytest.raises(UsageError, match="nothing to vote on"):
            tab.voting("left")(None)
        message, state = tab.voting("right")(last[2])
        assert "tuned 1, base 0" in message
        assert state is None
        (vote,) = (
            json.loads(line) for line in (world[1] / "mine/votes.jsonl").read_text(encoding="utf-8").splitlines()
        )
        assert (vote["vote"], vote["seed"], vote["answers"]) == ("tuned", 1, texts)
    finally:
        studio.close()


def test_a_blind_order_is_drawn_and_hides_names(world):
    studio = Studio(world[0])
    with gr.Blocks():
        tab = CompareTab(studio)
    try:
        orders = set()
        for _ in range(12):
            *shown, last = tab.both("mine", "Что?", True, 1, 0.0, 16)
            assert [update["label"] for update in shown[0][:2]] == ["1", "2"]
            orders.add(tuple(last[2]["order"]))
        assert orders == {("base", "tuned"), ("tuned", "base")}
    finally:
        studio.close()


def test_one_model_is_held_at_a_time(world):
    talk = Talk()
    try:
        first = talk.open(str(world[0] / "base"), None)
        assert [model.name for model in first] == ["base"]
        assert talk.open(str(world[0] / "base"), None)[0] is first[0]
        both = talk.open(str(world[0] / "base"), world[1] / "mine")
        assert [model.name for model in both] == ["base", "mine"]
        with pytest.raises(ModelError):
            talk.open(str(world[0] / "nowhere"), None)
        again = talk.open(str(world[0] / "base"), None)
        with pytest.raises(UsageError, match="the dialogue takes"):
            list(talk.stream(again[0], Question("слово " * 4000, QUICK, 1)))
    finally:
        talk.close()


def test_an_answer_given_up_is_no_burden(world):
    talk = Talk()
    try:
        (model,) = talk.open(str(world[0] / "base"), None)
        stream = talk.stream(model, Question("Что?", SampleOptions(temperature=1.0, max_new_tokens=400), 1))
        next(stream)
        stream.close()
        time.sleep(0.1)
        assert list(talk.stream(model, Question("Что?", QUICK, 1)))[-1].tokens == 8
    finally:
        talk.close()


def test_passages_are_looked_up_and_named(world, tmp_path):
    path = tmp_path / "facts.md"
    path.write_text("PLA печатают при 200 °C.\n\nСмолу моют спиртом.\n", encoding="utf-8")
    talk = Talk()
    try:
        (model,) = talk.open(str(world[0] / "base"), None)
        found = list(talk.stream(model, Question("Что такое PLA?", QUICK, 1, knowledge=str(path))))[-1]
        assert found.sources == ("facts.md:1",)
    finally:
        talk.close()


# Votes, reports


def test_votes_are_lines_and_are_counted(tmp_path):
    for vote in ("tuned", "base", "tuned", "equal"):
        add_vote(tmp_path / "votes.jsonl", {"vote": vote, "question": "Что?\nи где?"})
    assert tally(tmp_path / "votes.jsonl") == "votes: tuned 2, base 1, no difference 1"


def test_a_report_may_run_nothing(tmp_path):
    shown = framed('<script>alert("x")</script>')
    assert shown.startswith('<iframe sandbox="" srcdoc="&lt;script&gt;')
    assert "<script>" not in shown
    studio = Studio(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    with pytest.raises(UsageError, match="znatok eval mine makes one"):
        report_of(studio.run("mine"), "eval")


def test_lengths_become_bars():
    assert bars_of("q", Lengths(1, 2, 2.0, 9, ((0, 5, 3), (5, 10, 1)))) == [("0–4", 3, "q"), ("5–9", 1, "q")]


def test_the_page_is_built_for_an_empty_folder(tmp_path):
    page = build_page(Studio(tmp_path))
    labels = {block.label for block in page.blocks.values() if isinstance(block, gr.Tab)}
    assert labels == {"Data", "Train", "Compare", "Chat", "Report", "Export"}
