"""``manifest.json``: what a run was made of, and what it came to beside what was estimated."""

import dataclasses
import datetime
from importlib.metadata import version
from typing import Any

from znatok import __version__
from znatok.config import TrainConfig
from znatok.files import write_json
from znatok.model.machine import machine
from znatok.runs import Run
from znatok.train.prepare import Prepared


def identity(config: TrainConfig, ready: Prepared) -> dict[str, Any]:
    """Return what must not change between the parts of one run."""
    ours = dataclasses.asdict(config)
    fixed = {
        k: v
        for k, v in ours["train"].items()
        if k not in {"output_dir", "resume", "force", "dry_run", "threads", "pack_tokens", "low_memory"}
    }
    return {
        "base": {"name": ready.loaded.source.name, "sha256": ready.loaded.source.sha256},
        "data": {"sha256": ready.data.sha256, "pairs": len(ready.data.pairs)},
        "validation": {"sha256": ready.own.sha256} if ready.own else None,
        "lora": ours["lora"],
        "options": fixed,
        "data_options": {k: v for k, v in ours["data"].items() if k != "data_path"},
        "seed": config.train.seed,
        "processes": ready.team.size,
        "dtype": ready.loaded.format,
        "chat": {
            "format": ready.chat.name,
            "end_id": ready.chat.end_id,
            "stop_ids": sorted(ready.chat.stop_ids),
            "system": config.data.system,
        },
    }


def write_manifest(run: Run, config: TrainConfig, ready: Prepared, figures: dict[str, Any] | None = None) -> None:
    """Write what the run was made of and, at its end, what it came to beside what was estimated."""
    before = run.read_manifest()
    manifest = identity(config, ready) | {
        "znatok": __version__,
        "started": before.get("started") or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "accelerate", "tokenizers")},
        "command": command(config),
        "machine": machine(),
        "engine": before.get("engine") or ready.engine.to_json(),
        "plan": before.get("plan") or ready.plan.to_json(),
        "result": figures,
    }
    manifest["data"]["path"] = config.data.data_path  # not part of the identity: a moved file is the same data
    write_json(run.manifest, manifest)


def command(config: TrainConfig) -> list[str]:
    """Return the command that repeats this run: every option that differs from its default, the seed recipe."""
    words = ["znatok", "train", "--recipe", "seed"]
    for group in (config.model, config.data, config.lora, config.train):
        for spec in dataclasses.fields(group):
            value = getattr(group, spec.name)
            if value != spec.default and spec.name not in {"resume", "force", "dry_run", "output_dir"}:
                words += [f"--{spec.name}", str(value)]
    return words
