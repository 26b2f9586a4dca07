"""How fast training is: znatok beside the stock recipe and TRL, each optimisation off in turn, and how cost grows.

    python benchmarks/train.py [--model NAME] [--parts sides ablation growth shapes] [--out FILE]

Each measurement is a process of its own. Speed is text tokens (padding left out, a shared beginning counted for each
example) over the seconds of optimiser steps, the first one left out. The limit is the machine's own: the best rate
of torch's int8 product at the model's shapes, times the work of a token (``work``). Run it on an idle machine.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEGUN = time.perf_counter()  # before anything heavy is imported: seconds to the first step count from here
MODEL, SMALL = "qwen2.5-coder-1.5b-instruct", "qwen2.5-coder-0.5b-instruct"
DATA = Path("data.jsonl")
STEPS = {"stock-float32": 5, "stock-bfloat16": 7, "trl-bfloat16": 7}
ABLATIONS = {
    "all on": "znatok",
    "transformers layers, bfloat16": "padded",
    "bfloat16 weights": "--dtype bfloat16",
    "float head": "float-head",
    "no compiled kernels": "eager",
    "beginnings not shared": "unshared",
    "torch's flash attention": "flash",
    "all rows of the last layer": "all-rows",
    "default allocator": "malloc",
    "without dropout (not an optimisation)": "--lora_dropout 0",
}


# One measurement, in this process


def measure(what: str, model: str, data: Path, steps: int, extra: list[str]) -> dict[str, Any]:
    """Train a few steps; return their seconds and tokens, the seconds to the first one's end, and peak memory."""
    if what.startswith("stock-"):
        from peers import stock

        found = stock(model, data, what.removeprefix("stock-"), steps)
    elif what == "trl-bfloat16":
        from peers import trl

        found = trl(model, data, steps)
    else:
        found = znatok(what, model, data, steps, extra)
    first = found.pop("first")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    warm = slice(1, None) if len(found["step_seconds"]) > 1 else slice(None)
    speed = sum(found["step_tokens"][warm]) / sum(found["step_seconds"][warm])
    return found | {
        "tokens_per_second": round(speed, 2),
        "seconds_to_first_step": round(first - BEGUN, 2),
        "peak_rss_gb": round(peak / 1e9, 2),
    }


def znatok(what: str, model: str, data: Path, steps: int, extra: list[str]) -> dict[str, Any]:
    """Train as ``znatok train`` does, with one optimisation switched off where ``what`` names one."""
    from znatok import config
    from znatok.scripts import train_config, train_parser
    from znatok.train import run

    if what in OFF:
        OFF[what]()
    with tempfile.TemporaryDirectory() as folder:
        words = ["--model_name", model, "--data_path", str(data), "--output_dir", folder, "--max_steps", str(steps)]
        words += ["--eval_steps", "1000000", "--save_steps", "1000000", *extra]
        settings: config.TrainConfig = train_config(train_parser("bench").parse_args(words), words)
        ended: list[float] = []
        from znatok.train.callbacks import Metrics

        step_end = Metrics.on_step_end

        def noting(self: Any, *args: Any, **kwargs: Any) -> None:
            ended.append(time.perf_counter())
            step_end(self, *args, **kwargs)

        Metrics.on_step_end = noting
        done = run.train(settings)
        assert done.run is not None
        rows = [json.loads(line) for line in done.run.metrics.read_text().splitlines()]
        rows = [row for row in rows if "loss" in row]
        tokens = [row["tokens"] - before for row, before in zip(rows, [0, *(r["tokens"] for r in rows)], strict=False)]
        seconds = [
            row["seconds"] - before for row, before in zip(rows, [0, *(r["seconds"] for r in rows)], strict=False)
        ]
        manifest = done.run.read_manifest()
        return {
            "step_seconds": seconds,
            "step_tokens": tokens,
            "first": ended[0],
            "engine": manifest["engine"],
            "base": manifest["base"],
        }


def without_fast_engine() -> None:
    """Compute padded batches with transformers' and PEFT's layers, as znatok did before it had an engine."""
    from znatok.train import engine

    engine.obstacle = lambda _model: "switched off"


def with_float_head() -> None:
    """Take the head's gradient in bfloat16."""
    from znatok.train import engine

    inner = engine.FastPacked
    engine.FastPacked = lambda backbone, head, limit: inner(backbone, getattr(head, "rows_VD", head), limit)


def without_sharing() -> None:
    """Compute every example's beginning."""
    from znatok.train import engine

    inner = engine.FastPacked
    engine.FastPacked = lambda backbone, head, limit: inner(backbone, head, limit, share=False)


def with_flash_attention() -> None:
    """Attend with torch's own kernel, segment by segment."""
    import torch
    import torch.nn.functional as F

    from znatok.fast import backbone

    def attend(q: Any, k: Any, v: Any, segments: Any) -> Any:
        out = []
        for start, length, seen in segments:
            own = slice(start, start + length)
            keys, values = (torch.cat([x[:seen], x[own]]).transpose(0, 1)[None] for x in (k, v))
            mask = segments.mask(length, seen).to(q.dtype)
            rows = q[own].transpose(0, 1)[None]
            out.append(
                F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask, enable_gqa=True)[0].transpose(0, 1)
            )
        return torch.cat(out).flatten(1)

    backbone.pack_attention = attend


