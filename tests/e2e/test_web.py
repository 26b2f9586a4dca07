"""The page in a real browser: from a file of questions to a compared, exported model, without a terminal."""

import json
import os
import re
import shutil
import signal
import subprocess
import threading

import pytest
import torch

import helpers
import serving
import tiny
from znatok.config import LANGUAGE_NEUTRAL_SYSTEM
from znatok.tokens.chat import choose_format, dialogue
from znatok.web.jobs import Jobs

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
SCRIPT = "<img src=x onerror=\"document.title='stolen'\"><script>document.title='stolen'</script>"
ASKED = "<img src=x onerror=document.title='stolen'>"
ANSWERED = f"{ASKED}![x](https://elsewhere.invalid/x.png)"
RUN = f"`{ASKED}"  # a folder may be called that
WATCH = """
import sys

def watch(event, args):
    address = args[1] if event in {"socket.connect", "socket.sendto"} else args[:1]
    if event.startswith("socket.") and isinstance(address, tuple) and event in WATCHED:
        if address[0] not in {"127.0.0.1", "::1", "localhost"}:
            with open(PATH, "a") as file:
                file.write(f"{event} {address}\\n")

WATCHED = {"socket.connect", "socket.sendto", "socket.getaddrinfo"}
sys.addaudithook(watch)
"""
WAIT = 120_000  # milliseconds; training and exporting are processes of their own


class Web:
    """A running ``znatok web``; whatever it, or a verb it starts, asks of another machine is written down."""

    def __init__(self, folder):
        self.asked = folder / "watch" / "asked.txt"
        self.asked.parent.mkdir()
        watch = self.asked.parent / "sitecustomize.py"
        watch.write_text(f"PATH = {str(self.asked)!r}{WATCH}", encoding="utf-8")
        self.process = subprocess.Popen(
            helpers.command("znatok", "web", "--port", 0),
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
            env=helpers.environment(PYTHONPATH=os.pathsep.join((str(watch.parent), os.environ.get("PYTHONPATH", "")))),
        )
        self.said = []
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r"open (http://\S+) in", line):
                self.url = found[1]
                break
        else:
            pytest.fail("it did not start: " + "".join(self.said))
        self._rest = threading.Thread(target=lambda: self.said.extend(self.process.stderr))
        self._rest.start()

    def stop(self):
        """Stop it as Ctrl-C does; return its exit code."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(60)
        self._rest.join()
        self.process.stderr.close()
        return code


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("web")
    tiny.save_tiny(folder / "base", **serving.SPREAD)
    save_parrot(folder / "parrot")
    tiny.save_endless(folder / "endless", num_hidden_layers=24)  # slow, so that a browser may be as well
    tiny.write_pairs(folder / "pairs.jsonl", [*tiny.PAIRS, ("Что это?", SCRIPT)])
    spoilt = [
        '{"prompt": "Что?", "response": "Да."}',
        json.dumps({"prompt": 5, ANSWERED: "x"}),
        json.dumps([ANSWERED]),
        "{",
    ]
    (folder / "spoilt.jsonl").write_text("\n".join(spoilt), encoding="utf-8")
    tiny.write_pairs(folder / "kept.jsonl", [("Что такое сопло?", "Отверстие.")])
    (folder / "questions.txt").write_text("Что такое PLA?\nЧто такое ABS?\n", encoding="utf-8")
    return folder


def save_parrot(folder):
    """Write a tiny model that was taught one answer."""
    model, tokenizer = tiny.tiny_model(), tiny.tiny_tokenizer()
    chat = choose_format(tokenizer, model.get_input_embeddings().weight)
    prompt = chat.prompt_ids(dialogue(ASKED, LANGUAGE_NEUTRAL_SYSTEM))
    ids = torch.tensor([[*prompt, *tokenizer(ANSWERED)["input_ids"], chat.end_id]])
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < len(prompt), -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(110):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def web(folder):
    web = Web(folder)
    yield web
    assert web.stop() == 0
    assert "Traceback" not in "".join(web.said)
    assert not web.asked.exists(), web.asked.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, web):
    """A page whose every request is watched: none may leave this machine, try to, or be made by what is only shown."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-US")
    abroad, refused, missing = [], [], []
    context.on(
        "request",
        lambda request: None if is_our_own(request.url, web) else abroad.append(request.url),
    )
    context.on(
        "console", lambda message: refused.append(message.text) if "Content Security Policy" in message.text else None
    )
    context.on("response", lambda answer: missing.append(answer.url) if answer.status in {403, 404, 405} else None)
    page = opened(context, web)
    yield page
    assert abroad == []
    assert missing == []
    assert refused == []
    assert {one.title() for one in context.pages} == {"znatok"}
    context.close()


