"""Serve runs of znatok by vLLM on a GPU: one base, every adapter by the name of its folder, nothing converted.

    python examples/vllm/serve.py runs/expert-1 runs/expert-2 --port 8000
    python examples/vllm/serve.py runs/expert-1 --show          # print the command, start nothing

What znatok does not know goes to ``vllm serve`` as it is. It needs nothing but run directories and vLLM.
"""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM keeps room for one of these


def command(runs, further):
    """Return the words of ``vllm serve`` for runs of one base and one template."""
    configs = {run: json.loads((run / "adapter_config.json").read_text(encoding="utf-8")) for run in runs}
    bases = {config["base_model_name_or_path"] for config in configs.values()}
    if len(bases) > 1:
        sys.exit(f"these adapters have different bases, so they need a server each: {', '.join(sorted(bases))}")
    templates = {(run / "chat_template.jinja").read_text(encoding="utf-8") for run in runs}
    if len(templates) > 1:
        sys.exit("these runs were trained with different templates or system messages: start a server for each")
    largest = max(config["r"] for config in configs.values())
    rank = next((rank for rank in RANKS if rank >= largest), None)
    if rank is None:
        sys.exit(f"rank {largest}: vLLM takes at most {RANKS[-1]}")
    return [
        "vllm",
        "serve",
        bases.pop(),
        "--enable-lora",
        "--max-lora-rank",
        str(rank),
        "--lora-modules",
        *(f"{run.resolve().name}={run}" for run in runs),
        # without these two vLLM would ask in the words of the base's own template, and draw by the base's own settings
        "--chat-template",
        str(runs[0] / "chat_template.jinja"),
        "--generation-config",
        "vllm",
        *further,
    ]


def main():
    """Start vLLM, or show how it would be started."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--show", action="store_true", help="print the command, start nothing")
    args, further = parser.parse_known_args()
    for run in args.runs:
        if not (run / "adapter_config.json").is_file():
            parser.error(f"{run}: no adapter_config.json; name a run directory that was trained to its end")
    words = command(args.runs, further)
    print(shlex.join(words), flush=True)
    if not args.show:
        os.execvp(words[0], words)  # noqa: S606  # vLLM takes this process over


if __name__ == "__main__":
    main()
