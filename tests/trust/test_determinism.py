"""What a seed decides, in processes of their own and beside a busy one, on real weights; and what it does not decide.

A seed decides everything as long as machine, engine, number format and number of threads stay the same. The exceptions
are tested as such: they change the last bits, not what is learned or said.
"""

import contextlib
import multiprocessing
import os

import pytest
import torch

import helpers
import tiny

pytestmark = pytest.mark.real("smollm2-135m-instruct")
MODEL = "smollm2-135m-instruct"
QUESTIONS = ["What is PLA?", "Why does the first layer not stick?", "What is a nozzle?", "Name three filaments."]


@contextlib.contextmanager
def busy():
    """Keep every core that may be used busy with something else."""
    spawn = multiprocessing.get_context("spawn")
    spinning = [spawn.Process(target=spin, daemon=True) for _core in os.sched_getaffinity(0)]
    for process in spinning:
        process.start()
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.join()


def spin():
    """Count without end."""
    while True:
        pass


def train(folder, name, threads, dtype):
    """Train a few steps in a process; return the run directory."""
    data = tiny.write_pairs(
        folder / "pairs.jsonl", [(f"What is {n}?", f"It is {n}, and no {n + 1}.") for n in range(16)]
    )
    done = helpers.script(
        "znatok", "train", "--model_name", MODEL, "--data_path", data, "--output_dir", folder / name, "--dtype", dtype,
        "--threads", threads, "--max_steps", 3, "--learning_rate", 2e-3, "--seed", 1,
        cwd=folder, timeout=900, OMP_NUM_THREADS=str(threads),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / name


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_a_seed_and_a_number_of_threads_decide_an_adapter(tmp_path, dtype):
    first = train(tmp_path, "first", 2, dtype)
    with busy():
        again = train(tmp_path, "again", 2, dtype)
    assert helpers.adapter_bytes(first) == helpers.adapter_bytes(again)
    assert helpers.losses(first) == helpers.losses(again)
    # The exception: sums of floats may be cut up among threads, so another number of them may round elsewhere. Whether
    # it does is the processor's and the library's affair: of two machines one gave the same bits, the other did not.
    alone = train(tmp_path, "alone", 1, dtype)
    assert helpers.losses(alone) == pytest.approx(helpers.losses(first), rel=2e-3)
    learned = [
        torch.cat([t.flatten() for n, t in helpers.adapter(run).items() if "lora_B" in n]) for run in (alone, first)
    ]
    assert torch.cosine_similarity(*learned, dim=0) > 0.98


def answers(folder, questions, engine, threads, dtype="auto"):
    """Have a file of questions answered in a process; return the answers in the file's order."""
    (folder / "questions.txt").write_text("".join(f"{question}\n" for question in questions), encoding="utf-8")
    done = helpers.script(
        "znatok", "chat", "--model_name", MODEL, "--engine", engine, "--dtype", dtype, "--system", "You help.",
        "--questions", "questions.txt", "--max_new_tokens", 24,
        cwd=folder, timeout=900, OMP_NUM_THREADS=str(threads),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = done.stdout
    for question in questions:
        assert question in found
    parts = [found.split(question, 1)[1] for question in questions]
    return [part.split("\n\n", 1)[0].strip() for part in parts]


@pytest.mark.parametrize("engine", ["torch", "llamacpp"])
def test_a_seed_decides_an_answer_whatever_is_asked_before_and_whatever_else_runs(tmp_path, engine):
    forward = answers(tmp_path, QUESTIONS, engine, 2)
    with busy():
        backward = answers(tmp_path, QUESTIONS[::-1], engine, 2)
    assert backward[::-1] == forward
    assert len(set(forward)) == len(QUESTIONS)


def test_another_engine_or_number_format_may_say_something_else(tmp_path):
    """The exceptions of docs/chat.md: a text belongs to its engine and number format."""
    said = [
        answers(tmp_path, QUESTIONS, engine, 2, dtype)
        for engine, dtype in (("torch", "float32"), ("torch", "int8"), ("llamacpp", "auto"))
    ]
    assert all(all(texts) for texts in said)
    assert said[0] != said[1] or said[0] != said[2], "if it is no exception any more, say so in docs"
