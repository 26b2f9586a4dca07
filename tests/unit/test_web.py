"""The page without a browser: forms and flags, verbs at work, files and runs, answers side by side."""

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from html.parser import HTMLParser

import gradio as gr
import PIL.Image
import psutil
import pytest
import uvicorn
from markdown_it import MarkdownIt

import llama_files
import serving
from serving import raw, wait_until
from znatok import config
from znatok.config import RECIPES, SampleOptions, TrainOptions
from znatok.data.check import Lengths
from znatok.errors import DataError, ModelError, SystemFault, UsageError
from znatok.files import write_json, write_text
from znatok.generate.torch_engine import Together
from znatok.logs import printable
from znatok.scripts import train_config, train_parser
from znatok.serve.dispatch import Stopping
from znatok.serve.guard import LOOPBACK
from znatok.tokens.chat import Message, Role
from znatok.web.chat_tab import answer_of, history_of, note_of, plain, speaker, turn_of, without_waiting
from znatok.web.compare_tab import CompareTab
from znatok.web.data_tab import bars_of
from znatok.web.forms import by_recipe, command, component, default, specs, to_the_letter, typed, words
from znatok.web.jobs import BOOT, Jobs, life
from znatok.web.page import build_page
from znatok.web.report_tab import framed, report_of
from znatok.web.run import build_app
from znatok.web.studio import UPLOADS, Studio, told
from znatok.web.talk import FRAME, Question, Said, Talk
from znatok.web.train_tab import FIELDS, TrainTab

QUICK = SampleOptions(temperature=0.0, max_new_tokens=8)


# Forms


@pytest.mark.parametrize("recipe", ["seed", "expert"])
def test_a_form_left_alone_states_nothing(recipe):
    assert words(FIELDS, [default(spec, recipe) for spec in FIELDS], recipe) == []
    sent = ["" if default(spec, recipe) is None else default(spec, recipe) for spec in FIELDS]  # as browsers send None
    assert words(FIELDS, sent, recipe) == []


def test_an_emptied_box_states_nothing():
    """It stated the seed recipe's number, whatever the recipe chosen: an emptied box changed what was trained."""
    sent = [None if spec.type in {int, float} else default(spec, "expert") for spec in FIELDS]
    assert words(FIELDS, sent, "expert") == []


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
    assert every - offered == {"use_lora", "resume", "dry_run", "force", "low_memory", "shard_base"}


def test_numbers_are_typed_as_people_type_them():
    (rate, epochs) = specs(TrainOptions)[1:3]
    assert words([rate, epochs], [2e-5, 2.0], "seed") == ["--learning_rate", "2e-05", "--num_train_epochs", "2"]
    assert command("train", ["--system", "Ты знаток."]) == "znatok train --system 'Ты знаток.'"


@pytest.mark.parametrize(
    "text", ["znatok train", "a`b", "``` <img src=x>", "![x](https://elsewhere/x.png)", "<b>`\n\n# x", "`", "\x1b[2J"]
)
def test_a_command_is_shown_to_the_letter(text):
    """A run's name with backticks ended the code span: pictures and markup that followed were obeyed."""
    (paragraph,) = (t for t in MarkdownIt().parse(f"**x**: {to_the_letter(text)}") if t.type == "inline")
    assert [t.type for t in paragraph.children][-2:] == ["text", "code_inline"]
    assert paragraph.children[-1].content == " ".join(printable(text).split())


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


def test_a_verb_runs_no_module_that_lies_among_the_data(jobs, tmp_path):
    """Python looks for modules where it is started: a folder of data could bring a znatok of its own."""
    (tmp_path / "znatok.py").write_text("print('stolen')\n", encoding="utf-8")
    jobs.start("model", ["model", "list"])
    wait_until(lambda: not jobs.get("model").running, 60)
    assert "qwen2.5-coder-0.5b-instruct" in jobs.get("model").said()


