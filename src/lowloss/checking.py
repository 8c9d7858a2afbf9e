"""Whether values of a configuration are what takes them asks for: types and bounds, read from its annotations.

pydantic compares, strictly: a flag is no number, and no number is infinite or NaN.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen

from lowloss.errors import LowlossError, is_number, nearest

C = TypeVar("C", bound=Callable[..., Any])

Index = Annotated[int, Ge(0), Le(2**63 - 1)]
Count = Annotated[int, Ge(1), Le(2**31 - 1)]
Few = Annotated[int, Ge(1), Le(10_000)]
"""Of things that are made one by one, and whose folders have numbers of four digits."""
Positive = Annotated[float, Gt(0), Le(1e7)]
Fraction = Annotated[float, Ge(0), Lt(1)]
Width = Annotated[int, Ge(1), Le(1_000_000)]
Name = Annotated[str, MinLen(1)]
TOLD = "told by what takes it"
"""In an annotation: nothing is compared here."""


@dataclass(frozen=True)
class Arguments:
    """What a constructor takes: names, the annotations of those that have one, whether it takes others too, and whether
    it is ours, whose annotations say all."""

    names: Sequence[str]
    hints: Mapping[str, Any]
    more: bool
    ours: bool

    @classmethod
    def of(cls, target: Callable[..., Any]) -> Arguments:
        parameters = inspect.signature(target).parameters
        hints = get_type_hints(target.__init__ if isinstance(target, type) else target, include_extras=True)  # type: ignore[misc]
        more = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        return cls(tuple(parameters), hints, more, target.__module__.startswith("lowloss."))


def check_arguments(
    key: str, target: Callable[..., Any] | Arguments, node: Mapping[str, Any], whole: bool = False, more: bool = False
) -> None:
    """Raise LowlossError where the keys of a node are not the arguments of what takes them.

    Args:
        key: of the node; "" for the top.
        whole: whether every argument has to be there.
        more: whether other keys may be there too.
    """
    takes = target if isinstance(target, Arguments) else Arguments.of(target)
    prefix = f"{key}." if key else ""
    given = [str(name) for name in node if not str(name).startswith("_")]
    unknown = [name for name in given if name not in takes.names]
    if unknown and not more and not takes.more:
        near = nearest(unknown[0], takes.names)
        raise LowlossError(f"{key} has no {', '.join(unknown)}{near}; it has {', '.join(takes.names) or 'no keys'}")
    for name in takes.names if whole else ():
        if name not in node:
            raise LowlossError(f"the configuration has no {prefix}{name}: do not take {key or name} out of it")
    for name, value in node.items():
        hint = takes.hints.get(name)
        if hint is None or TOLD in getattr(hint, "__metadata__", ()):
            continue
        made = not whole and isinstance(value, dict) and "_target_" in value and not _held(hint)
        if not made and (takes.ours or kinds(hint)):  # what is made is compared by whoever makes it
            check_value(f"{prefix}{name}", value, hint)


def described(call: C) -> C:
    """The same function or class, which raises LowlossError for an argument of another kind than its annotation has: a
    text for a number, or a fraction for a whole number. Bounds are its own affair."""
    function: Any = call.__init__ if isinstance(call, type) else call  # type: ignore[misc]
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        hints = get_type_hints(function, include_extras=True)
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            plain = kinds(hints[name]) if name in hints else []
            if plain and not any(_is(value, kind) for kind in plain):
                raise LowlossError(f"{name} must be {' or '.join(plain)}, got {shown(value)}")
        return function(*args, **kwargs)

    if isinstance(call, type):
        call.__init__ = checked  # type: ignore[misc]
        return call
    return checked  # type: ignore[return-value]


def _is(value: Any, kind: str) -> bool:
    """Whether a value, perhaps of NumPy's, is of a plain type by its name."""
    if kind in ("int", "float"):
        return is_number(value, int if kind == "int" else float)
    return isinstance(value, {"bool": bool, "str": str, "null": type(None)}[kind])


def kinds(hint: Any) -> list[str]:
    """The names of the plain types that a hint is made of; none if others are among them."""
    if get_origin(hint) is Annotated:
        return kinds(get_args(hint)[0])
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    # A learning rate may be a tensor, which no configuration holds.
    members = tuple(one for one in members if getattr(one, "__name__", "") != "Tensor")
    if len(members) > 1:
        parts = [kinds(one) for one in members]
        return sorted({name for part in parts for name in part}) if all(parts) else []
    (one,) = members
    names = {int: "int", float: "float", bool: "bool", str: "str", type(None): "null"}
    return [names[one]] if one in names else []


def _held(hint: Any) -> bool:
    """Whether a hint is of what a configuration holds as it is: plain types and lists of them."""
    if get_origin(hint) is Annotated:
        return _held(get_args(hint)[0])
    lists = get_origin(hint) in (Union, UnionType, Sequence, list)
    return bool(kinds(hint)) or (lists and all(map(_held, get_args(hint))))


WORDS = {
    "greater_than_equal": "at least {ge:.10g}",
    "greater_than": "more than {gt:.10g}",
    "less_than_equal": "at most {le:.10g}",
    "less_than": "less than {lt:.10g}",
    "dict_type": "a group",
    "string_too_short": "a text that is not empty",
    "too_short": "a list that is not empty",
    "sequence_str": "a list",
    "is_instance_of": "a list",  # among the types that annotations name, only sequences are compared so
}
"""What has to be, by pydantic's names of what is wrong."""


def check_value(key: str, value: Any, hint: Any) -> None:
    """Raise LowlossError unless a value of the configuration is what an annotation describes."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    strict = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    try:
        TypeAdapter(hint, config=strict).validate_python(value)
        return
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    limit = first.get("ctx", {})
    plain, kind = kinds(hint), first["type"]
    what = WORDS[kind].format(**limit) if kind in WORDS else first["msg"].removeprefix("Input should be ")
    if plain and kind.endswith(("_type", "_from_float")):
        what = " or ".join(plain)
    for part in first["loc"]:  # there are names of types among these
        if isinstance(part, int) and isinstance(value, list):
            key, value = f"{key}[{part}]", value[part]
        elif isinstance(value, dict) and part in value:
            key, value = f"{key}.{part}", value[part]
    raise LowlossError(f"{key} must be {what}, got {shown(value)}")


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}…"