def is_our_own(url, web):
    return url.startswith((web.url, "data:", "blob:")) and not url.endswith("/x")


def opened(context, web):
    """Return one more tab."""
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.goto(web.url)
    page.get_by_role("tab", name="Data").wait_for()
    return page


def fill(page, name, value):
    """Type into the input of an option."""
    box = page.locator(f"#{name} input, #{name} textarea").first
    box.fill(str(value))
    box.blur()


def choose(page, name, value):
    """Choose from a list."""
    page.locator(f"#{name} input").first.click()
    page.get_by_role("option", name=value, exact=True).click()


def tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def see(page, place, text):
    """Wait until a text is to be seen in a place; tables hold hidden copies to measure."""
    page.locator(f"#{place}").get_by_text(text).locator("visible=true").first.wait_for()


def value(page, name):
    return page.locator(f"#{name} textarea").first.input_value()


def wait_for(page, name, text):
    """Wait until a box holds a text."""
    page.wait_for_function(
        "([name, text]) => document.querySelector(`#${name} textarea`)?.value.includes(text)", arg=[name, text]
    )


def wait_for_answer(page):
    """Wait until an answer in the chat has begun."""
    page.wait_for_function(
        "/^(?!waiting)[^]/.test(document.querySelector('#chat-talk [data-testid=bot]')?.innerText ?? '')"
    )


def newest_run(page, name):
    """Wait until the newest run is chosen, as it is a moment after the page was loaded."""
    page.wait_for_function("name => document.querySelector(`#${name} input`)?.value === 'mine'", arg=name)


def bring_data(page, folder, pictures):
    page.locator("input[type=file]").first.set_input_files(folder / "spoilt.jsonl")
    page.wait_for_function("document.querySelector('#data-file input').value.includes('uploads/spoilt.jsonl')")
    page.locator("#data-check").click()
    wait_for(page, "data-report", "bad records 3")
    see(page, "data-problems", "cut short")
    choose(page, "data-file", "pairs.jsonl")
    page.locator("#data-check").click()
    wait_for(page, "data-report", f"pairs {len(tiny.PAIRS) + 1}")
    page.locator("#data-lengths svg").get_by_text("80–89").wait_for()  # of this file, not of the one before
    fill(page, "data-row", len(tiny.PAIRS) + 1)
    fill(page, "data-model", folder / "base")
    page.locator("#data-show").click()
    see(page, "data-sample", "onerror")
    page.screenshot(path=pictures / "data.png", full_page=True)


def train(page, folder, pictures):
    tab(page, "Train")
    page.locator("#train-recipe").get_by_text("seed").click()
    page.get_by_text("all other options").click()
    for name, text in {"model_name": folder / "base", "output_dir": f"runs/{RUN}", "val_path": "", "max_steps": 12,
                       "learning_rate": 0.005, "val_share": 0}.items():  # fmt: skip
        fill(page, f"option-{name}", text)
    choose(page, "option-dtype", "float32")
    see(page, "train-command", "--max_steps 12")
    page.locator("#train-plan").click()
    wait_for(page, "train-log", "steps: 12")
    page.wait_for_function("document.querySelector('#train-state').innerText.includes('not at work')")
    see(page, "train-state", RUN.partition("'")[0])  # what follows is quoted as a shell wants it
    fill(page, "option-output_dir", "runs/mine")
    page.locator("#train-start").click()
    see(page, "train-state", "--output_dir runs/mine")  # it has begun
    page.reload()  # what was begun goes on and is found again
    tab(page, "Train")
    wait_for(page, "train-log", "done: runs/mine")
    page.locator("#train-curve svg .mark-line path").first.wait_for()  # drawn, not only its axes
    page.screenshot(path=pictures / "train.png", full_page=True)


