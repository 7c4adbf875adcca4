"""What torch.save wrote, read without loading its pickle.

The file is a zip that packs nothing: NAME/data.pkl describes the objects in pickle's language, NAME/data/KEY
is the content of a storage. `torch.load(weights_only=True)` runs no foreign code, but some hundred bytes make
it hash a key for ever, overflow the stack, or take any amount of memory. Here the description is only
interpreted: it becomes lists, tuples, dictionaries, plain values and `Stored` tensors, each in constant time.
"""

import errno
import math
import os
import pickletools
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from overnight.errors import UserError
from overnight.files import open_regular, reason

CHUNK = 1 << 24  # bytes read at once
LARGEST = 2 << 20  # bytes of a description; 96 layers with AdamW's state take 900 kB
DTYPES = {
    "torch DoubleStorage": torch.float64, "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16, "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64, "torch IntStorage": torch.int32, "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8, "torch ByteStorage": torch.uint8, "torch BoolStorage": torch.bool,
}  # fmt: skip
DICT, TENSOR, PARAMETER = (
    "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
)  # fmt: skip
VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class Name:
    """A class or function, "module name", that the description asks for."""

    text: str


@dataclass(frozen=True)
class Storage:
    key: str
    dtype: torch.dtype


@dataclass(frozen=True)
class Stored:
    """A tensor that is still in the file: a view of a storage."""

    storage: Storage
    offset: int
    """In elements, as the strides."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    @property
    def n_bytes(self) -> int:
        """Of a copy: a view can claim more than its storage has."""
        return math.prod(self.shape) * self.dtype.itemsize


class TorchFile:
    """An open file of torch.save. `saved` is what is in it. Raises UserError for what is none, or holds more
    than tensors and plain data."""

    def __init__(self, path: Path):
        self.path = path
        self._storages: dict[str, Tensor] = {}
        try:
            self._file = open_regular(path)
        except OSError as error:
            raise UserError(f"cannot read {path}: {reason(error)}.") from None
        try:
            self._zip = zipfile.ZipFile(self._file)
            self._check_packing()
            described = [name for name in self._zip.namelist() if name.split("/")[1:] == ["data.pkl"]]
            if len(described) != 1 or self._zip.getinfo(described[0]).file_size > LARGEST:
                raise ValueError
            self._folder = described[0].partition("/")[0]
            order = f"{self._folder}/byteorder"
            if order in self._zip.namelist() and self._zip.read(order) != b"little":
                raise UserError(f"{path} was written on a big-endian machine, which is not supported.")
            self.saved = interpret(self._zip.read(described[0]))
        except NotPlain as error:
            self._file.close()
            raise UserError(
                f"{path} holds more than tensors and plain data (it asks for {error}): it is not loaded."
            ) from None
        except BaseException as error:
            self._file.close()
            if is_disks(error) or isinstance(error, UserError) or not isinstance(error, Exception):
                raise
            # Other bytes fail in many ways.
            raise UserError(f"{path} is damaged or no checkpoint of torch 1.6 or newer.") from None

    def _check_packing(self) -> None:
        entries = self._zip.infolist()
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > os.fstat(self._file.fileno()).st_size:
            raise UserError(
                f"{self.path} is not a checkpoint of torch: what is in it is packed (torch packs nothing)."
            )

    def tensor(self, name: str, stored: Stored) -> Tensor:
        """A tensor of the file, whose storage it shares with others. Raises UserError, with its name, where
        the file does not have it."""
        elements = self._storage(name, stored.storage)
        last = stored.offset + sum((n - 1) * by for n, by in zip(stored.shape, stored.stride, strict=True))
        if math.prod(stored.shape) and last >= len(elements):
            raise UserError(f"{self.path} is damaged: {name} is larger than its storage.")
        try:
            return elements.as_strided(stored.shape, stored.stride, stored.offset)
        except (RuntimeError, TypeError, ValueError, OverflowError):  # nothing in it, but of 2**64 rows
            raise UserError(f"{self.path} is damaged: {name} has an impossible shape.") from None

    def _storage(self, name: str, storage: Storage) -> Tensor:
        if storage.key not in self._storages:
            try:
                entry = self._zip.getinfo(f"{self._folder}/data/{storage.key}")
                content = torch.empty(entry.file_size, dtype=torch.uint8)
                with self._zip.open(entry) as file:
                    for at in range(0, len(content), CHUNK):
                        part = file.read(min(CHUNK, len(content) - at))
                        content[at : at + len(part)] = torch.frombuffer(bytearray(part), dtype=torch.uint8)
                        if len(part) != min(CHUNK, len(content) - at):
                            raise ValueError
            except Exception as error:
                if is_disks(error):
                    raise
                raise UserError(f"{self.path} is damaged: it does not have the content of {name}.") from None
            self._storages[storage.key] = content
        content = self._storages[storage.key]
        whole = len(content) // storage.dtype.itemsize * storage.dtype.itemsize
        return content[:whole].view(storage.dtype)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def is_disks(error: BaseException) -> bool:
    """Whether the disk cannot be read. A damaged zip can name a place before the file (EINVAL)."""
    return isinstance(error, OSError) and error.errno != errno.EINVAL


class NotPlain(Exception):
    """The description asks for a class or function that is neither a tensor nor plain data."""


def interpret(description: bytes) -> Any:
    """The objects that a pickle of torch.save describes. Raises NotPlain, or any Exception where it is not
    one that torch writes (protocol 2, and of its opcodes those for plain data)."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop(n: int) -> tuple[Any, ...]:
        """The last n values, none of them from before the last mark."""
        if n < 0 or len(stack) - n < (marks[-1] if marks else 0):
            raise ValueError
        taken = tuple(stack[len(stack) - n :])
        del stack[len(stack) - n :]
        return taken

    def pop_marked() -> tuple[Any, ...]:
        taken = pop(len(stack) - marks[-1])
        marks.pop()
        return taken

    argument: Any
    for opcode, argument, _ in pickletools.genops(description):
        name = opcode.name
        if name in VALUES:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name in TUPLES:
            stack.append(pop(TUPLES[name]))
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(pop_marked())
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            if argument not in (DICT, TENSOR, PARAMETER) and argument not in DTYPES:
                raise NotPlain(argument.replace(" ", ".")[:100])
            stack.append(Name(argument))
        elif name in ("SETITEM", "SETITEMS"):
            items = pop(2) if name == "SETITEM" else pop_marked()
            set_items(stack[-1], items)
        elif name in ("APPEND", "APPENDS"):
            items = pop(1) if name == "APPEND" else pop_marked()
            require(stack[-1], list).extend(items)
        elif name == "BINPERSID":
            stack.append(storage(*require(pop(1)[0], tuple)))
        elif name == "REDUCE":
            function, arguments = pop(2)
            stack.append(call(require(function, Name), require(arguments, tuple)))
        elif name == "BUILD":  # what a state_dict says of its modules' versions
            pop(1)
            require(stack[-1], dict)
        elif name == "STOP":
            (result,) = stack
            return result
        elif name != "PROTO":
            raise ValueError
    raise ValueError


def require(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError
    return value


def set_items(target: Any, items: tuple[Any, ...]) -> None:
    """Plain keys only: the hash of a tuple can take for ever."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) not in (str, int, float, bool, type(None)):
            raise ValueError
        require(target, dict)[key] = value


def storage(kind: Any, dtype: Any, key: Any, _device: Any, _size: Any) -> Storage:
    if kind != "storage":
        raise ValueError
    return Storage(require(key, str), DTYPES[require(dtype, Name).text])


def call(function: Name, arguments: tuple[Any, ...]) -> Any:
    """What one of the three functions makes that a state_dict needs."""
    if function.text == DICT:
        () = arguments
        return {}
    if function.text == PARAMETER:
        return require(arguments[0], Stored)
    if function.text != TENSOR:
        raise ValueError
    where, offset, shape, stride = arguments[:4]
    if len(shape) != len(stride) or any(type(n) is not int or n < 0 for n in (offset, *shape, *stride)):
        raise ValueError
    return Stored(require(where, Storage), offset, require(shape, tuple), require(stride, tuple))
