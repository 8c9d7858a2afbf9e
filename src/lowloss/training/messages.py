"""Values as JSON and raw bytes of tensors, for other processes.

JSON has the numbers, strings and containers themselves; what it has no word for is a list [KIND, …]. Functions and
classes go by their names, objects by their class and attributes. What is read has the same bits, every tensor on the
CPU.
"""

import copyreg
import json
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path, PurePath
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

from lowloss.errors import LowlossError


def encode(value: Any) -> tuple[bytes, Tensor]:
    """A value as JSON, and the bytes (N,) of its tensors, one after the other, as uint8.

    Raises LowlossError for what another process could not make again: a local function, or an object that is more than
    its attributes.
    """
    parts: list[Tensor] = []
    text = json.dumps(_told(value, parts))
    return text.encode(), torch.cat([torch.empty(0, dtype=torch.uint8), *parts])


def decode(text: bytes, payload_N: Tensor) -> Any:
    """The value that `encode` was given."""
    return _read(json.loads(text), _taker(payload_N))


def _taker(payload_N: Tensor) -> Callable[[int], Tensor]:
    """What gives the next so many bytes, in memory of their own, which another type may need to be aligned."""
    place = 0

    def take(count: int) -> Tensor:
        nonlocal place
        place += count
        return payload_N[place - count : place].clone()

    return take


def _told(value: Any, parts: list[Tensor]) -> Any:
    kind, told = type(value), partial(_told, parts=parts)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in (list, tuple):
        return [kind.__name__, *map(told, value)]
    if kind is dict:
        return ["dict", *([told(key), told(one)] for key, one in value.items())]
    if kind is Tensor:
        flat = value.detach().cpu().contiguous().view(-1)
        parts.append(flat.view(torch.uint8))
        return ["tensor", str(value.dtype).removeprefix("torch."), *value.shape]
    if kind is torch.dtype:
        return ["dtype", str(value).removeprefix("torch.")]
    if kind is torch.device:
        return ["device", str(value)]
    if isinstance(value, PurePath):
        return ["path", str(value)]
    if isinstance(value, partial):  # Hydra's are of a class of its own, which only looks at what is called
        return ["partial", *map(told, (value.func, value.args, value.keywords))]
    if kind is MethodType:
        return ["method", told(value.__self__), value.__name__]
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        return ["name", *_name(value)]
    # How an object is made again, which for one that is no more than its attributes is by its class, fields and these.
    try:
        made: Any = value.__reduce_ex__(2)
        plain = made[0] is copyreg.__newobj__ and not any(made[3:])  # type: ignore[attr-defined]
    except TypeError:
        plain = False
    if not plain or hasattr(kind, "__setstate__") or not isinstance(made[2], dict | None):
        raise LowlossError(f"{kind.__name__} cannot be told to the processes of other devices: run it on one device")
    return ["object", _name(kind), told(list(made[1][1:])), told(made[2] or {})]


def _name(value: Any) -> list[str]:
    """Module and qualified name of a function or class. Raises LowlossError where they do not lead to it."""
    try:
        found = _named(value.__module__, value.__qualname__)
    except (ImportError, AttributeError):
        found = None
    if found is not value:
        raise LowlossError(
            f"{getattr(value, '__qualname__', value)} cannot be told to the processes of other devices: "
            "define it at the top of a module, or run it on one device"
        )
    return [value.__module__, value.__qualname__]


def _named(module: str, name: str) -> Any:
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _read(told: Any, take: Callable[[int], Tensor]) -> Any:
    if not isinstance(told, list):
        return told
    (kind, *rest), read = told, partial(_read, take=take)
    if kind == "list":
        return [*map(read, rest)]
    if kind == "tuple":
        return tuple(map(read, rest))
    if kind == "dict":
        return {read(key): read(one) for key, one in rest}
    if kind == "tensor":
        dtype, shape = getattr(torch, rest[0]), torch.Size(rest[1:])
        return take(shape.numel() * dtype.itemsize).view(dtype).view(shape)
    if kind == "dtype":
        return getattr(torch, rest[0])
    if kind == "device":
        return torch.device(rest[0])
    if kind == "path":
        return Path(rest[0])
    if kind == "partial":
        function, arguments, keywords = map(read, rest)
        return partial(function, *arguments, **keywords)
    if kind == "method":
        return getattr(read(rest[0]), rest[1])
    if kind == "name":
        return _named(*rest)
    assert kind == "object"
    of, fields, attributes = _named(*rest[0]), read(rest[1]), read(rest[2])
    made = of.__new__(of, *fields)
    if attributes:
        made.__dict__.update(attributes)
    return made
