"""What is said on the terminal of an error, with the choices that Hydra leaves out."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from lowloss import files, group
from lowloss.conf import config_dirs, config_folder, group_options
from lowloss.errors import LowlossError, nearest


def tell(error: Exception) -> str:
    """Print an error: one line if a user can mend it, else with its traceback, since it is ours to mend. Returns it."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, group.ToldError):
        return ""
    if isinstance(error, (LowlossError, OSError, MemoryError, HydraException, OmegaConfBaseException)):
        told = f"lowloss: {' '.join(explain(error).split())}\n"
    else:
        told = "".join(traceback.format_exception(error))
        if group.TRACE in os.environ and (group.place() or (0,))[0] == 0:
            Path(os.environ[group.TRACE]).write_text(told, encoding="utf-8")
            return told
    sys.stderr.write(told)
    return told


def explain(error: BaseException) -> str:
    """The message, with the valid choices where Hydra leaves them out."""
    from hydra.errors import MissingConfigException
    from omegaconf.errors import MissingMandatoryValue

    text = str(error)
    if isinstance(error, MemoryError):
        return f"there is not enough memory for this ({text or 'no reason given'}): make it smaller"
    if isinstance(error, OSError) and error.errno in files.REMEDIES:
        return f"{text}: {files.REMEDIES[error.errno]}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} must be set: {error.full_key}=VALUE"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        folder, _, name = error.missing_cfg_file.removesuffix(".yaml").rpartition("/")
        # Hydra does not tell them where a list names several.
        options = error.options or group_options(folder)
        key = f"{folder}/{name}" if folder else name
        return f"there is no {key}{nearest(name, options)}; {folder or 'there'} can be {', '.join(options)}"
    for cause in causes_of(error):
        if "Cannot merge" in str(cause) and (key := getattr(cause, "full_key", "")):  # a list and a group
            return f"{key} must be {'a list' if getattr(cause, 'object_type', None) is list else 'a group'}: {text}"
        parent = getattr(cause, "parent_node", None)
        if parent is not None and hasattr(parent, "keys"):
            keys = [str(key) for key in parent]
            if "study" in keys:  # at the top, where groups stand as well, some of which leave no key
                groups = {f.parent.name for d in (config_folder(), *config_dirs()) for f in d.glob("*/*.yaml")}
                keys += sorted(groups - {*keys})
            near = nearest(str(getattr(cause, "key", "")), keys)
            return f"{text.splitlines()[0].rstrip('.')}{near} (the keys there are {', '.join(keys)})"
    return text


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, the outermost first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
