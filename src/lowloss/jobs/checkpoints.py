"""Minima from elsewhere: a user's own files, read as points of the landscape.

A file is a `state_dict` (.pt, .pth, .bin), a Lightning checkpoint (.ckpt), a safetensors file, a folder as Hugging Face
writes it, or the folder of a study's minimum. Nothing in it is run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowloss.errors import LowlossError, reason
from lowloss.imports import torch
from lowloss.jobs.base import Bench, Config, Job, Result
from lowloss.study import RESULT, check_config

if TYPE_CHECKING:
    from lowloss.landscape import NetworkLandscape

Tensors = Mapping[str, "torch.Tensor"]


PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "network.")
"""What wrappers put before the names of a module: DataParallel, Lightning, torch.compile and habit."""

NESTED = ("state_dict", "model_state_dict", "model_state", "model")
"""Under which keys a checkpoint holds the network's own tensors."""

WEIGHTS = ("model.safetensors", "pytorch_model.bin", RESULT)
"""The files of a Hugging Face folder, and of a study's minimum."""

SAME_MODEL = "set model and its options to those of that study"


class UnfitError(LowlossError):
    """A checkpoint is that of another network than the configured one."""


class Checkpoint(Job):
    """A network trained elsewhere, exactly evaluated here. Tensors: theta (P,)."""

    kind, stage = "minima", "minima"

    def __init__(self, bench: Bench, k: int) -> None:
        super().__init__(bench, f"{k:04d}")
        self.file = Path(bench.config["minima"]["files"][k])

    def own_settings(self) -> Config:
        digest = self.bench.digest(weights_file(self.file), "name your files in minima.files")
        described = self.bench.describes("seed", *self.bench.ground, "evaluation_batch")
        return {**described, "minima": {"files": {self.name: digest}}}

    def make(self, work: Path) -> Result:
        theta_P = read_point(self.file, self.bench.landscape)
        values, tensors = apart(self.bench.table(theta_P[None], self.file.name, work), 0)
        return Result({**tensors, "theta": theta_P}, {**values, "file": _called(self.file), "status": "checkpoint"})


def apart(table: Tensors, row: int) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """The numbers and the tensors of a row of a table."""
    values = {name: float(column[row]) for name, column in table.items() if column.dim() == 1}
    return values, {name: column[row] for name, column in table.items() if column.dim() > 1}


def check_files(bench: Bench) -> None:
    """Raise LowlossError unless minima.files names files that are there."""
    listed = bench.config["minima"]["files"]
    if not isinstance(listed, list) or not listed or not all(isinstance(file, str) for file in listed):
        raise LowlossError(f"minima.files must be a list of files like [a.pt,b.safetensors], got {listed!r}")
    names: dict[Path, str] = {}
    for file in listed:
        place = weights_file(Path(file)).resolve()
        if place in names:
            other = f", also as {names[place]}" if names[place] != file else ""
            raise LowlossError(f"minima.files names {file} twice{other}: name each file once")
        names[place] = file


def check_fit(bench: Bench) -> None:
    """Raise LowlossError unless every file fits the model, and each holds another network.

    A study's minimum has to be of the same model: networks may differ in what no parameter tells, as in shortcuts.
    """
    held: dict[bytes, Path] = {}
    for k in range(bench.count):
        file = Checkpoint(bench, k).file
        theta_P = read_point(file, bench.landscape)
        folder = weights_file(file).parent
        if weights_file(file).name == RESULT and (folder / "config.yaml").is_file():
            check_config(folder, bench.config, ["model"], SAME_MODEL)
        key = hashlib.sha256(theta_P.view(torch.uint8).numpy().tobytes()).digest()
        if key in held:
            raise LowlossError(f"{held[key]} and {file} of minima.files hold the same network: name one of them")
        held[key] = file