@pytest.fixture
def sleeping(monkeypatch):
    """Verbs that do nothing for a minute."""
    real = subprocess.Popen
    monkeypatch.setattr(
        "znatok.web.jobs.subprocess.Popen", lambda _command, **options: real(["/bin/sleep", "60"], **options)
    )


@pytest.mark.usefixtures("sleeping")
def test_one_of_a_kind_at_a_time_and_stopped_like_ctrl_c(jobs):
    job = jobs.start("train", ["train"])
    assert job.running
    with pytest.raises(SystemFault, match="znatok train is at work already"):
        jobs.start("train", ["train"])
    jobs.stop("train")
    wait_until(lambda: not jobs.get("train").running)
    jobs.stop("train")  # ended already: nothing happens
    jobs.stop("never")


@pytest.fixture
def asleep(jobs):
    """A process that a job may be: the newest training, as its file remembers it."""
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        began = psutil.Process(process.pid).create_time()
        stored = {"kind": "train", "words": ["train"], "log": "train.log", "pid": process.pid, "started": began}
        yield stored | {"life": life(process.pid)}
        process.kill()


def remembered(jobs, tmp_path, stored):
    """Return the job that a file stands for."""
    write_json(tmp_path / "runs" / ".web" / "train.json", stored)
    return jobs.get("train")


@pytest.mark.skipif(not BOOT.is_file(), reason="a clock that steps moves what psutil says on Linux only")
def test_a_clock_that_steps_ends_no_job(jobs, asleep, tmp_path):
    """A running training was «not at work» after ``date -s``, could not be stopped, and another one was let in."""
    assert remembered(jobs, tmp_path, asleep | {"started": asleep["started"] - 3600}).running
    another_boot = "0" + asleep["life"][1:] if asleep["life"][0] != "0" else "1" + asleep["life"][1:]
    for other in (another_boot, asleep["life"] + "0"):
        assert not remembered(jobs, tmp_path, asleep | {"life": other}).running


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"kind": "train", "words": 5}'])
def test_a_damaged_memory_of_a_job_is_none(jobs, tmp_path, text):
    """What was JSON and no job was a traceback at every look at the page."""
    write_text(tmp_path / "runs" / ".web" / "train.json", text)
    assert jobs.get("train") is None


def test_a_job_an_earlier_version_started_is_known_by_its_time(jobs, asleep, tmp_path):
    del asleep["life"]
    assert remembered(jobs, tmp_path, asleep | {"started": asleep["started"] + 0.02}).running
    assert not remembered(jobs, tmp_path, asleep | {"started": asleep["started"] - 60}).running


@pytest.mark.usefixtures("sleeping")
def test_stop_ends_the_plan_that_is_shown_and_then_the_training_behind_it(studio):
    """No button stopped a plan; and once one was made, a training under way was not shown any more."""
    with gr.Blocks():
        tab = TrainTab(studio, gr.Dropdown())
    values = [default(spec, "seed") for spec in FIELDS]
    values[[spec.name for spec in FIELDS].index("output_dir")] = "runs/mine"
    assert "at work" in tab.begun("seed", *values)[0]
    assert "--dry_run" in tab.planned("seed", *values)[0]
    tab.stopped()
    wait_until(lambda: not studio.jobs.get("plan").running)
    assert studio.jobs.get("train").running
    assert "--dry_run" not in tab.look()[0]
    tab.stopped()
    wait_until(lambda: not studio.jobs.get("train").running)
    assert "not at work" in tab.look()[0]


@pytest.mark.usefixtures("sleeping")
def test_a_comparison_that_was_stopped_shows_no_pictures_of_another(studio, tmp_path):
    """Nothing could stop one; and pictures of the comparison before would have stood beside its log."""
    images = serving.write_run(tmp_path / "runs" / "mine", 1) / "images"
    images.mkdir()
    old, new = images / "comparison.png", images / "comparison_2.png"
    old.touch()
    os.utime(old, (1000, 1000))
    with gr.Blocks():
        tab = CompareTab(studio)
    tab.begun("mine", "questions.txt", None)
    tab.stopped()
    wait_until(lambda: not studio.jobs.get("compare").running)
    assert tab.look() == ("", [])
    new.touch()
    later = studio.jobs.get("compare").started + 1
    os.utime(new, (later, later))
    assert tab.look() == ("", [str(new)])


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
        with pytest.raises(UsageError, match="no file of this folder" if name else "no file is chosen"):
            studio.file(name)


