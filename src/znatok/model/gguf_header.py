"""The head of a GGUF file, read as if an enemy had written it.

The layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): magic, version, two counts, key-value pairs,
tensor descriptions, padding, tensor data. Every count and length is compared with the bytes that are left before
anything is allocated, no structure nests, and every tensor must lie inside the file; so a truncated, flipped or forged
file ends in a ModelError, never in a crash, an endless loop or a foreign exception. The ``gguf`` package's own reader
trusts the file (llama.cpp had CVE-2026-27940 here, Ollama CVE-2026-7482), needs several times longer, and serves as
the reference in the tests.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from znatok.errors import ModelError, _

MAGIC = b"GGUF"
VERSIONS = (2, 3)
KINDS = tuple(
    GGMLQuantizationType[name]
    for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
)
"""Tensor types znatok can read."""

MAX_TEXT = 1 << 24  # bytes; a chat template has some thousands
MAX_NAME = 1 << 10
MAX_ITEMS = 1 << 22  # entries of an array; the largest vocabularies have 2^18
MAX_TENSORS = 1 << 16
MAX_KEYS = 1 << 16
MAX_ALIGNMENT = 1 << 20
DEFAULT_ALIGNMENT = 32

_SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8", 11: "<i8"}
_SCALARS[12] = "<f8"
_BOOL, _STRING, _ARRAY, _UINT32 = 7, 8, 9, 4


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: ``shape`` in torch's order, ``start`` from the beginning of the file, both in one file."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    nbytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row (the last dimension)."""
        return packed_bytes(self.kind, self.shape[-1])


@dataclass(frozen=True)
class Header:
    """All a GGUF file says before its data; arrays of numbers are numpy arrays, arrays of strings are lists."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]

    def integer(self, key: str, default: int | None = None, *, low: int = 1, high: int = 1 << 31) -> int:
        """Return a whole number in [low, high]; ModelError where it is missing or something else."""
        value = self.metadata.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.bad(key, value, f"[{low}, {high}]")
        return value

    def number(self, key: str, default: float | None = None, *, low: float, high: float) -> float:
        """Return a number in [low, high], a float32 as the shortest decimal that stands for it (1e-06)."""
        value = self.metadata.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self.bad(key, value, f"[{low}, {high}]")
        return float(str(np.float32(value)))

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string."""
        value = self.metadata.get(key, default)
        if not isinstance(value, str):
            raise self.bad(key, value, _("a string"))
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """Return a truth value."""
        value = self.metadata.get(key, default)
        if not isinstance(value, bool):
            raise self.bad(key, value, _("true or false"))
        return value

    def bad(self, key: str, value: object, expected: str) -> ModelError:
        """Return the error for a metadata value that can't be used."""
        shown = _("missing") if value is None else repr(value)[:60]
        return ModelError(
            "{path}: metadata {key} is {value}, expected {expected}; get the file anew or from another publisher",
            path=self.path,
            key=key,
            value=shown,
            expected=expected,
        )


