"""Compiling the kernels: once per machine, never an error, and the eager twins where it can't be done."""

import ctypes
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from znatok.fast import compiled, compiler, eager, kernels
from znatok.fast.eager import Part

SECOND = 'extern "C" __attribute__((visibility("default"))) int second() { return 2; }\n'


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Return the function itself, without its memory, on a small source and a cache of its own."""
    source = tmp_path / "kernels.cpp"
    source.write_text(SECOND, encoding="utf-8")
    monkeypatch.setattr(compiler, "SOURCE", source)
    monkeypatch.setenv("ZNATOK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ZNATOK_KERNELS", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    return compiler.build.__wrapped__


@pytest.fixture
def gnu():
    """Return GNU's compiler, or skip."""
    path = shutil.which("g++")
    if path is None or not sys.platform.startswith("linux"):
        pytest.skip("no GNU compiler on Linux here")
    return path


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Return a function that puts a shell script in the compiler's place."""

    def put(*lines):
        script = tmp_path / "bin" / "g++"
        script.parent.mkdir(exist_ok=True)
        script.write_text("\n".join(["#!/bin/sh", *lines, ""]), encoding="utf-8")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
        return script

    return put


def kept(tmp_path):
    folder = tmp_path / "home" / "kernels"
    return sorted(folder.iterdir()) if folder.is_dir() else []


@pytest.fixture
def counted(gnu, stand_in, tmp_path):
    """Return a function that says how often the real compiler was asked to compile or link."""
    log = tmp_path / "calls"
    log.touch()
    stand_in('case "$1" in --version) ;; *) echo call >> ' + f'"{log}" ;; esac', f'exec "{gnu}" "$@"')
    return lambda: len(log.read_text(encoding="utf-8").splitlines())


def test_the_library_is_compiled_and_kept(build, gnu, tmp_path):
    built = build()
    assert built.library.second() == 2
    assert built.reason == "compiled for this machine"
    (path,) = kept(tmp_path)
    assert path.suffix == ".so"


def test_a_second_start_compiles_nothing(build, counted, tmp_path):
    assert build().library is not None
    assert counted() == 2  # compiled, then linked
    before = kept(tmp_path)[0].stat().st_mtime_ns
    assert build().library.second() == 2
    assert counted() == 2
    assert kept(tmp_path)[0].stat().st_mtime_ns == before


def test_another_source_is_another_library(build, counted, tmp_path):
    build()
    compiler.SOURCE.write_text(SECOND.replace("2;", "3;"), encoding="utf-8")
    assert build().library.second() == 3
    assert counted() == 4
    assert len(kept(tmp_path)) == 2


@pytest.mark.parametrize("change", ["torch", "processor", "compiler"])
def test_what_the_library_was_made_for_names_it(build, gnu, stand_in, tmp_path, monkeypatch, change):
    build()
    if change == "torch":
        monkeypatch.setattr(torch, "__version__", "99.0")
    elif change == "processor":
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": False})
    else:
        stand_in(f'[ "$1" = --version ] && echo "g++ 99" || exec "{gnu}" "$@"')
    assert build().library.second() == 2
    assert len(kept(tmp_path)) == 2


