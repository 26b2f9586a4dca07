"""The script that serves runs by vLLM: its command follows from the run directories alone. vLLM itself is not here."""

import json
import shlex
import subprocess
import sys

import pytest

import tiny

SCRIPT = tiny.REPO / "examples" / "vllm" / "serve.py"


def run(folder, name, *, rank=16, base="Qwen/Qwen2.5-1.5B", template="{{ messages }}"):
    path = folder / name
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps({"r": rank, "base_model_name_or_path": base}))
    (path / "chat_template.jinja").write_text(template)
    return name


def shown(folder, *words):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *words, "--show"], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_command_names_base_adapters_rank_and_template(tmp_path):
    runs = [run(tmp_path, "one", rank=16), run(tmp_path, "two", rank=24)]
    done = shown(tmp_path, *runs, "--port", "9000", "--max-model-len", "4096")
    assert done.returncode == 0, done.stderr
    assert shlex.split(done.stdout) == [
        *("vllm", "serve", "Qwen/Qwen2.5-1.5B", "--enable-lora", "--max-lora-rank", "32"),
        *("--lora-modules", "one=one", "two=two", "--chat-template", "one/chat_template.jinja"),
        *("--generation-config", "vllm", "--port", "9000", "--max-model-len", "4096"),
    ]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"base": "Qwen/Qwen2.5-0.5B"}, "different bases"),
        ({"template": "{{ other }}"}, "different templates"),
        ({"rank": 1024}, "rank 1024: vLLM takes at most 512"),
    ],
)
def test_what_one_server_cannot_serve_is_refused(tmp_path, changed, said):
    done = shown(tmp_path, run(tmp_path, "one"), run(tmp_path, "two", **changed))
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stdout == ""


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    done = shown(tmp_path, "empty")
    assert done.returncode == 2
    assert "no adapter_config.json" in done.stderr
