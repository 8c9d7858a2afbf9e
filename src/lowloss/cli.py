"""The command line; the only module that knows Hydra."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

from lowloss.errors import LowlossError


def config_folder() -> Path:
    """conf/ of the checkout, or its copy inside an installed package."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


def run_config(config: Any) -> None:
    """Run the stages of a composed configuration; called by Hydra once a job."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from lowloss import progress
    from lowloss.runs import Study
    from lowloss.stages import Run, run_stages

    progress.shown = True
    hydra = HydraConfig.get()
    plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    root = Path(plain["outputs"]) / str(plain["study"])
    if hydra.mode == RunMode.MULTIRUN:
        # Each job of a sweep is a study of its own.
        root = root / (hydra.job.override_dirname or str(hydra.job.num))
    if plain["trainer"]["devices"] not in (1, "1", [0]):
        raise LowlossError(f"trainer.devices={plain['trainer']['devices']} is not supported yet: set it to 1")
    overrides = [o for o in hydra.overrides.task if not o.startswith("stages=")]
    run = Run(Study(root), plain, _Builder(plain), shlex.join(["lowloss", *overrides]))
    progress.say(f"study: {root}")
    run_stages(run)


class _Builder:
    """Builds the object of a configuration node, named by its key so that messages can name it too."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def __call__(self, key: str, partial: bool = False) -> Any:
        from hydra.errors import InstantiationException
        from hydra.utils import instantiate

        node: Any = self.config
        for part in key.split("."):
            node = node[part]
        try:
            return instantiate(node, _partial_=partial, _convert_="all")
        except InstantiationException as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise LowlossError(f"{key}: {cause}") from error


def main() -> None:
    """Entry point: run the command line, and turn errors that a user can mend into one line and status 1."""
    # Hydra would print its own errors over several lines; raised, they are formatted below.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    app = hydra.main(config_path=str(config_folder()), config_name="config", version_base="1.3")(run_config)
    try:
        app()
    except (LowlossError, HydraException, OmegaConfBaseException) as error:
        print(f"lowloss: {_one_line(error)}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"lowloss: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("lowloss: interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