def test_a_wish_for_eager_kernels_is_granted_without_a_look_around(build, stand_in, monkeypatch, tmp_path):
    asked = tmp_path / "asked"
    stand_in(f'touch "{asked}"')
    monkeypatch.setenv("ZNATOK_KERNELS", "eager")
    assert build() == (None, "ZNATOK_KERNELS=eager")
    assert not asked.exists()


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_nothing_is_compiled_elsewhere(build, monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    assert build() == (None, "they are compiled on Linux only")


@pytest.fixture
def on_linux(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")


@pytest.mark.usefixtures("on_linux")
class TestWithoutACompilerThatWorks:
    def test_there_may_be_none(self, build, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))
        assert build() == (None, "no C++ compiler found (g++)")

    def test_the_one_that_is_asked_for_may_be_missing(self, build, monkeypatch):
        monkeypatch.setenv("CXX", "no-such-compiler")
        assert build().library is None

    def test_it_may_be_broken(self, build, stand_in, tmp_path):
        stand_in('[ "$1" = --version ] && echo "g++ 99" && exit 0', 'echo "kernels.cpp:1: no such luck" >&2', "exit 1")
        assert build() == (None, "the compiler failed: kernels.cpp:1: no such luck")
        assert kept(tmp_path) == []

    def test_it_may_fail_without_a_word(self, build, stand_in):
        stand_in("exit 1")
        built = build()
        assert built.library is None
        assert built.reason.startswith("the compiler failed: ")
        assert "\n" not in built.reason

    def test_it_may_hang(self, build, stand_in, monkeypatch):
        stand_in("exec sleep 20")
        monkeypatch.setattr(compiler, "SECONDS", 0.2)
        built = build()
        assert built.library is None
        assert "timed out" in built.reason

    def test_it_may_make_something_that_is_no_library(self, build, stand_in):
        stand_in(
            '[ "$1" = --version ] && echo "g++ 99" && exit 0',
            'while [ "$1" != -o ]; do shift; done; echo nonsense > "$2"',
        )
        built = build()
        assert built.library is None
        assert built.reason.startswith("the compiler failed: ")

    @pytest.mark.parametrize("version", ["Apple clang version 17.0.0", "clang version 19.1.7"])
    def test_clang_by_the_name_of_gnu_is_refused(self, build, stand_in, tmp_path, version):
        script = stand_in(f'echo "{version}"')
        assert build() == (None, f"the compiler failed: {script} is not GNU's")
        assert kept(tmp_path) == []

    def test_a_source_that_does_not_compile_is_said_to_be_it(self, build, gnu, tmp_path):
        compiler.SOURCE.write_text("int oops(", encoding="utf-8")
        built = build()
        assert built.library is None
        assert "kernels.cpp" in built.reason
        assert kept(tmp_path) == []

    def test_the_cache_may_not_be_writable(self, build, gnu, tmp_path):
        (tmp_path / "home").write_text("a file where the folder should be", encoding="utf-8")
        built = build()
        assert built.library is None
        assert built.reason.startswith("the compiler failed: ")


@pytest.mark.parametrize("damage", ["another", "cut short", "bit flipped"])
def test_a_damaged_library_is_compiled_anew(build, gnu, damage):
    """The system's loader would take most of these: one that is cut short kills the process at its first page."""
    path = compiler._cached(gnu)  # not by build(), which loads it: a library that is loaded is not read again
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    damaged = {"another": b"\x7fELF nothing", "cut short": whole[: len(whole) // 2], "bit flipped": bytes(flipped)}
    path.write_bytes(damaged[damage])
    assert build().library.second() == 2
    assert path.read_bytes() == whole


def test_only_the_newest_libraries_are_kept(build, gnu, tmp_path, monkeypatch):
    monkeypatch.setattr(compiler, "KEPT", 2)
    for number in (3, 4, 5):
        compiler.SOURCE.write_text(SECOND.replace("2;", f"{number};"), encoding="utf-8")
        assert build().library.second() == number
    assert len(kept(tmp_path)) == 2


def test_a_compiler_that_makes_nothing_of_use_is_no_crash(build, gnu, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", refusing)
    assert build() == (None, "the compiler failed: not a library")


def refusing(_path):
    raise OSError("not a library")


@pytest.mark.parametrize("library", [None, "a library"])
def test_the_kernels_are_the_eager_ones_where_there_is_no_library(monkeypatch, library):
    monkeypatch.setattr(kernels, "build", lambda: compiler.Built(library, ""))
    assert kernels.kernels() is (eager if library is None else compiled)


def test_both_twins_have_the_same_functions():
    def names(module):
        return {
            name
            for name, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
        }

    ours = {name for name in names(compiled) if not isinstance(getattr(compiled, name), type)}
    assert ours <= names(eager)
    assert "quantise" in ours


def test_the_package_brings_its_source_along():
    assert Path(compiler.__file__).with_name("kernels.cpp").is_file()
    assert eager.quantise(torch.ones(1, 4), [Part(4)]).q.tolist() == [[127] * 4]
