"""What our constructors ask for, read from their source: to import them takes seconds, and a mistake is told in one."""

from __future__ import annotations

import ast
import builtins
import functools
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import annotated_types

from lowloss import checking
from lowloss.checking import Arguments

Source = tuple[ast.ClassDef | ast.FunctionDef, ast.Module]
"""A class or function, and all of its file."""

KNOWN = {
    **vars(builtins), **vars(typing), **vars(annotated_types), **vars(checking),
    "Callable": Callable, "Mapping": Mapping, "Sequence": Sequence, "Augmentation": Callable,
}  # fmt: skip
"""The names that annotations may have; where there is another one, the argument is compared once it is imported."""


def declared(target: str) -> Arguments:
    """The arguments of a class or function of this package by its dotted name, without importing it.

    Other keys are for whoever imports it: Hydra refuses what an option lacks, and that may be of another kind.

    Raises ImportError if the source has none of that name.
    """
    module, _, name = target.rpartition(".")
    found = _found(module, name)
    if found is None:
        raise ImportError(f"{module} has no {name}")
    node, tree = found
    arguments = _fields(node, tree) if isinstance(node, ast.ClassDef) else _of_function(node, tree)
    hints = {key: hint for key, hint in arguments.items() if hint is not None}
    return Arguments(tuple(arguments), hints, more=True, ours=True)


def _found(module: str, name: str) -> Source | None:
    """A class or function by its module and its name there."""
    tree = _tree(module)
    return _named(name, tree) if tree else None


def _named(name: str, tree: ast.Module) -> Source | None:
    """What a file calls by a name, through as many files as hand it on."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name and node in tree.body:
            return node, tree
        if isinstance(node, ast.ImportFrom):
            for one in node.names:
                if (one.asname or one.name) == name:
                    return _found(str(node.module), one.name)
    return None


@functools.cache
def _tree(module: str) -> ast.Module | None:
    top, *parts = module.split(".")
    if top != __package__:
        return None
    place = Path(__file__).parent.joinpath(*parts)
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else None


def _fields(node: ast.ClassDef, tree: ast.Module) -> dict[str, Any]:
    """What makes an object: its own __init__, its fields if it is a dataclass, or what its bases have of these."""
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            _, *names = own = _of_function(part, tree)
            return {name: own[name] for name in names}
    fields: dict[str, Any] = {}
    for base in reversed(node.bases):
        found = _named(base.id, tree) if isinstance(base, ast.Name) else None
        if found and isinstance(found[0], ast.ClassDef):
            fields |= _fields(found[0], found[1])
    if any("dataclass" in ast.unparse(one) for one in node.decorator_list):
        for part in node.body:
            if isinstance(part, ast.AnnAssign) and "ClassVar" not in ast.unparse(part.annotation):
                fields[ast.unparse(part.target)] = _evaluated(part.annotation, tree)
    return fields


def _of_function(node: ast.FunctionDef, tree: ast.Module) -> dict[str, Any]:
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return {one.arg: _evaluated(one.annotation, tree) for one in given}


def _evaluated(annotation: ast.expr | None, tree: ast.Module) -> Any:
    """An annotation, in which there may be names that its file gives to others; None if it has unknown ones."""
    if annotation is None:
        return None
    used = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)} - KNOWN.keys()
    own = {
        target.id: _evaluated(node.value, ast.Module([], []))
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in used
    }
    if any(own.get(name) is None for name in used):
        return None
    return eval(compile(ast.Expression(annotation), "annotation", "eval"), {**KNOWN, **own})