OUTSIDE = {
    "data_path": ["/etc/passwd", "../x.jsonl", "data", "nowhere.jsonl"],
    "val_path": ["/etc/passwd"],
    "output_dir": ["/elsewhere/x", "../runs/x", "runs", "runs/../x", "runs/.web", "runs/.web/x", "data/x"],
}


@pytest.mark.parametrize(("name", "path"), [(name, path) for name, paths in OUTSIDE.items() for path in paths])
def test_training_reads_and_writes_nothing_outside_the_folder(studio, monkeypatch, name, path):
    """The plan said how /etc/passwd begins, and a run was written wherever its name led."""
    begun = []
    monkeypatch.setattr(studio.jobs, "start", lambda *what: begun.append(what))
    with gr.Blocks():
        tab = TrainTab(studio, gr.Dropdown())
    stated = {"data_path": "a.jsonl", "output_dir": "runs/mine"}
    for handler in (tab.planned, tab.begun, tab.gone_on):
        handler("seed", *filled_in(**stated))
        with pytest.raises(UsageError, match=r"no (file of this folder|place under runs)"):
            handler("seed", *filled_in(**{**stated, name: path}))
    assert len(begun) == 3


def filled_in(**stated):
    """Return the values of the form for training."""
    return [stated.get(spec.name, default(spec, "seed")) for spec in FIELDS]


def test_what_a_box_holds_is_no_flag():
    """A word sent for a box that is ticked or not stood behind its flag, which needs none: as a flag of its own."""
    (spec,) = (spec for spec in FIELDS if spec.name == "skip_bad")
    assert words([spec], ["--output_dir=/elsewhere"], "seed") == ["--skip_bad", "true"]


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


@pytest.mark.parametrize(
    ("handler", "inputs", "box"),
    [
        ("shown", ["a.jsonl", None, "base"], "pair"),
        ("both", ["mine", "Что?", False, None, 0.7, 16], "seed"),
        ("answered", ["Что?", [], "mine", "tuned", "", 0.7, 0.9, 16, None], "seed"),
    ],
)
def test_an_emptied_box_is_a_message(studio, handler, inputs, box):
    """A browser sends None for it: a TypeError with its traceback, and no word of which box it was."""
    handlers = [one.fn for one in build_page(studio).fns.values() if one.name == handler]
    with pytest.raises(gr.Error, match=f"{box}: the box is empty; expected a number"):
        list(handlers[0](*inputs))


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
        texts, order = list(last[2].answers), list(last[2].order)
        sample = SampleOptions(temperature=0.0, max_new_tokens=16)
        pair = studio.base_of("mine"), studio.run("mine").path
        asked = Question("Что такое PLA?", sample, 1)
        alone = [answered(studio.talk, *pair, asked, voice).text for voice in ("base", "tuned")]
        assert order == ["base", "tuned"]
        assert texts == alone
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
            *shown, last = tab.both("mine", "Что?", True, 1, 0.0, 1)
            assert [update["label"] for update in shown[0][:2]] == ["1", "2"]
            orders.add(last[2].order)
        assert orders == {("base", "tuned"), ("tuned", "base")}
    finally:
        studio.close()


