"""How fast answers come, and how soon the first question can be asked.

Measured, each in a process of its own and with the model file in the page cache:

* ``llamacpp tuned``, ``llamacpp base``: our engine with the adapter on and off;
* ``xllamacpp bare``: llama.cpp on the same file with no adapter loaded, its own loop: what our engine is held against;
* ``xllamacpp bare tuned``: the same with the adapter loaded and on;
* ``torch tuned``: our engine on the dequantised model with the adapter;
* ``transformers``: ``generate`` on the same model and adapter;
* ``chat ready``: from the start of ``chatting.py`` to its end, with nothing on standard input.

Tokens per second are those of decoding alone: from the first token of a greedy answer to its last, the median over
prompts. The adapter is a run's, or a random one of rank 8 on all projections: what it says does not matter here.

    python benchmarks/decode.py [NAME ...] [--run DIR] [--tokens 64] [--prompts 3] [--out FILE.json]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from znatok.config import LANGUAGE_NEUTRAL_SYSTEM, LoraOptions, ModelOptions, SampleOptions
from znatok.files import write_json
from znatok.model.catalogue import find, get

REPO = Path(__file__).parent.parent
QUESTIONS = (
    "Подробно объясни, чем PLA отличается от ABS и когда какой пластик выбирать.",
    "Расскажи по шагам, как подготовить 3D-принтер к первой печати.",
    "Опиши все виды 3D-печати, которые ты знаешь, и назови достоинства каждого.",
    "Как рассчитать стоимость одной напечатанной детали? Приведи пример с числами.",
)


def main() -> None:
    """Measure what the arguments name; print a table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["qwen2.5-coder-1.5b-instruct"])
    parser.add_argument("--run", type=Path, help="run or adapter directory; a random adapter without it")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=WAYS, default=[*WAYS])
    parser.add_argument("--dtype", default="auto", help="number format of torch and transformers")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=3, metavar=("WAY", "NAME", "ADAPTER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        way, name, adapter = args.child
        print(json.dumps(WAYS[way](name, Path(adapter), args)))
        return
    models = {}
    for name in args.names:
        path = get(name)
        with path.open("rb") as file:  # into the page cache
            while file.read(1 << 24):
                pass
        with tempfile.TemporaryDirectory() as folder:
            adapter = args.run or Path(folder) / "adapter"
            if args.run is None:
                child("make adapter", name, adapter, args)
            models[name] = {"sha256": find(name).sha256, "adapter": str(args.run.name) if args.run else "random, r 8"}
            for way in args.only:
                if way != "make adapter":
                    models[name][way] = found = child(way, name, adapter, args)
                    print(f"{name:30} {way:20} {found['value']:8.2f} {found['unit']:9} {found['all']}", flush=True)
    if args.out:
        from znatok.model.machine import machine

        shown = {"tokens": args.tokens, "prompts": args.prompts, "dtype": args.dtype, "load_average": os.getloadavg()}
        versions = {package: version(package) for package in ("xllamacpp", "torch", "transformers", "peft")}
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        write_json(args.out, {"machine": machine(), "versions": versions, "commit": commit, **shown, "models": models})


def child(way: str, name: str, adapter: Path, args: argparse.Namespace) -> Any:
    """Measure one way in a process of its own."""
    options = ["--tokens", str(args.tokens), "--prompts", str(args.prompts), "--dtype", args.dtype]
    command = [sys.executable, __file__, *options, "--child", way, name, str(adapter)]
    # bare llama.cpp gets what our engine gives it; the others keep their own
    changed = {"GOMP_SPINCOUNT": "1000"} if way.startswith("xllamacpp") else {}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**changed, **os.environ})
    return json.loads(done.stdout.splitlines()[-1])


def rates(found: list[float]) -> dict[str, Any]:
    """Return the median of tokens per second, and all of them."""
    return {"value": round(statistics.median(found), 2), "unit": "tokens/s", "all": [round(rate, 2) for rate in found]}


def requests(args: argparse.Namespace) -> list[Any]:
    """Return the requests of the engines."""
    from znatok.generate.engine import Request
    from znatok.tokens.chat import dialogue

    sample = SampleOptions(temperature=0, max_new_tokens=args.tokens)
    return [
        Request(tuple(dialogue(question, LANGUAGE_NEUTRAL_SYSTEM)), sample) for question in QUESTIONS[: args.prompts]
    ]


