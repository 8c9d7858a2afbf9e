"""What a module keeps beside parameters and buffers: read, compared, given back, and altered to see if it matters."""

from __future__ import annotations

import contextlib
import copy
import pickle
import random
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

COMMON = frozenset([*vars(nn.Module()), "_flat_weights", "_flat_weight_refs"])
"""Attributes that every module has, and those in which torch's recurrent layers have their parameters again."""

GENERATORS: dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], object]]] = {
    torch.Generator: (lambda it: it.get_state(), lambda it, state: it.set_state(state)),
    random.Random: (lambda it: it.getstate(), lambda it, state: it.setstate(state)),
    np.random.RandomState: (lambda it: it.get_state(legacy=False), lambda it, state: it.set_state(state)),
    np.random.Generator: (lambda it: it.bit_generator.state, lambda it, s: setattr(it.bit_generator, "state", s)),
}

LONGEST, DEEPEST = 1000, 6
"""Up to how many entries a list is continued, and how deep containers and objects are looked into."""

NAMESPACES = "types", "argparse"
"""Of Python's own modules those whose objects are looked into, beside containers."""


class State:
    """What plain attributes of a module's parts, and of their classes, hold now, and buffers that come later.

    Containers, and objects of classes that are neither Python's nor torch's, are looked into; each is given back as the
    same object, since others may know it too.

    Args:
        module: the module; its parts, parameters and buffers are not meant.
        before: how it was, for which buffers came later.
    """

    def __init__(self, module: nn.Module, before: State | None = None) -> None:
        self.module, self._whole = module, True
        own = dict(module.named_buffers(remove_duplicate=False))
        self.buffers: frozenset[str] = before.buffers if before else frozenset(own)
        known = [*module.modules(), *module.parameters(), *(own[name] for name in self.buffers & own.keys())]
        seen = {id(one) for one in known}
        self._held: dict[str, tuple[Any, str, _Held | None]] = {
            name: (owner, key, _Held(value, seen)) for name, owner, key, value in self._places()
        }

    def _places(self) -> Iterator[tuple[str, Any, str, Any]]:
        """The name of each attribute, whose it is, its key there, and what it holds."""
        classes = set[type]()
        for path, part in self.module.named_modules():
            start = f"{path}." if path else ""
            tables: list[tuple[str, Any, dict[str, Any]]] = [(start, one, one) for one in (vars(part), part._buffers)]
            for kind in type(part).__mro__:
                if kind not in classes and _ones_own(kind):
                    tables.append((f"{kind.__name__}.", kind, dict(vars(kind))))
                    classes.add(kind)
            for prefix, owner, table in tables:
                for key, value in list(table.items()):
                    if key not in COMMON and not key.startswith("__") and f"{prefix}{key}" not in self.buffers:
                        yield f"{prefix}{key}", owner, key, value

    def differing(self, other: State) -> set[str]:
        """The names of what two states of one module have not in common."""
        both = self._held.keys() & other._held.keys()
        changed = {name for name in both if not _same(self._held[name][2], other._held[name][2])}
        return changed | (self._held.keys() ^ other._held.keys())

    def only(self, names: Collection[str], later: State) -> State:
        """The part of it that has these names, of which some may be in a later state alone."""
        part = State.__new__(State)
        part.module, part.buffers, part._whole = self.module, self.buffers, False
        part._held = {name: self._held.get(name) or (*later._held[name][:2], None) for name in names}
        return part

    @property
    def names(self) -> list[str]:
        return sorted(self._held)

    def restore(self) -> None:
        """Have the module hold what it held, and nothing else."""
        for owner, key, held in self._held.values():
            if held is not None:
                _put(owner, key, held.give())
            else:
                _drop(owner, key)
        if self._whole:
            for name, owner, key, _ in list(self._places()):
                if name not in self._held:
                    _drop(owner, key)

    def alter(self, by: int) -> None:
        """Have the module hold something else under these names, as after so many calls more."""
        for owner, key, _ in self._held.values() if by else ():
            table = vars(owner) if isinstance(owner, type) else owner
            if key in table:
                _put(owner, key, _altered(table[key], by, set(), 0))


def duplicate(module: nn.Module) -> nn.Module:
    """A copy of a module, and what it has computed from its parameters as values alone: torch copies leaves only."""
    kept = [one for part in module.modules() for one in vars(part).values()]
    kept += [one for some in kept if isinstance(some, list) for one in some]
    computed = {id(one): one.detach().clone() for one in kept if isinstance(one, Tensor) and not one.is_leaf}
    return copy.deepcopy(module, computed)


def _put(owner: Any, key: str, value: Any) -> None:
    if isinstance(owner, type):
        if vars(owner).get(key) is not value:
            setattr(owner, key, value)
    else:
        owner[key] = value


def _drop(owner: Any, key: str) -> None:
    if isinstance(owner, type):
        if key in vars(owner):
            delattr(owner, key)
    else:
        owner.pop(key, None)


def _ones_own(kind: type) -> bool:
    """Whether objects of a class are looked into: it is neither Python's nor torch's."""
    top = kind.__module__.partition(".")[0]
    return top in NAMESPACES or not (top == "torch" or top == "numpy" or top in sys.stdlib_module_names)


