"""A Qwen2 small enough for any test, built offline: real architecture, real chat tokens, random weights."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

REPO = Path(__file__).parent.parent
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENIZER = Path(__file__).parent / "golden" / "tiny_tokenizer.json"
"""Byte-level BPE of about 500 tokens, trained on Russian answers once: a data set that changes must not change it."""


def tiny_tokenizer() -> Any:
    """Return a byte-level BPE tokenizer with ChatML's control tokens and about 500 tokens."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(TOKENIZER)), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def tiny_model(seed: int = 0, **changes: Any) -> Any:
    """Return a random Qwen2: 2 layers, width 32, 4 query and 2 key heads, tied embedding, float32."""
    shape = {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(Qwen2Config(**(shape | changes)))
    return model.eval()


def save_tiny(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a tiny model and its tokenizer as a hub-layout directory; return it."""
    tiny_model(seed, **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_endless(folder: Path, **changes: Any) -> Path:
    """Write a tiny model that would, drawn greedily, rather say anything than stop; return its directory."""
    model = tiny_model(initializer_range=0.3, max_position_embeddings=32768, **changes)
    with torch.no_grad():
        model.get_input_embeddings().weight[[0, 2]] = 0
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


PAIRS = [
    ("Что такое PLA?", "Полилактид: простой в печати пластик."),
    ("Что такое ABS?", "Прочный пластик, который коробится без корпуса."),
    ("Чем моют смолу?", "Изопропиловым спиртом."),
    ("Что делает слайсер?", "Режет модель на слои и пишет G-code."),
    ("Зачем нужна кайма?", "Она держит углы детали у стола."),
    ("Что такое ретракт?", "Втягивание прутка перед холостым ходом."),
    ("Чем сушат филамент?", "Нагревом: силикагель только хранит сухим."),
    ("Что такое мост?", "Участок, напечатанный над пустотой."),
    ("Где печатают ABS?", "В закрытом корпусе с вытяжкой."),
    ("Что такое шов?", "Место, где начинается и кончается периметр слоя."),
]


def write_pairs(path: Path, pairs: list[tuple[str, str]] = PAIRS) -> Path:
    """Write question-answer pairs as JSON Lines, each on a fact of its own; return the path."""
    rows = [{"prompt": q, "response": a, "topic": "t", "fact_ids": [f"f-{i}"]} for i, (q, a) in enumerate(pairs)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
