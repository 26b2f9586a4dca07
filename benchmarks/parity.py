"""Do the two engines say the same? Greedy tokens of torch and of llama.cpp on the same GGUF weights, prompt by prompt.

Both read the same quantised weights. torch turns them back into numbers and multiplies; llama.cpp also rounds what is
multiplied with them to 8 bits. So near ties may go the other way, and for each place where they do the margin is shown:
by how much torch preferred its own token. After that place the texts differ; to judge the rest as well, torch reads
what llama.cpp said and reports the largest margin it was ever beaten by.

    python benchmarks/parity.py [NAME ...] [--tokens 32] [--prompts 10] [--dtype float32] [--out FILE.json]
"""

import argparse
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from znatok.config import LANGUAGE_NEUTRAL_SYSTEM, ModelOptions, SampleOptions
from znatok.data.load import read_pairs
from znatok.data.questions import read_questions
from znatok.expert import Voice, open_expert
from znatok.files import write_json
from znatok.generate.engine import Request
from znatok.generate.torch_engine import TorchEngine
from znatok.model.machine import machine
from znatok.model.score import head_weight, hidden_states
from znatok.tokens.chat import dialogue

EVAL = Path(__file__).parent.parent / "data" / "eval"
SEED = 42


def prompts(count: int) -> list[str]:
    """Return the project's five questions and then held-out ones."""
    asked = [question.text for question in read_questions(EVAL / "questions.txt")]
    return [*asked, *(pair.prompt for pair in read_pairs(EVAL / "heldout.jsonl").pairs)][:count]


@torch.no_grad()
def margins(model: Any, ids: list[int], said: list[int]) -> list[float]:
    """Return by how much torch's logit of each token in ``said`` stays behind its best one; 0 where it is the best."""
    hidden_BTD = hidden_states(model, torch.tensor([ids + said[:-1]]), torch.ones(1, len(ids) + len(said) - 1))
    logits_TV = (hidden_BTD[0, len(ids) - 1 :] @ head_weight(model).T).float()
    return (logits_TV.max(1).values - logits_TV[torch.arange(len(said)), torch.tensor(said)]).tolist()


def measure(name: str, tokens: int, asked: list[str], dtype: str) -> dict[str, Any]:
    """Ask both engines everything; return one row a prompt."""
    fast = open_expert(ModelOptions(model_name=name), None, "", "llamacpp")
    exact = open_expert(ModelOptions(model_name=name, dtype=dtype), None, "", "torch")
    sample = SampleOptions(temperature=0, max_new_tokens=tokens)
    rows = []
    for text in asked:
        request = Request(tuple(dialogue(text, LANGUAGE_NEUTRAL_SYSTEM)), sample, SEED)
        said = {}
        for expert in (exact, fast):
            with expert.speaking(Voice.BASE) as engine:
                assert isinstance(engine, TorchEngine) or expert is fast
                said[expert.engine] = [token for _index, token, _stop in engine.tokens([request])]  # type: ignore[attr-defined]
        ours, theirs = said["torch"], said["llamacpp"]
        behind = margins(exact.loaded.model, exact.chat.prompt_ids(request.messages), theirs)
        differ = [place for place, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]]
        place = differ[0] if differ else None
        rows.append(
            {
                "prompt": text,
                "tokens": len(theirs),
                "same": len(ours) if place is None and len(ours) == len(theirs) else place,
                "margin": None if place is None else round(behind[place], 4),
                "largest_margin": round(max(behind), 4),
                "behind": sum(margin > 0 for margin in behind),
            }
        )
    return {
        "sha256": exact.base_sha256,
        "format": exact.chat.name,
        "torch_dtype": str(exact.loaded.dtype).removeprefix("torch."),
        "identical": sum(row["margin"] is None for row in rows),
        "tokens_agreeing": round(1 - sum(row["behind"] for row in rows) / sum(row["tokens"] for row in rows), 4),
        "largest_margin": max(row["largest_margin"] for row in rows),
        "rows": rows,
    }


def main() -> None:
    """Measure what the arguments name; print a table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    asked, models = prompts(args.prompts), {}
    for name in args.names:
        models[name] = found = measure(name, args.tokens, asked, args.dtype)
        print(f"\n{name} ({found['sha256'][:12]}), torch {found['torch_dtype']}")
        print(f"prompts answered equally: {found['identical']} of {len(asked)}")
        print(f"of all tokens llama.cpp said, torch's best: {found['tokens_agreeing']:.1%}")
        print(f"largest margin torch was beaten by: {found['largest_margin']:.3f}\n")
        print("| same tokens | margin there | largest margin | prompt |\n|---|---|---|---|")
        for row in found["rows"]:
            margin = "" if row["margin"] is None else f"{row['margin']:.3f}"
            print(f"| {row['same']}/{row['tokens']} | {margin} | {row['largest_margin']:.3f} | {row['prompt'][:60]} |")
    if args.out:
        report = {
            "machine": machine(),
            "versions": {name: version(name) for name in ("xllamacpp", "torch", "transformers", "gguf")},
            "commit": commit(),
            "seed": SEED,
            "n": len(asked),
            "tokens": args.tokens,
            "models": models,
        }
        write_json(args.out, report)


def commit() -> str | None:
    """Return the commit of the working tree, where git knows it."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


if __name__ == "__main__":
    main()