class _Held:
    """A value, and a copy of what is in it."""

    def __init__(self, value: Any, seen: set[int], depth: int = 0) -> None:
        self.value, self.kind = value, ""
        self.content: Any = None
        if isinstance(value, (bool, int, float, complex, str, bytes, type(None))):
            self.kind, self.content = "plain", value
            return
        if id(value) in seen or depth > DEEPEST:
            return
        seen.add(id(value))

        def held(one: Any) -> _Held:
            return _Held(one, seen, depth + 1)

        generator = next((kind for kind in GENERATORS if isinstance(value, kind)), None)
        if isinstance(value, Tensor):
            with contextlib.suppress(RuntimeError, NotImplementedError):  # of a kind that cannot be copied
                self.kind, self.content = "tensor", value.detach().clone()
        elif isinstance(value, np.ndarray):
            self.kind, self.content = "array", value.copy()
        elif generator:
            self.kind, self.content = "generator", GENERATORS[generator][0](value)
        elif isinstance(value, dict):
            self.kind, self.content = "dict", {key: held(one) for key, one in value.items()}
        elif isinstance(value, (list, deque, tuple)):
            self.kind, self.content = "row", [held(one) for one in value]
        elif isinstance(value, set):
            self.kind, self.content = "set", set(value)
        elif not isinstance(value, type) and _ones_own(type(value)):
            self.kind, self.content = "object", {key: held(one) for key, one in _attributes(value).items()}

    def give(self) -> Any:
        """The value, in which there is what was."""
        value, content = self.value, self.content
        if self.kind == "tensor":
            try:
                value.data.copy_(content)
            except RuntimeError:  # such as one that was expanded
                return content.clone()
        elif self.kind == "array":
            if value.flags.writeable:
                value[...] = content
        elif self.kind == "generator":
            next(give for kind, (_, give) in GENERATORS.items() if isinstance(value, kind))(value, content)
        elif self.kind == "dict":
            given = {key: one.give() for key, one in content.items()}
            value.clear()
            value.update(given)
        elif self.kind == "row":
            parts = [one.give() for one in content]
            if not isinstance(value, tuple):
                value.clear()
                value.extend(parts)
        elif self.kind == "set":
            value.clear()
            value.update(content)
        elif self.kind == "object":
            for key in _attributes(value).keys() - content.keys():
                object.__delattr__(value, key)
            for key, one in content.items():
                object.__setattr__(value, key, one.give())
        return value


def _attributes(value: Any) -> dict[str, Any]:
    slots = [key for kind in type(value).__mro__ for key in getattr(kind, "__slots__", ()) if not key.startswith("__")]
    return {**{key: getattr(value, key) for key in slots if hasattr(value, key)}, **getattr(value, "__dict__", {})}


def _same(one: _Held | None, other: _Held | None) -> bool:
    if one is None or other is None:
        return one is other
    a, b = one.content, other.content
    if one.kind != other.kind or (not one.kind and one.value is not other.value):
        return False
    if one.kind == "tensor":
        alike = a.dtype == b.dtype and a.device == b.device and a.shape == b.shape
        return alike and (torch.equal(a, b) or (a.is_floating_point() and torch.allclose(a, b, 0, 0, equal_nan=True)))
    if one.kind == "array":
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
    if one.kind in {"dict", "object"}:
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if one.kind == "row":
        return len(a) == len(b) and all(_same(*pair) for pair in zip(a, b, strict=True))
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return pickle.dumps(a) == pickle.dumps(b) if one.kind == "generator" else bool(a == b)


def _altered(value: Any, by: int, seen: set[int], depth: int) -> Any:
    """What a value may be after so many calls more; containers and objects are altered as they are."""
    if isinstance(value, (bool, np.bool_)):
        return not value
    if isinstance(value, (int, float)):
        return value + by
    if id(value) in seen or depth > DEEPEST or isinstance(value, (str, bytes, type(None))):
        return value
    seen.add(id(value))
    if isinstance(value, (Tensor, np.ndarray)):
        try:
            value = value.detach() if isinstance(value, Tensor) else value
            return ~value if value.dtype in (torch.bool, bool) else value + by
        except (RuntimeError, TypeError):
            return value
    if isinstance(value, dict):
        value.update({key: _altered(one, by, seen, depth + 1) for key, one in value.items()})
    elif isinstance(value, (list, deque)):
        parts = [_altered(one, by, seen, depth + 1) for one in value]
        more = max(0, min(by, LONGEST) - len(parts)) if parts else 0
        value.clear()
        value.extend(parts + [parts[k % len(parts)] for k in range(more)])
    elif isinstance(value, tuple):
        if type(value) is tuple:
            return tuple(_altered(one, by, seen, depth + 1) for one in value)
    elif not isinstance(value, type) and not isinstance(value, nn.Module) and _ones_own(type(value)):
        for key, one in _attributes(value).items():
            with contextlib.suppress(AttributeError, TypeError):
                object.__setattr__(value, key, _altered(one, by, seen, depth + 1))
    return value
