"""An adapter made ready for others: weights, tokenizer, template, and a card: what it is, and what was measured.

Nothing of the machine it was trained on goes along: no path, no name, no log.
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError

from znatok.errors import ModelError, SystemFault, UsageError
from znatok.files import home, read_json, write_json, write_text
from znatok.model.download import without_token
from znatok.runs import Run

CONFIG, CARD = "adapter_config.json", "README.md"
NEEDED = (CONFIG, "adapter_model.safetensors")
ALONG = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
TEXTS = {".json", ".md", ".jinja"}
MEASURED = re.compile(r"<!-- proof:start -->.*<!-- proof:end -->", re.DOTALL)
HUB_ID = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)
UNMEASURED = "No examination was made: nothing is claimed of what it knows."


def write_publishable(run: Run, folder: Path) -> None:
    """Write an adapter and its card into a folder.

    Raises:
        ModelError: its base is known by no name of the hub, so that nobody else could load it; or a text would tell a
            path of this machine.
    """
    for name in (*NEEDED, *(name for name in ALONG if (run.path / name).is_file())):
        shutil.copyfile(run.path / name, folder / name)
    config = read_json(folder / CONFIG)
    base = str(config.get("base_model_name_or_path") or "")
    if not HUB_ID.fullmatch(base):
        raise ModelError(
            "{path}: its base is {base}, which others can't load; train on a hub id or a model of the catalogue",
            path=run.path / CONFIG, base=base or "?",
        )  # fmt: skip
    write_json(folder / CONFIG, config)
    write_text(folder / CARD, card(run, base))
    refuse_paths(folder, [str(home()), str(run.path.resolve().parent)])


def card(run: Run, base: str) -> str:
    """Return the model card: base, data, recipe, and what an examination showed, where there was one."""
    own = run.path / CARD
    before = ModelCard.load(own) if own.is_file() else None
    measured = MEASURED.search(before.text) if before is not None else None
    data = ModelCardData(
        base_model=base,
        library_name="peft",
        pipeline_tag="text-generation",
        language=["ru", "en"],
        tags=["lora", "znatok"],
        model_name=run.path.resolve().name,
        eval_results=before.data.eval_results if before is not None and measured else None,
    )
    manifest = run.read_manifest()
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {run.path.resolve().name}",
        f"A LoRA adapter for `{base}`, trained by znatok.",
        _made_of(manifest) if manifest else "What it was made of is not known.",
        "## What was measured",
        measured[0] if measured else UNMEASURED,
    ]
    text = "\n\n".join(parts) + "\n"
    ModelCard(text)  # its own reader checks the header
    return text


def _made_of(manifest: dict[str, Any]) -> str:
    data, base, chat = (manifest.get(name, {}) for name in ("data", "base", "chat"))
    rows = {
        "base, SHA-256": base.get("sha256"),
        "data, SHA-256": f"{data['sha256']}, {data.get('pairs', '?')} pairs" if "sha256" in data else None,
        "chat format": chat.get("format"),
        "system message": chat.get("system", "not known") or "none",
        "number format while training": manifest.get("dtype"),
        **manifest.get("lora", {}),
        **{name: _untold(value) for name, value in manifest.get("options", {}).items()},
    }
    lines = [f"| {name} | {_cell('not known' if value is None else value)} |" for name, value in rows.items()]
    return "\n".join(["## What it was made of", "", "| | |", "|---|---|", *lines])


def _untold(value: Any) -> Any:
    """Return an option without the place of the file it names on this machine."""
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value  # noqa: PTH117


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def refuse_paths(folder: Path, paths: list[str]) -> None:
    """Raise ModelError where a text of a folder holds one of these paths, or a config any path of this machine."""
    for file in sorted(folder.iterdir()):
        text = file.read_text(encoding="utf-8", errors="replace") if file.suffix in TEXTS else ""
        found = [path for path in paths if len(path) > 1 and path in text]
        if file.name.endswith("_config.json"):
            found += _paths_in(read_json(file))
        if found:
            raise ModelError("{path}: it tells {found}, a path of this machine", path=file.name, found=found[0])


def _paths_in(value: Any) -> list[str]:
    """Return the strings of a JSON value that are paths of something that is here."""
    if isinstance(value, dict | list):
        inside = value.values() if isinstance(value, dict) else value
        return [path for one in inside for path in _paths_in(one)]
    here = isinstance(value, str) and os.path.isabs(value) and os.path.exists(value)  # noqa: PTH110, PTH117  # any text
    return [value] if here and len(value) > 1 else []


def refuse_no_name(name: str) -> None:
    """Raise UsageError where a name can be none of a repository on the hub."""
    if not HUB_ID.fullmatch(name):
        raise UsageError("--hub_name {name}: expected user/name", name=name or '""')


def push(folder: Path, name: str, *, public: bool) -> str:
    """Put a folder on the Hugging Face hub; return its address.

    Args:
        folder: what :func:`write_publishable` made.
        name: of the repository, ``user/name``.
        public: whether everybody may see it; a repository that exists stays as visible as it is.

    Raises:
        UsageError: the name is none.
        SystemFault: nobody is logged in, the hub refuses, or can't be reached.
    """
    refuse_no_name(name)
    api = HfApi(library_name="znatok")
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=folder, commit_message="Adapter and card, by znatok", ignore_patterns=".*"
        )
    except HFValidationError as error:
        raise UsageError("--hub_name {name}: expected user/name", name=name) from error
    except OSError as error:  # which all errors of the hub are
        why = " ".join(without_token(str(error)).split())[:200]
        raise SystemFault("the hub: {why}; log in with «hf auth login», or set HF_TOKEN", why=why) from error
    return f"https://huggingface.co/{name}"