@llama_files.needs_llama
def test_an_answer_that_waits_for_another_says_so(tmp_path):
    """llama.cpp answers one after the other: the second column was empty until the first had its whole answer."""
    base = llama_files.write_base(tmp_path, max_position_embeddings=512)
    run = llama_files.write_adapter(tmp_path / "runs" / "mine", base)
    write_json(run / "manifest.json", {"base": {"name": str(base)}})
    studio = Studio(tmp_path)
    with gr.Blocks():
        tab = CompareTab(studio)
    try:
        looks = [(left, right) for left, right, *_rest in tab.both("mine", "Что?", False, 1, 2.0, 64)][:-1]
    finally:
        studio.close()
    assert [[bool(box["placeholder"]) for box in look] for look in (looks[0], looks[-1])] == [[True] * 2, [False] * 2]
    assert all(box["value"] for box in looks[-1])
    for left, right in looks:
        assert right["placeholder"] or left["value"] == looks[-1][0]["value"]


@pytest.fixture
def slow(monkeypatch):
    """Let every step of an answer take 50 ms: what is given up in the middle has to be in the middle."""
    step = Together.step
    monkeypatch.setattr(Together, "step", lambda together: time.sleep(0.05) or step(together))


@pytest.fixture
def talk():
    talk = Talk()
    yield talk
    talk.close()


def answered(talk, base, run, question, voice="tuned"):
    """Return the whole answer."""
    ((said,), *_) = reversed(list(talk.answers(base, run, [voice], question)))
    return said


def test_a_browser_is_not_sent_every_token(world, talk):
    asked = Question("Что?", SampleOptions(temperature=1.0, max_new_tokens=200), 1)
    begun = time.monotonic()
    seen = [said.text for (said,) in talk.answers(str(world[0] / "base"), None, ["base"], asked)]
    taken = time.monotonic() - begun
    assert len(seen) <= taken / FRAME + 2
    assert seen == sorted(seen, key=len)
    assert len(seen[-1]) > 200  # an answer long enough to have come in pieces


def test_one_model_is_held_at_a_time(world, talk):
    base, asked = str(world[0] / "base"), Question("Что?", QUICK, 1)
    answered(talk, base, None, asked)
    first = talk._roster
    assert list(first.models) == ["base"]
    answered(talk, base, None, asked)
    assert talk._roster is first
    answered(talk, base, world[1] / "mine", asked)
    assert list(talk._roster.models) == ["base", "mine"]
    with pytest.raises(ModelError):
        answered(talk, str(world[0] / "nowhere"), None, asked)
    with pytest.raises(UsageError, match=r"the dialogue takes \d+ tokens and the model sees 512"):
        answered(talk, base, None, Question("слово " * 17_000, QUICK, 1))  # 100 000 characters


def test_another_tab_waits_for_its_model_and_takes_none_away(world, talk):
    """It closed the model that the first tab's answer was coming from, which then failed or never ended."""
    base, long = str(world[0] / "base"), SampleOptions(temperature=1.0, max_new_tokens=200)
    said = []

    def second_tab():
        said.append(answered(talk, base, world[1] / "mine", Question("Что?", QUICK, 1)))

    stream = talk.answers(base, None, ["base"], Question("Что?", long, 1))
    next(answers for answers in stream if answers[0].begun)
    other = threading.Thread(target=second_tab)
    other.start()
    time.sleep(0.2)
    assert said == []
    first = list(stream)[-1][0]
    assert first.ended
    other.join(60)
    assert said[0].ended
    assert answered(talk, base, None, Question("Что?", long, 1)).text == first.text


@pytest.mark.usefixtures("slow")
def test_whoever_waits_for_a_model_may_leave_and_takes_nothing_along(world, talk):
    """A page that waited could not be left before its turn had come, and then answered in a dialogue begun since."""
    base, run, long = str(world[0] / "base"), world[1] / "mine", SampleOptions(temperature=1.0, max_new_tokens=400)
    speaking = talk.answers(base, None, ["base"], Question("Что?", long, 1))
    next(answers for answers in speaking if answers[0].begun)
    waiting = talk.answers(base, run, ["tuned"], Question("Что?", QUICK, 1))
    for _frame in range(3):
        assert not next(waiting)[0].begun
    waiting.close()
    wait_until(lambda: talk._users == 1)
    assert next(speaking)[0].begun
    speaking.close()
    wait_until(lambda: talk._users == 0)
    assert answered(talk, base, run, Question("Что?", QUICK, 1)).ended