def compare_both(page, folder, pictures):
    tab(page, "Compare")
    newest_run(page, "compare-run")
    fill(page, "compare-longest", 16)
    page.locator("#compare-blind input").check()
    fill(page, "compare-question", "Что такое PLA?")
    page.locator("#compare-ask").click()
    see(page, "compare-verdict", "which one is better?")
    assert value(page, "compare-left") != value(page, "compare-right")
    page.locator("#compare-vote-left").click()
    see(page, "compare-verdict", "votes:")
    (vote,) = [json.loads(line) for line in (folder / "runs/mine/votes.jsonl").read_text(encoding="utf-8").splitlines()]
    assert vote["vote"] == vote["order"][0]
    assert vote["blind"] is True
    assert sorted(vote["order"]) == ["base", "tuned"]
    page.locator("input[type=file]").last.set_input_files(folder / "questions.txt")
    choose(page, "compare-heldout", "kept.jsonl")
    page.locator("#compare-begin").click()
    wait_for(page, "compare-log", "loading")
    page.locator("#compare-end").click()
    wait_for(page, "compare-log", "interrupted")
    stopped = Jobs(folder / "runs" / ".web", folder).get("compare")
    serving.wait_until(lambda: not stopped.running, 60)
    page.locator("#compare-begin").click()
    wait_for(page, "compare-log", "everything is in")
    page.locator("#compare-table img").first.wait_for()
    page.screenshot(path=pictures / "compare.png", full_page=True)


def chat(page, folder, pictures):
    tab(page, "Chat")
    fill(page, "chat-text", "Что такое ABS?")
    page.locator("#chat-send").click()
    see(page, "chat-talk", "Что такое ABS?")
    wait_for_answer(page)
    page.screenshot(path=pictures / "chat.png", full_page=True)


def show_to_the_letter(page, folder, pictures):
    """Markup in a question, an answer, a run's name and an error; the model, without a run, is the chat's alone."""
    page.locator("#chat-clear").click()
    page.locator("#chat-talk [data-testid=bot]").first.wait_for(state="detached")
    ask(page, folder / "parrot")
    see(page, "chat-talk", ASKED)
    see(page, "chat-talk", ANSWERED)
    serving.write_run(folder / "runs" / RUN, 1, str(folder / "parrot"))
    tab(page, "Compare")
    choose(page, "compare-run", RUN)
    page.locator("#compare-blind input").uncheck()
    fill(page, "compare-question", ASKED)
    fill(page, "compare-longest", 256)
    page.locator("#compare-ask").click()
    wait_for(page, "compare-left", ANSWERED)
    tab(page, "Report")
    choose(page, "report-run", RUN)
    page.locator("#report-show").click()
    page.get_by_text(f"{RUN}: no report yet").first.wait_for()
    page.screenshot(path=pictures / "letter.png", full_page=True)
    shutil.rmtree(folder / "runs" / RUN)
    page.reload()


def export_model(page, folder, pictures):
    tab(page, "Report")
    newest_run(page, "report-run")
    page.locator("#report-show").click()
    page.frame_locator("#report-page iframe").get_by_text("PLA").first.wait_for()
    tab(page, "Export")
    newest_run(page, "export-run")
    choose(page, "option-to", "merged")
    choose(page, "option-merged_dtype", "float32")
    page.locator("#export-begin").click()
    wait_for(page, "export-log", "ready")
    assert (folder / "runs/mine/export/merged/model.safetensors").is_file()
    page.screenshot(path=pictures / "export.png", full_page=True)


def test_from_a_file_to_an_exported_model(page, folder, tmp_path_factory):
    pictures = tmp_path_factory.mktemp("pictures")
    for step in (bring_data, train, compare_both, chat, show_to_the_letter, export_model):
        step(page, folder, pictures)


def test_a_mistake_is_a_message_on_the_page(page):
    tab(page, "Compare")
    page.locator("#compare-ask").click()
    page.get_by_text("no question: type one").first.wait_for()
    fill(page, "compare-question", "Что?")
    fill(page, "compare-seed", "")
    page.locator("#compare-ask").click()
    page.get_by_text("seed: the box is empty; expected a number").first.wait_for()
    ask(page, "nowhere")
    page.get_by_text("nowhere").first.wait_for()
    page.locator("#chat-talk [data-testid=user]").wait_for()
    page.locator("#chat-talk [data-testid=bot]").wait_for(state="detached")  # nothing waits any more


