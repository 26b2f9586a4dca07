"""The machine, as far as figures depend on it."""

import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import huggingface_hub
import psutil
import torch

from znatok import __version__
from znatok.files import cache_home


def device() -> torch.device:
    """Return where models are computed: the first CUDA device, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine() -> dict[str, Any]:
    """Return what the figures of a run depend on: processor, cores, threads, memory, accelerator; no names."""
    return {
        "processor": cpu_name(),
        "cores": psutil.cpu_count(logical=False),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def cpu_name() -> str:
    """Return the processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def examine() -> dict[str, Any]:
    """Return what ``znatok doctor`` reports: the machine, what is installed, and what training will do here."""
    from znatok.model.load import choose_dtype

    dtype, reason = choose_dtype("auto")
    memory, disk = (
        psutil.virtual_memory(),
        shutil.disk_usage(cache_home().parent if cache_home().parent.is_dir() else "/"),
    )
    packages = ("torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "gguf")
    return machine() | {
        "znatok": __version__,
        "packages": {name: version(name) for name in packages},
        "number_format": str(dtype).removeprefix("torch."),
        "number_format_reason": reason,
        "memory_free_gb": round(memory.available / 1e9, 1),
        "disk_free_gb": round(disk.free / 1e9, 1),
        "model_cache": str(cache_home() / "models"),
        "network": "off (HF_HUB_OFFLINE)" if huggingface_hub.is_offline_mode() else "on",
    }