def test_a_model_that_comes_after_its_page_has_left_is_lent_to_the_next(world, talk, monkeypatch):
    base, come = str(world[0] / "base"), threading.Event()
    loaded = talk._loaded
    monkeypatch.setattr(talk, "_loaded", lambda wanted: come.wait(30) and loaded(wanted))
    leaving = talk.answers(base, None, ["base"], Question("Что?", QUICK, 1))
    assert not next(leaving)[0].begun
    leaving.close()
    assert talk._users == 1  # it is being loaded, and nobody may close it meanwhile
    come.set()
    wait_until(lambda: talk._users == 0)
    assert answered(talk, base, None, Question("Что?", QUICK, 1)).ended


@pytest.mark.usefixtures("slow")
def test_a_page_that_closes_keeps_nobody_waiting(world):
    """Answers are given up, and who waits for a model loads none: else the process stays until the last has ended."""
    talk, base, outcome = Talk(), str(world[0] / "base"), {}
    long = SampleOptions(temperature=1.0, max_new_tokens=400)

    def tab(name, run):
        try:
            outcome[name] = answered(talk, base, run, Question("Что?", long, 1))
        except Stopping:
            outcome[name] = "given up"

    tabs = [threading.Thread(target=tab, args=args) for args in (("speaks", None), ("waits", world[1] / "mine"))]
    tabs[0].start()
    wait_until(lambda: talk._dispatcher is not None and talk._dispatcher.running)
    tabs[1].start()
    talk.close()
    for one in tabs:
        one.join(15)  # the answer would take 20
    assert outcome == {"speaks": "given up", "waits": "given up"}
    assert talk._roster is None


def test_a_run_that_was_trained_on_is_read_anew(world, talk, tmp_path):
    run = shutil.copytree(world[1] / "mine", tmp_path / "mine")
    base, asked = str(world[0] / "base"), Question("Что?", QUICK, 1)
    before = answered(talk, base, run, asked).text
    serving.write_run(tmp_path / "other", 7)
    shutil.copy(tmp_path / "other" / "adapter_model.safetensors", run)
    assert answered(talk, base, run, asked).text != before


@pytest.mark.usefixtures("slow")
def test_an_answer_given_up_is_no_burden(world, talk):
    base, long = str(world[0] / "base"), SampleOptions(temperature=1.0, max_new_tokens=400)
    stream = talk.answers(base, None, ["base", "base"], Question("Что?", long, 1))
    next(answers for answers in stream if all(said.begun for said in answers))
    stream.close()
    wait_until(lambda: talk._dispatcher.running == 0, 15)  # 400 steps would take 20
    assert answered(talk, base, None, Question("Что?", QUICK, 1)).ended


def test_passages_are_looked_up_and_named_also_after_the_file_has_changed(world, talk, tmp_path):
    path = tmp_path / "facts.md"
    path.write_text("PLA печатают при 200 °C.\n\nСмолу моют спиртом.\n", encoding="utf-8")
    asked = Question("Что такое PLA?", QUICK, 1, knowledge=str(path))
    base = str(world[0] / "base")
    assert answered(talk, base, None, asked).sources == ("facts.md:1",)
    known = talk._known(str(path))
    assert talk._known(str(path)) is known
    path.write_text("Смолу моют спиртом.\n\nЧто такое PLA: полилактид.\n", encoding="utf-8")
    assert answered(talk, base, None, asked).sources == ("facts.md:3",)
    path.unlink()
    with pytest.raises(DataError, match=r"facts\.md"):
        answered(talk, base, None, asked)


def by_browser(turns):
    """Return turns as a browser sends them back."""
    with gr.Blocks():
        chatbot = gr.Chatbot()
    sent = chatbot.postprocess(turns)
    return chatbot.preprocess(type(sent).model_validate_json(sent.model_dump_json()))


