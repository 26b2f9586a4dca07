"""Whether int8 training costs quality: the historical recipe in int8 and in float32, several seeds, judged alike.

Each run is ``znatok train`` with its defaults (3 epochs, rank 8, batch 4, dropout 0.1) in a process of its own; its
adapter is then put on the bfloat16 base, and the loss per answer token of the held-out pairs is taken there.

    python benchmarks/quality.py [--model NAME] [--seeds 42 43 44] [--arms float32 int8] [--work DIR] [--out FILE]

Finished runs in --work are used again.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from znatok.config import LANGUAGE_NEUTRAL_SYSTEM, ModelOptions
from znatok.data.load import read_pairs
from znatok.files import read_json, write_json
from znatok.model.adapters import attach
from znatok.model.load import load_base
from znatok.model.machine import machine
from znatok.model.score import answer_losses
from znatok.tokens.chat import choose_format
from znatok.tokens.encode import EncodeRule, encode_pairs

HELDOUT = Path("data/eval/heldout.jsonl")


def train(model: str, arm: str, seed: int, run: Path) -> dict[str, object]:
    """Train one adapter unless it is there; return its manifest."""
    if not (run / "status.json").is_file() or read_json(run / "status.json")["state"] != "finished":
        words = [
            "train",
            "--model_name",
            model,
            "--dtype",
            arm,
            "--seed",
            str(seed),
            "--output_dir",
            str(run),
            "--force",
        ]
        subprocess.run([sys.executable, "-m", "znatok", *words], check=True)
    return dict(read_json(run / "manifest.json"))


def heldout_loss(model: str, run: Path | None) -> float:
    """Return the loss per answer token, in nats, of the bfloat16 base with a run's adapter."""
    loaded = load_base(ModelOptions(model_name=model, dtype="bfloat16"))
    chat = choose_format(loaded.tokenizer, loaded.model.get_input_embeddings().weight)
    examples = encode_pairs(read_pairs(HELDOUT).pairs, chat, EncodeRule(LANGUAGE_NEUTRAL_SYSTEM, 512)).examples
    losses = answer_losses(attach(loaded.model, run) if run else loaded.model, examples)
    return sum(total for total, _count in losses) / sum(count for _total, count in losses)


def main() -> None:
    """Train and judge what is asked for; print a table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--arms", nargs="+", default=["float32", "int8"])
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/baselines/quality.json"))
    args = parser.parse_args()
    rows = []
    for arm in args.arms:
        for seed in args.seeds:
            run = args.work / f"{args.model}-{arm}-{seed}"
            manifest = train(args.model, arm, seed, run)
            rows.append(
                {
                    "arm": arm,
                    "seed": seed,
                    "heldout_loss": round(heldout_loss(args.model, run), 5),
                    "engine": manifest["engine"],
                    "result": manifest["result"],
                    "base": manifest["base"],
                }
            )
            print(json.dumps({key: rows[-1][key] for key in ("arm", "seed", "heldout_loss")}), flush=True)
    means = {arm: statistics.fmean(float(r["heldout_loss"]) for r in rows if r["arm"] == arm) for arm in args.arms}
    result = {"model": args.model, "machine": machine(), "base_loss": round(heldout_loss(args.model, None), 5)}
    result |= {"n": len(read_pairs(HELDOUT).pairs), "means": means, "runs": rows}
    if {"float32", "int8"} <= means.keys():
        result["relative_difference"] = round(means["int8"] / means["float32"] - 1, 5)
    write_json(args.out, result)
    print(json.dumps({key: result[key] for key in result if key != "runs"}, indent=1))


if __name__ == "__main__":
    main()