def engine(kind: str, voice: str, name: str, adapter: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one of our engines."""
    from znatok.expert import Voice, open_expert
    from znatok.runs import Run

    dtype = args.dtype if kind == "torch" else "auto"
    expert = open_expert(ModelOptions(model_name=name, dtype=dtype), Run(adapter), "", kind)
    found = []
    with expert.speaking(Voice(voice)) as speaker:
        for request in requests(args):
            times = [time.perf_counter() for _said in speaker.tokens([request])]  # type: ignore[attr-defined]
            found.append((len(times) - 1) / (times[-1] - times[0]))
    return rates(found)


def bare(tuned: bool, name: str, adapter: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure llama.cpp as it is: no bans, its own loop over tokens."""
    import torch
    import xllamacpp

    from znatok.generate.choose import file_format, gguf_base
    from znatok.model.lora_gguf import lora_gguf

    base = gguf_base(name, print)
    assert base is not None
    chat, params = file_format(base, "auto"), xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(base.header.path), 4352, 1, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
    params.fit_params = params.warmup = False
    if tuned:
        converted = lora_gguf(adapter, base.header, base.sha256)
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(converted), 1.0)]
    server, found = xllamacpp.Server(params), []
    for request in requests(args):
        order = {"prompt": chat.prompt_ids(request.messages), "samplers": ["top_k"], "top_k": 1}
        reply = server.handle_completions(order | {"n_predict": args.tokens, "cache_prompt": False})
        timings = reply["timings"]  # of all tokens but the first, which comes with the prompt
        found.append((timings["predicted_n"] - 1) / timings["predicted_ms"] * 1000)
    return rates(found)


def transformers(name: str, adapter: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure ``generate`` with the adapter on."""
    import torch

    from znatok.expert import open_expert
    from znatok.runs import Run

    expert = open_expert(ModelOptions(model_name=name, dtype=args.dtype), Run(adapter), "", "torch")
    found = []
    for request in requests(args):
        times: list[float] = []

        class Clock:
            def put(self, _ids: Any, times: list[float] = times) -> None:
                times.append(time.perf_counter())

            def end(self) -> None:
                pass

        ids = torch.tensor([expert.chat.prompt_ids(request.messages)])
        expert.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=args.tokens,
            eos_token_id=sorted(expert.chat.stop_ids),
            pad_token_id=expert.chat.end_id,
            streamer=Clock(),
        )
        found.append((len(times) - 2) / (times[-1] - times[1]))  # the first call is the prompt's
    return rates(found)


def ready(name: str, adapter: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure how long ``chatting.py`` takes until it reads its first line; the first start converts the adapter."""
    found = []
    for _ in range(args.prompts + 1):
        started = time.perf_counter()
        command = [sys.executable, str(REPO / "chatting.py"), "--model_name", name, "--model_dir", str(adapter)]
        subprocess.run([*command, "--engine", "llamacpp"], stdin=subprocess.DEVNULL, capture_output=True, check=True)
        found.append(time.perf_counter() - started)
    return {"value": round(statistics.median(found[1:]), 2), "unit": "s", "all": [round(one, 2) for one in found]}


def make_adapter(name: str, adapter: Path, _args: argparse.Namespace) -> None:
    """Write an adapter with a small random B on every projection."""
    import torch

    from znatok.model.adapters import inject, save_adapter
    from znatok.model.load import load_base

    model = inject(load_base(ModelOptions(model_name=name, dtype="bfloat16")).model, LoraOptions(), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_(std=1e-4, generator=generator)
    save_adapter(model, adapter, name)


WAYS: dict[str, Any] = {
    "make adapter": make_adapter,
    "llamacpp tuned": lambda *job: engine("llamacpp", "tuned", *job),
    "llamacpp base": lambda *job: engine("llamacpp", "base", *job),
    "xllamacpp bare": lambda *job: bare(False, *job),
    "xllamacpp bare tuned": lambda *job: bare(True, *job),
    "torch tuned": lambda *job: engine("torch", "tuned", *job),
    "transformers": transformers,
    "chat ready": ready,
}


if __name__ == "__main__":
    main()
