"""The locks pin what pyproject.toml asks for, all of it by hash; torch apart (SECURITY.md says why)."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import tiny

PROJECT = tomllib.loads((tiny.REPO / "pyproject.toml").read_text(encoding="utf-8"))
OWN = {"torch", "znatok"}


def test_an_older_python_is_refused_by_pip():
    assert PROJECT["project"]["requires-python"] == ">=3.11"


def pinned(lock):
    """Return the versions a lock pins, several where platforms differ, and refuse a pin without a hash."""
    found = {}
    text = (tiny.REPO / "locks" / lock).read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = re.match(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?==([^ ;]+)", line)
        assert match, line
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", line), f"{match[1]} has no hash"
        found.setdefault(canonicalize_name(match[1]), []).append(match[2])
    return found


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("run.txt", ["llamacpp", "quant", "search", "judge", "serve", "web"]),
        ("dev.txt", ["llamacpp", "quant", "search", "judge", "serve", "web", "dev"]),
    ],
)
def test_every_requirement_is_pinned_to_what_it_allows(lock, extras):
    pins = pinned(lock)
    asked = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    for extra in extras:
        asked += PROJECT["project"]["optional-dependencies"][extra]
    for requirement in map(Requirement, asked):
        if (name := canonicalize_name(requirement.name)) in OWN:
            continue
        assert name in pins, f"{name} is not in locks/{lock}: make lock"
        for version in pins[name]:
            assert requirement.specifier.contains(version, prereleases=True), f"{name} {version}: make lock"


def test_nothing_is_pinned_twice_over_and_what_runs_is_what_was_tested():
    run, dev = pinned("run.txt"), pinned("dev.txt")
    assert {name: dev[name] for name in run} == run
    assert not OWN & dev.keys()
    assert not [name for name in dev if name.startswith(("nvidia", "cuda"))], (
        "what torch needs on CUDA is torch's business"
    )


def test_torch_is_the_same_everywhere_and_on_the_bill_of_materials():
    """It is in no lock, so it was on no bill and looked through for no holes."""
    texts = {
        name: (tiny.REPO / name).read_text(encoding="utf-8")
        for name in ("locks/uv.toml", "Makefile", "Dockerfile", "SECURITY.md", "README.md", "README.ru.md")
    }
    found = {name: set(re.findall(r"torch==([0-9.]+)", text)) for name, text in texts.items()}
    assert set(map(frozenset, found.values())) == {frozenset(found["locks/uv.toml"])}, found
    assert len(found["locks/uv.toml"]) == 1
    (bill,) = re.findall(r"^sbom:.*\n((?:\t.*\n)+)", texts["Makefile"], re.MULTILINE)
    assert "$(TORCH)" in bill
    assert re.search(r"torch==.*pip-audit", texts["SECURITY.md"])