def test_the_model_reads_bare_answers_as_in_a_terminal(world, monkeypatch):
    """Sources stood in the answer's text, so the model read them as its own words, and only in a browser."""
    (world[0] / "facts.md").write_text("PLA печатают при 200 °C.\n", encoding="utf-8")
    real, histories = Talk.answers, []

    def answers(talk, base, run, voices, question):
        histories.append(list(question.history))
        return real(talk, base, run, voices, question)

    monkeypatch.setattr(Talk, "answers", answers)
    studio = Studio(world[0])
    answered = next(one.fn for one in build_page(studio).fns.values() if one.name == "answered")
    try:
        *_, (turns, _box) = answered("Что такое PLA?", [], "mine", "base", "facts.md", 0.0, 1.0, 16, 1)
        list(answered("А ABS?", by_browser(turns), "mine", "base", "facts.md", 0.0, 1.0, 16, 1))
    finally:
        studio.close()
    question, answer, sources = map(plain, turns)
    assert sources == "facts.md:1"
    assert histories == [[], [Message(Role.USER, question), Message(Role.ASSISTANT, answer.strip())]]


def test_a_question_that_got_no_answer_is_no_part_of_the_dialogue():
    """The next one followed it as if both were one turn; a terminal forgets it."""
    asked, said = turn_of(Role.USER, "Что < это?"), turn_of(Role.ASSISTANT, " Да.\n")
    nothing = turn_of(Role.ASSISTANT, "")
    waits, sources = answer_of(Said()), note_of("sources", "facts.md:1")
    turns = by_browser([asked, asked, nothing, asked, said, sources, asked, *waits])
    assert history_of(turns) == [Message(Role.USER, "Что < это?"), Message(Role.ASSISTANT, "Да.")]
    assert [plain(turn) for turn in without_waiting(turns)[-2:]] == ["facts.md:1", "Что < это?"]


def test_who_answers_is_the_run_its_base_or_any_model(world):
    studio = Studio(world[0])
    base, run = str(world[0] / "base"), world[1] / "mine"
    assert speaker(studio, "mine", "tuned") == speaker(studio, "mine", "base") == (base, run)
    assert speaker(studio, None, "smollm2-135m-instruct") == ("smollm2-135m-instruct", None)
    for who in ("tuned", "base", ""):
        with pytest.raises(UsageError, match="no run is chosen"):
            speaker(studio, None, who)


@pytest.mark.parametrize(
    "text", ["<img src=x>", "a < b && c > d", "x<y", "&lt;b&gt; &amp;lt;", "</div><!-- ", "&#60;", "<220 °C", "R&D"]
)
def test_a_turn_of_the_dialogue_is_text_to_a_browser_and_comes_back_as_it_was(text):
    turn = turn_of(Role.ASSISTANT, text)
    assert plain(turn) == plain({"content": [{"type": "text", "text": turn["content"]}]}) == text
    found = []
    browser = HTMLParser(convert_charrefs=True)
    browser.handle_starttag = browser.handle_endtag = browser.handle_comment = lambda *_: pytest.fail("markup")
    browser.handle_data = found.append
    browser.feed(turn["content"])
    browser.close()
    assert "".join(found) == text


# The server


@pytest.fixture(scope="module")
def server(world):
    """The page in this process: its studio, and its address."""
    app, studio = build_app(world[0], None, LOOPBACK)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    server.capture_signals = contextlib.nullcontext
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    wait_until(lambda: server.started)
    yield studio, f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(20)
    listener.close()
    studio.close()


def called(url, handler, inputs, session):
    """Do what a click does; return what the page hears of it as an open stream."""
    functions = json.loads(raw(url, "GET", "/config")[2])["dependencies"]
    number = next(function["id"] for function in functions if function["api_name"] == handler)
    asked = {"data": inputs, "fn_index": number, "session_hash": session}
    assert raw(url, path="/gradio_api/queue/join", body=json.dumps(asked).encode())[0] == 200
    address = f"{url}/gradio_api/queue/data?session_hash={session}"
    return urllib.request.urlopen(address, timeout=60)  # noqa: S310  # our own


