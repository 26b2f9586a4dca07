"""The seed document's command on real weights, cut short: SmolLM2-135M-Instruct from the catalogue.

A minute on one free core; no clock is checked, since a busy machine is no fault of the program.
"""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import helpers
import tiny
from znatok.config import ModelOptions
from znatok.expert import open_expert
from znatok.files import read_json
from znatok.model import gguf
from znatok.model.source import resolve
from znatok.runs import Run

MODEL = "smollm2-135m-instruct"


# PEFT 0.21 reads a property that transformers 5.23 has renamed; goes with the filter in znatok.model.adapters
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.real("smollm2-135m-instruct")
def test_the_seed_documents_command_teaches_a_real_model_something(tmp_path):
    lines = (tiny.REPO / "data.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    shortest = sorted(lines, key=len)[:16]  # this tokenizer needs a token per Cyrillic letter
    (tmp_path / "data.jsonl").write_text("".join(shortest), encoding="utf-8")
    command = [
        *("--model_name", MODEL, "--data_path", "data.jsonl", "--output_dir", "my-lora-model", "--use_lora"),
        *("--lora_r", "8", "--lora_alpha", "32", "--learning_rate", "2e-4", "--num_train_epochs", "3"),
    ]
    done = helpers.script("train_model.py", *command, "--max_steps", "7", "--max_length", "192", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = Run(tmp_path / "my-lora-model")
    found = helpers.losses(run)
    assert len(found) == 7
    assert sum(found[-3:]) / 3 < found[0]
    assert (
        read_json(run.path / "adapter_config.json")["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    )

    expert = open_expert(ModelOptions(model_name="", dtype="float32"), run, "")
    source = resolve(MODEL)
    stock_base = gguf.load_gguf(source.path, torch.float32, tied=source.tied).model
    assert isinstance(stock_base, AutoModelForCausalLM._model_mapping[type(stock_base.config)])
    stock = PeftModel.from_pretrained(stock_base, run.path).eval()
    ids = torch.tensor([expert.loaded.tokenizer("Что такое 3D-печать?")["input_ids"]])
    with torch.no_grad():
        ours = expert.model(input_ids=ids).logits
        theirs = stock(input_ids=ids).logits
        with stock.disable_adapter():
            base = stock(input_ids=ids).logits
    assert torch.equal(ours, theirs)
    assert not torch.equal(theirs, base)
