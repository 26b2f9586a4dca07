"""Other people's programs and suites against a running server: what they do with OpenAI, they do with znatok."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml

import helpers
import serving
import tiny
from served import Server

NOT_DONE = {"chat-image-input", "chat-tool-calling"}  # what a text model does not do
PROGRAMS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A base, and a run that has learned to end its answers."""
    base, runs = serving.write_world(tmp_path_factory.mktemp("conformance"), names=())
    pairs = tiny.write_pairs(base.parent / "pairs.jsonl")
    helpers.trained(base, pairs, runs / "printing", data_options={"val_share": 0.0}, num_train_epochs=15)
    server = Server(base.parent, "--model_name", base, "--dtype", "float32", "--context", 512)
    yield server
    server.stop()


def run(name, *words, cwd, **changes):
    """Run an installed program to its end."""
    return subprocess.run(
        [str(PROGRAMS / name), *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=240,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUTF8": "1", "NO_COLOR": "1", **changes},
    )


def test_the_llm_program_is_answered(server, tmp_path):
    models = [{"model_id": "mine", "model_name": "printing", "api_base": server.url}]
    (tmp_path / "extra-openai-models.yaml").write_text(yaml.safe_dump(models), encoding="utf-8")
    said = []
    for more in ([], ["--no-stream"]):
        options = ["-o", "seed", 1, "-o", "max_tokens", 9, *more]
        done = run("llm", "-m", "mine", "Что такое PLA?", *options, cwd=tmp_path, LLM_USER_PATH=str(tmp_path))
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] == said[1]
    assert said[0].strip()


def test_the_apis_own_specification_is_kept(server, tmp_path):
    words = ["--format", "openai-chat", "-u", server.url, "-m", "printing", "-k", "x", "--json"]
    passed, failed = set(), set()
    for _attempt in range(5):  # it gives no seed: a tiny model's draw may run into the limit where an end is expected
        found = json.loads(run("llm-comply", *words, cwd=tmp_path).stdout)["results"]
        passed |= {test["id"] for test in found if test["status"] == "passed"}
        failed |= {test["id"] for test in found if test["status"] == "failed"}
        if failed - passed == NOT_DONE:
            break
    assert failed - passed == NOT_DONE, found
    assert len(passed) >= 6


def test_what_the_schema_allows_is_answered_and_nothing_else_breaks_it(server, tmp_path):
    """Schemathesis draws requests that fit the schema and requests that do not.

    It never guessed the name of a model, so each request that fits ended there.
    """
    (tmp_path / "schemathesis.toml").write_text(
        # dialogues whose last message is not the user's fit the schema and are refused
        "[checks.positive_data_acceptance]\nexpected-statuses = [200, 400]\n",
        encoding="utf-8",
    )
    address = server.url.removesuffix("/v1")
    schema = json.loads(fetched(f"{address}/openapi.json"))
    ids = [one["id"] for one in json.loads(fetched(f"{server.url}/models"))["data"]]
    schema["components"]["schemas"]["ChatRequest"]["properties"]["model"]["enum"] = ids
    schema["paths"]["/v1/models/{model}"]["get"]["parameters"][0]["schema"]["enum"] = ids
    (tmp_path / "openapi.json").write_text(json.dumps(schema), encoding="utf-8")
    words = ["--mode", "all", "--max-examples", 25, "--generation-deterministic", "--continue-on-failure"]
    words += ["--url", address, "--request-timeout", 120, "--phases", "examples,coverage,fuzzing"]
    done = run("schemathesis", "run", "openapi.json", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]
    chat = schema["components"]["schemas"]["ChatRequest"]["properties"]
    chat["messages"]["maxItems"] = 1
    schema["components"]["schemas"]["Turn"]["properties"]["role"]["enum"] = ["user"]
    for name in ("stream_options", "top_logprobs"):  # allowed beside others only
        del chat[name]
    (tmp_path / "openapi.json").write_text(json.dumps(schema), encoding="utf-8")
    before = answered(address)
    words[:4] = ["--mode", "positive", "--max-examples", 15]
    done = run("schemathesis", "run", "openapi.json", *words, "--include-path", "/v1/chat/completions", cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]
    assert answered(address) >= before + 10


def fetched(url):
    """Return what a server says."""
    with urllib.request.urlopen(url, timeout=60) as reply:  # noqa: S310  # our own
        return reply.read().decode()


def answered(address):
    """Return how many requests have been answered to their end."""
    counts = re.findall(r'znatok_requests_total\{.*outcome="answered"\} (\S+)', fetched(f"{address}/metrics"))
    return sum(map(float, counts))
