"""The judge: both orders, one criterion at a time, verdicts remembered, errors in one line."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from znatok.errors import SystemFault, UsageError
from znatok.exam.arms import Store
from znatok.exam.criteria import CRITERIA
from znatok.exam.judge import Judge, judge_pairs, letter, pairs_of

SCORES = dict.fromkeys(CRITERIA, 0.0)


def row(arm, text, **scores):
    return {
        "kind": "open", "split": "T1", "id": "q1", "arm": arm, "run": "r" if arm == "tuned" else "",
        "question": "Сколько греть?", "reference": "200 °C", "text": text, **SCORES, **scores,
    }  # fmt: skip


PAIRS = [(row("base", "Не важно."), row("tuned", "До 200 °C.", accuracy=1.0))]


@pytest.mark.parametrize(
    ("reply", "read"),
    [("A", "A"), ("**B**", "B"), ("Both are fine: T.", "T"), ("A is vague. Verdict: B", "B"), ("нет", ""), ("", "")],
)
def test_the_last_letter_that_stands_alone_counts(reply, read):
    assert letter(reply) == read


def test_a_judge_that_prefers_what_is_right_is_heard():
    def ask(prompt):
        return "A" if prompt.index("До 200") < prompt.index("Не важно") else "B"

    found = {one.criterion: one for one in judge_pairs(PAIRS, ask)}
    assert set(found) == set(CRITERIA)
    assert all((one.tuned, one.base, one.ties, one.unread) == (1, 0, 0, 0) for one in found.values())
    assert found["accuracy"].kappa == 1.0
    assert found["accuracy"].share.value == 1.0


def test_a_judge_that_prefers_the_first_place_is_not():
    found = judge_pairs(PAIRS, lambda _prompt: "A")
    assert all((one.tuned, one.base, one.ties) == (0, 0, 1) for one in found)
    assert all(one.unread == 2 for one in judge_pairs(PAIRS, lambda _prompt: ""))


def test_pairs_are_of_one_run_and_drawn_by_the_seed():
    rows = [{**r, "id": f"q{i}"} for i in range(9) for r in PAIRS[0]]
    rows += [{**rows[1], "run": "another"}, {**rows[1], "split": "T5", "id": "q99"}]
    chosen = pairs_of(rows, 4, 1)
    assert len(chosen) == 4
    assert {tuned["run"] for _base, tuned in chosen} == {"r"}
    assert chosen == pairs_of(rows, 4, 1)
    assert chosen != pairs_of(rows, 4, 2)


@pytest.fixture
def address(request):
    """Yield the address of a server that speaks the protocol, and what it was asked."""
    asked = []
    status = getattr(request, "param", 200)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            message = {"role": "assistant", "content": "B"}
            body = {
                "id": "1", "object": "chat.completion", "created": 1, "model": "m",
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            }  # fmt: skip
            raw = json.dumps(body if status == 200 else {"error": {"message": "no key"}}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_verdict_is_asked_for_once(address, tmp_path):
    url, asked = address
    with Judge(url, "wise", Store(tmp_path / "judged.jsonl")) as judge:
        assert judge.verdict("Кто лучше?") == "B"
        assert judge.verdict("Кто лучше?") == "B"
    assert len(asked) == 1
    assert asked[0]["model"] == "wise"
    assert asked[0]["temperature"] == 0
    with Judge(url, "wise", Store(tmp_path / "judged.jsonl")) as later:
        assert later.verdict("Кто лучше?") == "B"
    assert len(asked) == 1


@pytest.mark.parametrize("address", [401], indirect=True)
def test_a_refusal_is_one_line_with_a_remedy(address):
    url, _asked = address
    with Judge(url, "wise", Store(None)) as judge, pytest.raises(SystemFault, match="ZNATOK_JUDGE_KEY"):
        judge.verdict("Кто лучше?")


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_judge_on_this_machine_is_not_asked_through_a_proxy(address, monkeypatch, name):
    url, asked = address
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with Judge(url.replace("127.0.0.1", name), "wise", Store(None)) as judge:
        assert judge.verdict("Кто лучше?") == "B"
    assert len(asked) == 1


def test_a_judge_elsewhere_is_asked_through_the_proxy(address, monkeypatch):
    url, asked = address
    monkeypatch.setenv("HTTP_PROXY", url.removesuffix("/v1"))
    with Judge("http://judge.invalid/v1", "wise", Store(None)) as judge:
        assert judge.verdict("Кто лучше?") == "B"
    assert len(asked) == 1


def test_a_judge_without_a_name_is_refused():
    with pytest.raises(UsageError, match="--judge_model"):
        Judge("http://127.0.0.1:1/v1", "", Store(None))