def with_all_rows() -> None:
    """Compute the last layer for rows nobody asks for, too."""
    from znatok.fast import backbone

    inner = backbone.run_layer

    def run_layer(x: Any, layer: Any, place: Any, number: int, rows: Any = None) -> Any:
        out = inner(x, layer, place, number, None)
        return out if rows is None else out[rows]

    backbone.run_layer = run_layer


def with_default_allocator() -> None:
    """Leave glibc's thresholds as they are."""
    from znatok.train import run

    run.keep_freed_memory = lambda: False


OFF: dict[str, Callable[[], None]] = {
    "padded": without_fast_engine,
    "float-head": with_float_head,
    "unshared": without_sharing,
    "flash": with_flash_attention,
    "all-rows": with_all_rows,
    "malloc": with_default_allocator,
    "eager": lambda: None,  # the environment says it
}


# All of them


def child(what: str, model: str = MODEL, data: Path = DATA, steps: int = 9, extra: str = "") -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--measure",
        what,
        "--model",
        model,
        "--data",
        str(data),
        "--steps",
        str(steps),
    ]
    environment = os.environ | ({"ZNATOK_KERNELS": "eager"} if what == "eager" else {})
    done = subprocess.run([*command, f"--extra={extra}"], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{what}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    shown = {key: found[key] for key in ("tokens_per_second", "seconds_to_first_step", "peak_rss_gb")}
    print(f"{what:16} {extra:24} {json.dumps(shown)}", flush=True)
    return found


def roofline() -> dict[str, float]:
    """Return the best rates of torch's products at the model's shapes, 512 rows, in billion operations a second."""
    import torch

    def best(product: Callable[[], object], work: float) -> float:
        product()
        times = []
        for _ in range(5):
            started = time.perf_counter()
            product()
            times.append(time.perf_counter() - started)
        return work / min(times) / 1e9

    rates: dict[str, list[float]] = {"int8": [], "bfloat16": [], "float32": []}
    for inputs, outputs in ((1536, 2048), (1536, 17920), (8960, 1536)):
        work = 2.0 * 512 * inputs * outputs
        x, w = (torch.randint(-127, 128, shape, dtype=torch.int8) for shape in ((512, inputs), (outputs, inputs)))
        rates["int8"].append(best(lambda x=x, w=w: torch._int_mm(x, w.t()), work))
        for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
            a, b = x.to(dtype), w.to(dtype)
            rates[name].append(best(lambda a=a, b=b: a @ b.t(), work))
    return {name: round(max(found), 1) for name, found in rates.items()}


def work(model: str) -> dict[str, float]:
    """Return the work of a token in billion operations: forward and backward of all projections, and of the head."""
    from znatok.config import ModelOptions
    from znatok.model.load import load_base

    base: Any = load_base(ModelOptions(model_name=model, dtype="int8")).model
    linear = sum(m.weight.numel() for n, m in base.named_modules() if n.endswith("_proj"))
    return {"projections": round(4 * linear / 1e9, 3), "head": round(4 * base.lm_head.weight.numel() / 1e9, 3)}


def synthetic(pairs: int, folder: Path) -> Path:
    """Write so many pairs of random words of the data set; for cost, not for learning."""
    import random

    from znatok.data.load import read_pairs

    known = read_pairs(DATA).pairs
    words = sorted({word for pair in known for word in f"{pair.prompt} {pair.response}".split()})
    draw, path = random.Random(42), folder / f"{pairs}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for _ in range(pairs):
            row = {"prompt": " ".join(draw.choices(words, k=8)), "response": " ".join(draw.choices(words, k=40))}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def growth() -> list[dict[str, Any]]:
    """Return seconds and memory to the first step for 100 to 100,000 pairs."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for pairs in (100, 1000, 10_000, 100_000):
            found = child("znatok", data=synthetic(pairs, Path(folder)), steps=2, extra="--val_share 0.0005")
            rows.append({"pairs": pairs, **{k: found[k] for k in ("seconds_to_first_step", "peak_rss_gb")}})
    return rows


def shapes() -> list[dict[str, Any]]:
    """Return speed by pack size, rank and model."""
    asked = [
        ("--pack_tokens 256", MODEL),
        ("--pack_tokens 512", MODEL),
        ("--pack_tokens 1024", MODEL),
        ("--low_memory", MODEL),
    ]
    asked += [("--per_device_train_batch_size 8 --pack_tokens 2048", MODEL)]
    asked += [("--lora_r 16 --lora_alpha 64", MODEL), ("--lora_r 32 --lora_alpha 128", MODEL), ("", SMALL)]
    return [
        {"model": model, "options": extra, **child("znatok", model, extra=extra, steps=6)} for extra, model in asked
    ]


def table(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    lines = [
        "| | text tokens/s | times float32 | times bfloat16 | peak memory, GB | first step after, s |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    sides = result["sides"]
    slow, slower = (sides[name]["tokens_per_second"] for name in ("stock-float32", "stock-bfloat16"))
    for name, found in sides.items():
        speed = found["tokens_per_second"]
        lines.append(
            f"| {name} | {speed:.1f} | {speed / slow:.1f} | {speed / slower:.1f} | {found['peak_rss_gb']:.1f}"
            f" | {found['seconds_to_first_step']:.0f} |"
        )
    ablation = result.get("ablation", {})
    for name, found in ablation.items():  # measured at another time than the sides: held against its own beginning
        share = found["tokens_per_second"] / ablation["all on"]["tokens_per_second"] - 1
        speed = f"{found['tokens_per_second']:.1f} ({100 * share:+.0f} %)"
        lines.append(f"| znatok, {name} | {speed} | | | {found['peak_rss_gb']:.1f} | |")
    return "\n".join(lines)


def picture(result: dict[str, Any], path: Path) -> None:
    """Draw the sides and the ablation as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bars = {**result["sides"], **{f"znatok, {k}": v for k, v in result.get("ablation", {}).items()}}
    names = list(bars)[::-1]
    figure, axes = pyplot.subplots(figsize=(9, 0.42 * len(names) + 1.2), layout="constrained")
    colours = [
        "#2f6f9f" if name == "znatok" else "#9fb8c8" if name.startswith("znatok") else "#b0a090" for name in names
    ]
    drawn = axes.barh(names, [bars[name]["tokens_per_second"] for name in names], color=colours)
    axes.bar_label(drawn, fmt="%.0f", padding=3)
    axes.set_xlabel(f"text tokens per second, {result['model']}, 2 cores")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure what is asked for; print a table, write JSON and PNG."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--parts", nargs="+", default=["sides", "ablation", "growth", "shapes"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/baselines/train.json"))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=9, help=argparse.SUPPRESS)
    parser.add_argument("--extra", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.model, args.data, args.steps, args.extra.split())))
        return
    from znatok.files import read_json, write_json
    from znatok.model.machine import machine

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result: dict[str, Any] = dict(read_json(args.out)) if args.out.is_file() else {}
    result |= {"model": args.model, "machine": machine(), "commit": commit, "seed": 42}
    if "sides" in args.parts:
        limits, effort = roofline(), work(args.model)
        sides = {name: child(name, args.model, steps=STEPS.get(name, 9)) for name in (*STEPS, "znatok")}
        result |= {"rates": limits, "work": effort, "sides": sides}
    if "ablation" in args.parts:
        result["ablation"] = {
            name: child("znatok", args.model, extra=off, steps=5)
            if off.startswith("--")
            else child(off, args.model, steps=5, extra="--dtype bfloat16" if off == "padded" else "")
            for name, off in ABLATIONS.items()
        }
    result |= {name: part() for name, part in (("growth", growth), ("shapes", shapes)) if name in args.parts}
    result |= {"limit": limit(result)}
    write_json(args.out, result)
    picture(result, args.out.with_suffix(".png"))
    print(table(result))
    print(json.dumps({key: result[key] for key in ("rates", "work", "limit", "growth") if key in result}, indent=1))