CHAT = ["Что?", [], "mine", "tuned", "", 2.0, 1.0, 400, 1]
COMPARE = ["mine", "Что?", False, 1, 2.0, 400]


# Gradio 6.31 counts what it did with an option that pandas 3 has dropped; goes when Gradio asks for it no more
@pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated")
@pytest.mark.parametrize(("handler", "inputs"), [("answered", CHAT), ("both", COMPARE)])
@pytest.mark.usefixtures("slow")
def test_what_a_closed_page_asked_for_is_given_up(server, handler, inputs):
    """The comparison went on to its end, and the whole server stood still until then."""
    studio, url = server
    with called(url, handler, inputs, session=handler) as stream:
        assert any(b"process_generating" in line for line in stream)
        wait_until(lambda: studio.talk._dispatcher is not None and studio.talk._dispatcher.running)
    wait_until(lambda: studio.talk._dispatcher.running == 0, 15)  # 400 steps would take 20
    assert raw(url, "GET", "/config")[0] == 200
    wait_until(lambda: studio.talk._users == 0)


@pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated")  # as above
def test_a_file_elsewhere_is_not_read_because_its_name_is_typed(server, tmp_path):
    """Any file of the machine could be looked up in, also by who only has the password of the page."""
    studio, url = server
    path = tmp_path / "secret.md"
    path.write_text("Пароль: 12345.\n", encoding="utf-8")
    with called(url, "answered", [*CHAT[:4], str(path), *CHAT[5:]], session="elsewhere") as stream:
        last = next(line for line in stream if b"process_completed" in line)
    assert "no file of this folder" in json.loads(last.removeprefix(b"data: "))["output"]["error"]
    with gr.Blocks(), pytest.raises(UsageError, match="no file of this folder"):
        CompareTab(studio).begun("mine", str(path), str(path))


@pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated")  # as above
@pytest.mark.parametrize("path", ["{folder}/secret.jsonl", "https://elsewhere.invalid/x.jsonl"])
@pytest.mark.parametrize("handler", ["uploaded", "answered", "typed", "begun_1"])
def test_a_file_that_was_not_uploaded_is_none(server, tmp_path, monkeypatch, handler, path):
    """A request could call any file or address an uploaded one: it was copied, or fetched, and told."""
    (tmp_path / "secret.jsonl").write_text('{"prompt": "Пароль?", "response": "12345"}', encoding="utf-8")
    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_get", lambda *_: pytest.fail("fetched"))
    studio, url = server
    sent = {"path": path.format(folder=tmp_path), "meta": {"_type": "gradio.FileData"}}
    turns = [{"role": "user", "content": {"nested": [sent]}}]
    inputs = {
        "uploaded": [sent],
        "answered": [CHAT[0], turns, *CHAT[2:]],
        "typed": ["seed", sent, *([None] * (len(FIELDS) - 1))],
        "begun_1": ["mine", sent, None],
    }
    with called(url, handler, inputs[handler], session=f"sent-{handler}-{path[:5]}") as stream:
        last = next(line for line in stream if b"process_completed" in line)
    assert json.loads(last.removeprefix(b"data: "))["output"]["error"] == "no file is chosen"
    assert not (studio.folder / UPLOADS).exists()


@pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated")  # as above
def test_pictures_of_a_run_are_shown_though_no_file_of_it_is_served(server):
    studio, url = server
    images = studio.folder / "runs" / "mine" / "images"
    images.mkdir()
    PIL.Image.new("RGB", (2, 2)).save(images / "comparison.png")
    ended = {"kind": "compare", "words": ["compare", "runs/mine"], "log": "", "pid": os.getpid(), "started": 0.0}
    (studio.folder / "runs" / ".web").mkdir(exist_ok=True)
    (studio.folder / "runs" / ".web" / "compare.json").write_text(json.dumps(ended), encoding="utf-8")
    with called(url, "look_1", [], session="pictures") as stream:
        last = next(line for line in stream if b"process_completed" in line)
    ((picture,),) = [json.loads(last.removeprefix(b"data: "))["output"]["data"][1]]
    status, headers, body = raw(url, "GET", picture["image"]["url"].removeprefix(url))
    assert (status, headers["content-type"]) == (200, "image/png")
    assert body == (images / "comparison.png").read_bytes()
    assert raw(url, "GET", f"/gradio_api/file={images / 'comparison.png'}")[0] == 404


def test_the_browser_is_told_to_run_the_pages_own_scripts_only(server):
    _studio, url = server
    _status, headers, page = raw(url, "GET", "/", Accept="text/html", Accept_Encoding="br, gzip")
    rules = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert rules["default-src"] == "'none'"
    assert "'unsafe-inline'" not in rules["script-src"]
    inline = [script for script in re.findall(b"<script[^>]*>(.*?)</script>", page, re.DOTALL) if script]
    for script in inline:
        digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
        assert f"'sha256-{digest}'" in rules["script-src"]
    assert len(inline) > 2
    assert not re.findall("https?:|[*]", headers["content-security-policy"])  # no address but the page's own
    for path in ("/config", "/nowhere", "/gradio_api/file=/etc/passwd"):
        _status, headers, _body = raw(url, "GET", path)
        assert "sha256" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    status, headers, _body = raw(url, "GET", "/config", Origin="https://elsewhere")
    assert (status, headers["x-frame-options"]) == (403, "DENY")


# Reports


def test_a_report_may_run_nothing(tmp_path):
    shown = framed('<script>alert("x")</script>')
    assert shown.startswith('<iframe sandbox="" srcdoc="&lt;script&gt;')
    assert "<script>" not in shown
    studio = Studio(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    with pytest.raises(UsageError, match="znatok eval mine makes one"):
        report_of(studio.run("mine"), "eval")


def test_lengths_become_bars():
    assert bars_of("q", Lengths(1, 2, 2.0, 9, ((0, 5, 3), (5, 10, 1)))) == [
        ("      0–4", 3, "q"),
        ("      5–9", 1, "q"),
    ]


def test_the_page_is_built_for_an_empty_folder(tmp_path):
    page = build_page(Studio(tmp_path))
    labels = {block.label for block in page.blocks.values() if isinstance(block, gr.Tab)}
    assert labels == {"Data", "Train", "Compare", "Chat", "Report", "Export"}


def test_what_is_under_way_is_stopped_before_the_same_button_does_anything_else(tmp_path):
    """Gradio runs a button's events one after the other: what was emptied first was filled again by the answer."""
    page = build_page(Studio(tmp_path))
    stopping = [one for one in page.fns.values() if one.cancels]
    assert len(stopping) == 4  # Stop, New dialogue and the waste bin of the chat, Stop of a comparison
    for stop in stopping:
        same = [one for one in page.fns.values() if set(one.targets) & set(stop.targets)]
        assert all(one.fn is None for one in same[: same.index(stop)])


def test_only_tabs_stand_among_the_tabs(tmp_path):  # anything else there leaves the page without its tabs
    page = build_page(Studio(tmp_path))
    (tabs,) = [block for block in page.blocks.values() if isinstance(block, gr.Tabs)]
    assert {type(child) for child in tabs.children} == {gr.Tab}


def test_renewed_lists_leave_alone_what_is_chosen_and_offer_the_newest_to_the_rest(tmp_path):
    serving.write_run(tmp_path / "runs" / "mine", 1, "base")
    page = build_page(Studio(tmp_path))
    renewed = next(one.fn for one in page.fns.values() if one.name == "renewed")
    kept, empty, gone = renewed("mine", None, "gone")
    assert "value" not in kept
    assert kept["choices"] == ["mine"]
    assert [empty["value"], gone["value"]] == ["mine", "mine"]