def _called(file: Path) -> str:
    """The name of a file; of a study's minimum, those of the study and of the minimum."""
    if weights_file(file).name != RESULT:
        return file.name
    return "/".join(weights_file(file).resolve().parts[-4:-1])


def read_point(file: Path, landscape: NetworkLandscape) -> torch.Tensor:
    """The point (P,) of a checkpoint.

    Raises LowlossError: it cannot be read, does not fit the layout, or has other frozen parameters or buffers.
    """
    state, layout = _read_state(file), landscape.layout
    if weights_file(file).name == RESULT and "theta" in state:
        if state["theta"].shape != (layout.dim,):
            counts = f"it has {state['theta'].numel()} parameters, and the model {layout.dim}"
            raise UnfitError(f"{file} does not fit the model: {counts}: {SAME_MODEL}")
        state = layout.views(state["theta"])
    return layout.flatten(_matched(state, landscape, file))


def weights_file(file: Path) -> Path:
    """The file with the tensors: itself, or that of such a folder. Raises LowlossError if there is none."""
    for name in WEIGHTS:
        if (file / name).is_file():
            return file / name
    if file.is_dir():
        names = f"{', '.join(WEIGHTS[:-1])} or {WEIGHTS[-1]}"
        raise LowlossError(f"{file} is a folder without {names}: name the file with the weights")
    if not file.is_file():
        raise LowlossError(f"{file} of minima.files does not exist: name files that are there")
    return file


def _read_state(file: Path) -> Tensors:
    """The named tensors of a checkpoint. Raises LowlossError if it cannot be read, or holds none."""
    file = weights_file(file)
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise LowlossError(f"{file} cannot be read as safetensors: {error}") from error
    remedy = "torch.save(model.state_dict(), FILE)"
    try:
        loaded: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a file that is none of its own
        told = f"{file} cannot be read with weights alone ({reason(error)}): save its state_dict, {remedy}"
        raise LowlossError(told) from error
    for key in NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    state = {str(name): t for name, t in loaded.items() if torch.is_tensor(t)} if isinstance(loaded, Mapping) else {}
    if not state:
        raise LowlossError(f"{file} holds no named tensors: save a state_dict, {remedy}")
    return state


def _matched(state: Tensors, landscape: NetworkLandscape, file: Path) -> dict[str, torch.Tensor]:
    """The parameters of a layout from a checkpoint's tensors, in the layout's dtype; others are compared alone."""
    from lowloss.landscape.probe import check_fixed

    layout = landscape.layout
    named, remedy = _renamed(state, layout.names), "set model and its options to what the file was trained with"
    missing = [name for name in layout.names if name not in named]
    unfit = f"{file} does not fit the model"
    if missing:
        unknown = [name for name in named if name not in layout.names] or ["nothing else"]
        raise UnfitError(f"{unfit}: it lacks {_first(missing)}, and has {_first(unknown)}: {remedy}")
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        if named[name].shape != shape:
            shapes = f"{tuple(named[name].shape)} there and {tuple(shape)} in the model"
            raise UnfitError(f"{unfit}: {name} has the shape {shapes}: {remedy}")
        if not named[name].isfinite().all():
            raise LowlossError(f"{file} holds NaN or infinite values in {name}: name another checkpoint")
    check_fixed(landscape.loop, named, str(file))
    return {name: named[name].to(layout.dtype) for name in layout.names}


def _renamed(state: Tensors, names: Sequence[str]) -> Tensors:
    """The tensors by the model's names: prefixes are taken off, or put on, where that makes more of them fit."""
    tried = [dict(state)]
    for _ in range(2):  # module.model.conv1
        for tensors in list(tried):
            for prefix in PREFIXES:
                if any(name.startswith(prefix) for name in tensors):
                    tried.append({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    tried += [{f"{prefix}{name}": tensor for name, tensor in state.items()} for prefix in PREFIXES]
    return max(tried, key=lambda tensors: sum(name in tensors for name in names))


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more