def ask(page, voice, run=None):
    """Ask in the chat, without waiting for the answer."""
    page.bring_to_front()  # a list takes what is typed when it loses the focus, which no hidden tab has
    tab(page, "Chat")
    if run:
        choose(page, "chat-run", run)
    fill(page, "chat-voice", voice)
    fill(page, "chat-text", ASKED)
    page.locator("#chat-send").click()


def ready_for_a_long_answer(page, voice):
    """Prepare a question in the chat whose answer takes many seconds; no test waits for its end."""
    page.bring_to_front()
    tab(page, "Chat")
    page.get_by_text("how answers are drawn").click()
    fill(page, "chat-longest", 1024)
    fill(page, "chat-voice", voice)
    fill(page, "chat-text", ASKED)


@pytest.fixture
def second(folder):
    """A run that is gone when the test is over: others expect to find their own chosen."""
    run = folder / "runs" / "second"
    serving.write_run(run, 2, str(folder / "base"))
    yield
    shutil.rmtree(run)


@pytest.mark.usefixtures("second")
def test_tabs_reloads_the_back_button_and_a_lost_connection_leave_the_page_in_order(page, web, folder):
    other = opened(page.context, web)
    ask(page, folder / "parrot")
    ask(other, "tuned", "second")  # another model: neither takes away what the other is answered by
    for one in (page, other):
        wait_for_answer(one)
    ask(page, folder / "parrot")
    page.reload()  # in the middle of an answer
    ask(page, folder / "parrot")
    see(page, "chat-talk", ANSWERED)
    page.goto("about:blank")
    page.go_back()
    ask(page, folder / "parrot")
    see(page, "chat-talk", ANSWERED)
    page.context.set_offline(True)
    ask(page, folder / "parrot")
    page.get_by_text("Connection to the server was lost").first.wait_for()
    with page.expect_navigation():  # once it is there again the page loads itself
        page.context.set_offline(False)
    ask(page, folder / "parrot")
    see(page, "chat-talk", ANSWERED)


def test_two_tabs_are_answered_at_the_same_time(page, web, folder):
    """The second waited until the first had its whole answer."""
    other = opened(page.context, web)
    for one in (page, other):
        ready_for_a_long_answer(one, folder / "endless")
    for one in (page, other):
        one.locator("#chat-send").click()
    for one in (other, page):
        wait_for_answer(one)
    so_far = len(page.locator("#chat-talk [data-testid=bot]").inner_text())
    page.wait_for_function(
        "so_far => document.querySelector('#chat-talk [data-testid=bot]').innerText.length > so_far",
        arg=so_far,
        timeout=20_000,
    )


@pytest.fixture
def endless(folder):
    """A run whose base says a long answer."""
    run = folder / "runs" / "endless"
    serving.write_run(run, 1, str(folder / "endless"), layers=24)
    yield
    shutil.rmtree(run)


@pytest.mark.usefixtures("endless")
def test_a_comparison_is_stopped_and_begun_again(page, folder):
    tab(page, "Compare")
    choose(page, "compare-run", "endless")
    fill(page, "compare-question", ASKED)
    fill(page, "compare-longest", 1024)
    page.locator("#compare-ask").click()
    page.wait_for_function("document.querySelector('#compare-left textarea').value.length > 20")
    page.locator("#compare-stop").click()
    page.wait_for_timeout(500)
    so_far = value(page, "compare-left")
    page.wait_for_timeout(1000)
    assert value(page, "compare-left") == so_far
    fill(page, "compare-longest", 16)
    page.locator("#compare-ask").click()
    see(page, "compare-verdict", "which one is better?")


def test_a_new_dialogue_is_empty_though_an_answer_was_being_given(page, folder):
    for moment in (0, 150, 300):  # milliseconds into the answer
        page.reload()
        ready_for_a_long_answer(page, folder / "endless")
        page.locator("#chat-send").click()
        wait_for_answer(page)
        page.wait_for_timeout(moment)
        page.locator("#chat-clear").click()
        page.locator("#chat-talk [data-testid=bot]").first.wait_for(state="detached", timeout=20_000)
        page.wait_for_timeout(300)  # nothing of the old one comes late
        assert page.locator("#chat-talk :is([data-testid=bot], [data-testid=user])").count() == 0, moment


def test_nothing_is_cut_off_on_a_phone(browser, web):
    context = browser.new_context(viewport={"width": 390, "height": 800})
    page = context.new_page()
    page.goto(web.url)
    page.get_by_role("tab", name="Data").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()
