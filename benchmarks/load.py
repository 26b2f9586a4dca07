"""How long a catalogue model takes to be ready to train, and how much memory: our GGUF path and transformers' own.

Each measurement is a process of its own, so that peak memory means something; the file is read once before, so that
both find it in the page cache.

    python benchmarks/load.py [NAME ...] [--repeat 3] [--out benchmarks/baselines/load.json]
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from znatok.files import write_json
from znatok.model.catalogue import find, get
from znatok.model.machine import machine

OURS = """
import sys
from znatok.config import ModelOptions
from znatok.model.load import load_base
loaded = load_base(ModelOptions(model_name=sys.argv[1], dtype="bfloat16"))
"""
THEIRS = """
import sys, warnings, torch, transformers
from pathlib import Path
warnings.simplefilter("ignore")
path = Path(sys.argv[1])
transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.bfloat16)
"""
TAIL = """
import json, resource
print(json.dumps({"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""
TIMED = """
import time
_started = time.perf_counter()
"""
REPORT = """
print(json.dumps({"seconds": round(time.perf_counter() - _started, 2)}))
"""


def measure(code: str, argument: str) -> dict[str, float]:
    """Run a piece of code in a process of its own; its imports count, the interpreter's start does not."""
    done = subprocess.run(
        [sys.executable, "-c", TIMED + code + TAIL + REPORT, argument], capture_output=True, text=True, check=True
    )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {key: value for row in rows for key, value in row.items()}


def main() -> None:
    """Measure what the arguments name; print a table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["smollm2-135m-instruct", "qwen2.5-coder-1.5b-instruct"])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/baselines/load.json"))
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    results = {}
    for name in args.names:
        path = get(name)
        with path.open("rb") as file:  # into the page cache
            while file.read(1 << 24):
                pass
        runs = {
            "znatok": [measure(OURS, name) for _ in range(args.repeat)],
            "transformers": [measure(THEIRS, str(path)) for _ in range(args.repeat)],
        }
        results[name] = {
            who: {
                "seconds": statistics.median(row["seconds"] for row in rows),
                "seconds_all": [row["seconds"] for row in rows],
                "peak_rss_gb": round(max(row["peak_rss_bytes"] for row in rows) / 1e9, 2),
            }
            for who, rows in runs.items()
        } | {"sha256": find(name).sha256}
        for who in runs:
            row = results[name][who]
            print(f"{name:30} {who:13} {row['seconds']:7.2f} s  {row['peak_rss_gb']:6.2f} GB")
    write_json(args.out, {"machine": machine(), "commit": commit, "repeat": args.repeat, "models": results})


if __name__ == "__main__":
    main()