def limit(result: dict[str, Any]) -> dict[str, float]:
    """Return how near znatok is to the products' own rate: computed rows, and answer rows through the head."""
    found, effort, rate = result["sides"]["znatok"], result["work"], result["rates"]["int8"] * 1e9
    engine_rows, answers = computed(result["model"])
    share = engine_rows["rows"] / engine_rows["tokens"]
    scored = answers / engine_rows["tokens"]
    per_token = (effort["projections"] * share + effort["head"] * scored) * 1e9
    return {
        "computed_rows_per_token": round(share, 4),
        "answer_tokens_per_token": round(scored, 4),
        "int8_limit_tokens_per_second": round(rate / per_token, 1),
        "share_of_limit": round(found["tokens_per_second"] * per_token / rate, 3),
    }


def computed(model: str) -> tuple[dict[str, int], int]:
    """Return the rows that znatok computes for the data set, and what of it is answers."""
    from znatok.config import LANGUAGE_NEUTRAL_SYSTEM, ModelOptions
    from znatok.data.load import read_pairs
    from znatok.model.load import load_base
    from znatok.tokens.chat import choose_format
    from znatok.tokens.encode import EncodeRule, encode_pairs
    from znatok.tokens.packing import pack_sizes
    from znatok.train.batches import LengthGroupedBatches

    loaded = load_base(ModelOptions(model_name=model, dtype="int8"))
    chat = choose_format(loaded.tokenizer, loaded.model.get_input_embeddings().weight)
    examples = encode_pairs(read_pairs(DATA).pairs, chat, EncodeRule(LANGUAGE_NEUTRAL_SYSTEM, 512)).examples
    order = LengthGroupedBatches([len(e.ids) for e in examples], 4, 42)
    rows = sum(sum(pack_sizes([examples[i] for i in batch], 1024)) for batch in order)
    return {"rows": rows, "tokens": sum(len(e.ids) for e in examples)}, sum(e.answer_tokens for e in examples)


if __name__ == "__main__":
    main()
