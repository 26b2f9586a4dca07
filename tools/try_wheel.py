"""Build the wheel, unpack it beside a copy of the repository without ``src/``, and run tests on what was unpacked.

A file that the wheel leaves out is missed here and not by whoever installs it: every tracked file of the package must
be in it, and the contract and the commands a person types are tested with no source in sight.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("tests/contract", "tests/unit/test_cli.py", "tests/e2e/test_scripts.py")
LEFT_OUT = "tests/contract/test_scorer_on_items.py"  # takes long, and asks nothing of the wheel that others do not


def tracked() -> list[str]:
    """Return the paths git knows."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def built(folder: Path) -> Path:
    """Build the wheel into a folder; return its path."""
    words = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    return wheel


def missing(wheel: Path, names: list[str]) -> list[str]:
    """Return the tracked files of the package that the wheel lacks."""
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    package = [name.removeprefix("src/") for name in names if name.startswith("src/")]
    return [name for name in package if name not in inside]


def main() -> int:
    """Return pytest's exit code, or 1 where the wheel is not whole."""
    names = tracked()
    with tempfile.TemporaryDirectory() as scratch:
        site, tree = Path(scratch, "site"), Path(scratch, "tree")
        wheel = built(Path(scratch))
        if left_out := missing(wheel, names):
            print(f"{wheel.name} lacks: {', '.join(left_out)}")
            return 1
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        for name in names:
            if not name.startswith("src/"):
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, tree / name)
        environment = os.environ | {"PYTHONPATH": str(site)}
        place = [sys.executable, "-c", "import znatok; print(znatok.__file__)"]
        found = subprocess.run(place, cwd=tree, env=environment, capture_output=True, text=True, check=True).stdout
        if not found.startswith(str(site)):
            print(f"znatok is taken from {found.strip()}, not from the wheel")
            return 1
        print(
            f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, nothing left out; testing it without src/", flush=True
        )
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", *TESTS, "--ignore", LEFT_OUT],
            cwd=tree,
            env=environment,
            check=False,
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
