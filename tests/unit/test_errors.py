import copy
import gettext
import importlib
import mmap
import pickle  # noqa: TID251  # nothing is loaded that this test did not just dump
from pathlib import Path

import numpy as np
import pytest
import torch

from znatok import errors
from znatok.data.load import BadRecords
from znatok.errors import (
    DataError,
    GateError,
    Interrupted,
    ModelError,
    SystemFault,
    TrainingError,
    UsageError,
    ZnatokError,
    as_faults,
)

TREE = [
    (UsageError, ValueError, 2),
    (DataError, ValueError, 3),
    (ModelError, ValueError, 4),
    (SystemFault, RuntimeError, 5),
    (GateError, AssertionError, 6),
    (TrainingError, ArithmeticError, 1),
    (Interrupted, Exception, 130),
]


@pytest.mark.parametrize(("kind", "standard", "code"), TREE)
def test_every_error_is_one_of_ours_and_a_standard_one_with_its_exit_code(kind, standard, code):
    error = kind("x")
    assert isinstance(error, ZnatokError)
    assert isinstance(error, standard)
    assert error.exit_code == code


@pytest.mark.parametrize(("kind", "_standard", "code"), TREE)
def test_the_docstring_draws_every_error_with_its_exit_code(kind, _standard, code):
    line = next(line for line in errors.__doc__.splitlines() if f"── {kind.__name__} " in line)
    assert str(code) in line.split(")")[1].split()


def test_a_message_is_its_template_filled_in():
    error = DataError("{path}:{line}: not JSON: {why}", path="a.jsonl", line=3, why="{braces} stay")
    assert str(error) == "a.jsonl:3: not JSON: {braces} stay"
    assert error.fields["line"] == 3


def test_a_message_without_fields_keeps_its_braces():
    assert str(UsageError("write {}")) == "write {}"


@pytest.mark.parametrize(
    "error",
    [
        UsageError("{a} and {b}", a=1, b="two"),
        Interrupted("stopped at {step}", exit_code=143, step=7),
        BadRecords("{path}: {count}", path="f", count=1, problems=(DataError("one"),)),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("again", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])  # noqa: S301
def test_an_error_survives_the_way_to_another_process(error, again):
    twin = again(error)
    assert type(twin) is type(error)
    assert str(twin) == str(error)
    assert twin.exit_code == error.exit_code


def test_an_error_is_translated_where_it_is_shown(monkeypatch):
    class Russian(gettext.NullTranslations):
        def gettext(self, message):
            return {"{n} tokens": "токенов: {n}"}.get(message, message)

    error = UsageError("{n} tokens", n=5)
    monkeypatch.setattr(errors, "catalogue", lambda language=None: Russian())
    assert str(error) == "токенов: 5"
    assert errors._("untranslated {n}", n=1) == "untranslated 1"


TOO_MUCH = 1 << 60  # bytes


@pytest.mark.parametrize(
    "ask",
    [
        lambda: bytearray(TOO_MUCH),
        lambda: torch.empty(TOO_MUCH, dtype=torch.int8),
        lambda: np.empty(TOO_MUCH, dtype=np.int8),
        lambda: mmap.mmap(-1, TOO_MUCH),
        lambda: raised(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has …\nmore")),
        lambda: raised(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
    ],
    ids=["Python", "torch", "numpy", "system", "CUDA", "cuBLAS"],
)
def test_memory_that_runs_out_is_a_fault_of_the_machine_with_a_remedy(ask):
    with (
        pytest.raises(SystemFault, match=r"^memory ran out \(.*\): take a smaller model .*--low_memory") as caught,
        as_faults(),
    ):
        ask()
    assert "\n" not in str(caught.value)


def raised(error):
    raise error


def test_a_disk_and_its_rights_are_faults_of_the_machine(tmp_path):
    full = r"a file: can't be read or written \(No space left on device\); make"
    with Path("/dev/full").open("wb", buffering=0) as file, pytest.raises(SystemFault, match=full), as_faults():
        file.write(b"x")
    with pytest.raises(SystemFault, match=r"xxx: can't be read or written \(File name too long\)"), as_faults():
        (tmp_path / ("x" * 300)).stat()
    with pytest.raises(SystemFault, match=r"can't be read or written \(Is a directory\)"), as_faults():
        tmp_path.read_bytes()


def test_a_library_too_old_is_a_fault_of_the_machine():
    with pytest.raises(SystemFault, match=r"No module named 'znatokless': a library is missing, or of"), as_faults():
        importlib.import_module("znatokless")
    with pytest.raises(SystemFault, match=r"cannot import name 'Newer' from 'json'.* --upgrade znatok"), as_faults():
        exec("from json import Newer", {})  # noqa: S102  # no linter is to see it


@pytest.mark.parametrize(
    "bug",
    [
        RuntimeError("a bug"),
        FileNotFoundError(2, "No such file"),
        ImportError("of ours", name="znatok.gone"),
        KeyError(),
    ],
    ids=repr,
)
def test_a_bug_stays_one(bug):
    with pytest.raises(type(bug)) as caught, as_faults():
        raise bug
    assert caught.value is bug


def test_an_error_of_ours_is_not_taken_for_another():
    with pytest.raises(SystemFault, match=r"^the GPU is out of memory$"), as_faults():
        raise SystemFault("the GPU is out of memory")


def test_an_unknown_language_falls_back_to_the_messages_as_written():
    assert errors.catalogue("xx").gettext("{n} tokens") == "{n} tokens"
