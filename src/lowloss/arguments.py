"""The command line as people write it, for Hydra's grammar: flags anywhere, and values that are paths."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from lowloss.errors import LowlossError, nearest

FLAGS = [
    *("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p", "--run", "-r"),
    *("--multirun", "-m", "--shell-completion", "-sc", "--config-path", "-cp", "--config-name", "-cn", "--config-dir"),
    *("-cd", "--experimental-rerun", "--info", "-i", "--dry-run"),
]
"""Hydra's and ours."""
WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")
"""Flags of Hydra that take the next word."""


def quoted(text: Any) -> str:
    """A text as Hydra's grammar reads it back, whatever is in it."""
    plain = re.fullmatch(r"[\w./-]+", str(text))
    return str(text) if plain else "'" + str(text).replace("\\", "\\\\").replace("'", "\\'") + "'"


def normalised(arguments: Sequence[str], parses: Callable[[str], bool]) -> list[str]:
    """The same command line with its flags first, ~ expanded, and values quoted that Hydra would not read.

    Lists and dictionaries are left as they are: where one does not parse, a bracket is missing.

    Args:
        parses: whether Hydra's grammar takes an override.

    Raises LowlossError for a flag that there is not, and for an empty or blank word.
    """
    flags: list[str] = []
    overrides: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        if word in WITH_VALUE and words:
            flags += [word, words.pop(0)]
        elif re.match(r"--?[a-z]", word):
            name, _, value = word.partition("=")
            if name not in FLAGS and not re.fullmatch(r"-[a-z]\w", name):  # short ones may stand together
                shown = [flag for flag in FLAGS if flag.startswith("--")]
                # What has a value may be a setting as other programs have it.
                value = value or next((other for other in words[:1] if not re.match(r"-|.*=", other)), "")
                known = f": settings are KEY=VALUE, here {name.lstrip('-')}={value}" if value else nearest(name, shown)
                raise LowlossError(f"there is no {name}{known}; the flags are {', '.join(shown)}")
            flags.append(word)
        elif not word.strip():  # most often a variable of the shell that is not set
            raise LowlossError("an argument is empty or blank: settings are KEY=VALUE")
        else:
            overrides.append(_readable(word, parses))
    return [*flags, *overrides]


def _readable(word: str, parses: Callable[[str], bool]) -> str:
    key, equals, value = word.partition("=")
    if not equals or not re.fullmatch(r"[+~]*[\w./@:-]+", key):
        return word
    if home := re.fullmatch(r"(['\"]?)(~(?:/.*)?)\1", value):
        return f"{key}={quoted(os.path.expanduser(home[2]))}"
    if value.startswith(("[", "{", "'", '"')):
        return word
    if parses(word):
        return word
    again = f"{key}={quoted(value)}"
    return again if parses(again) else word