def packed_bytes(kind: GGMLQuantizationType, elements: int) -> int:
    """Return how many bytes ``elements`` (a multiple of the block) take."""
    block, size = GGML_QUANT_SIZES[kind]
    return int(elements // block * size)


def read_header(path: Path) -> Header:
    """Read and check the head of the GGUF file at ``path``."""
    try:
        with path.open("rb") as file:
            return _Reader(path, file).read()
    except OSError as error:
        raise ModelError("{path}: can't be read: {why}", path=path, why=error.strerror or error) from error


class _Reader:
    """A cursor over the file that never reads beyond its end."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.size = path.stat().st_size
        self.at = 0

    def read(self) -> Header:
        tensor_count, key_count = self.preamble()
        metadata: dict[str, Any] = {}
        for _index in range(key_count):
            key = self.name(_("a key"))
            if key in metadata:
                raise self.damaged(_("the key {what} stands there twice", what=key))
            metadata[key] = self.value(key)
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self.damaged(_("alignment {what} is no power of two", what=alignment))
        raw = [self.description() for _index in range(tensor_count)]
        start = -(-self.at // alignment) * alignment
        tensors: dict[str, Tensor] = {}
        for name, kind, shape, offset in raw:
            if name in tensors:
                raise self.damaged(_("the tensor {what} stands there twice", what=name))
            tensors[name] = self.place(name, kind, shape, offset, start=start, alignment=alignment)
        self.refuse_overlap(tensors)
        return Header(self.path, metadata, tensors)

    def preamble(self) -> tuple[int, int]:
        if self.size < 24 or (magic := self.take(4)) != MAGIC:
            raise ModelError(
                "{path}: not a GGUF file ({found}); expected a file that begins with the letters GGUF",
                path=self.path,
                found=_("{size} bytes", size=self.size) if self.size < 24 else repr(magic)[1:],
            )
        version = self.u32()
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            raise ModelError(
                "{path}: GGUF version {version}; expected 2 or 3, little-endian",
                path=self.path,
                version="big-endian" if swapped else version,
            )
        tensor_count, key_count = self.u64(), self.u64()
        if tensor_count > MAX_TENSORS or tensor_count * 32 > self.left:  # the shortest description has 32 bytes
            raise self.damaged(_("{what} tensors can't be in it", what=tensor_count))
        if key_count > MAX_KEYS or key_count * 13 > self.left:
            raise self.damaged(_("{what} keys can't be in it", what=key_count))
        return tensor_count, key_count

    @property
    def left(self) -> int:
        return self.size - self.at

    def take(self, count: int) -> bytes:
        data = self.file.read(count) if count <= self.left else b""
        if len(data) != count:
            raise self.damaged(_("it ends inside its header, at byte {what}", what=self.size))
        self.at += count
        return data

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def string(self, limit: int, what: str) -> str:
        length = self.u64()
        if length > limit:
            raise self.damaged(_("{what} claims to be {length} bytes long", what=what, length=length))
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged(_("{what} is not UTF-8", what=what)) from None

    def name(self, what: str) -> str:
        text = self.string(MAX_NAME, what)
        if not text.isprintable():  # it is going to stand in messages
            raise self.damaged(_("{what} holds control characters", what=what))
        return text

    def value(self, key: str) -> Any:
        kind = self.u32()
        if kind == _STRING:
            return self.string(MAX_TEXT, key)
        if kind == _ARRAY:
            return self.array(key)
        return self.scalars(key, kind, 1)[0].item() if kind != _BOOL else self.boolean(key)

    def boolean(self, key: str) -> bool:
        byte = self.take(1)[0]
        if byte > 1:
            raise self.damaged(_("{what} is neither true nor false", what=key))
        return bool(byte)

    def array(self, key: str) -> Any:
        kind, count = self.u32(), self.u64()
        if count > MAX_ITEMS:
            raise self.damaged(_("{what} claims to have {count} entries", what=key, count=count))
        if kind == _STRING:
            if count * 8 > self.left:
                raise self.damaged(_("{what} claims to have {count} entries", what=key, count=count))
            return self.strings(key, count)
        return self.scalars(key, kind, count)

    def strings(self, key: str, count: int) -> list[str]:
        """Read a vocabulary: what :meth:`string` does, without a call for each of 300,000 pieces."""
        read, left, length, found = self.file.read, self.left, 0, list[str]()
        try:
            for _index in range(count):
                length = int.from_bytes(read(8), "little")
                left -= 8 + length
                if length > MAX_TEXT or left < 0:
                    break
                found.append(read(length).decode("utf-8"))
        except UnicodeDecodeError:
            raise self.damaged(_("{what} is not UTF-8", what=key)) from None
        if len(found) == count:
            self.at = self.size - left
            return found
        if length > MAX_TEXT:
            raise self.damaged(_("{what} claims to be {length} bytes long", what=key, length=length))
        raise self.damaged(_("it ends inside its header, at byte {what}", what=self.size))

    def scalars(self, key: str, kind: int, count: int) -> "np.ndarray[Any, Any]":
        if kind not in _SCALARS:  # an array of arrays is refused here as well: no format needs it
            raise self.damaged(_("{what} has the unknown type {kind}", what=key, kind=kind))
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.take(dtype.itemsize * count), dtype)

    def description(self) -> tuple[str, int, tuple[int, ...], int]:
        name = self.name(_("a tensor's name"))
        dimensions = self.u32()
        if not 1 <= dimensions <= 4:
            raise self.damaged(_("the tensor {what} has {count} dimensions", what=name, count=dimensions))
        shape = struct.unpack(f"<{dimensions}Q", self.take(8 * dimensions))
        return name, self.u32(), tuple(reversed(shape)), self.u64()

    def place(self, name: str, kind: int, shape: tuple[int, ...], offset: int, *, start: int, alignment: int) -> Tensor:
        if kind not in list(KINDS):
            known = {int(member): member.name for member in GGMLQuantizationType}
            raise ModelError(
                "{path}: the tensor {name} has the type {kind}; expected one of {known}; take another quantisation",
                path=self.path,
                name=name,
                kind=known.get(kind, kind),
                known=", ".join(member.name for member in KINDS),
            )
        quant = GGMLQuantizationType(kind)
        elements = math.prod(shape)
        if not elements or shape[-1] % GGML_QUANT_SIZES[quant][0]:
            raise self.damaged(_("the tensor {what} can't have the shape {shape}", what=name, shape=list(shape)))
        nbytes = packed_bytes(quant, elements)
        if offset % alignment or start + offset + nbytes > self.size:
            raise self.damaged(
                _(
                    "the tensor {what} reaches to byte {end} of {size}",
                    what=name,
                    end=start + offset + nbytes,
                    size=self.size,
                )
            )
        return Tensor(name, quant, shape, start + offset, nbytes)

    def refuse_overlap(self, tensors: dict[str, Tensor]) -> None:
        end = 0
        for tensor in sorted(tensors.values(), key=lambda tensor: tensor.start):
            if tensor.start < end:
                raise self.damaged(_("the tensor {what} lies on top of another", what=tensor.name))
            end = tensor.start + tensor.nbytes

    def damaged(self, cause: str) -> ModelError:
        return ModelError("{path}: damaged: {cause}; get the file anew", path=self.path, cause=cause)
