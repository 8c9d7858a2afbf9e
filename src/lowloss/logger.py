"""Weights & Biases: one run for each stage of a study, with its curves, figures, tables and results."""

from __future__ import annotations

import hashlib
import netrc
import os
import re
import shlex
import socket
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from lightning.pytorch.loggers.logger import Logger

from lowloss import claims, files, progress
from lowloss.errors import LowlossError
from lowloss.study import MACHINE, Config, Study

if TYPE_CHECKING:
    import wandb


class Wandb(Logger):
    """Logs each stage of a study that has something to do as a W&B run of its own.

    Losses and learning rates come by step, as `path/bezier/0-1/loss`; at the end of a stage the means of its results
    are the run's summary, as `path/bezier/saddle_train_loss`, its results become an artifact that names the artifacts
    it was made from, and the report's figures and tables are logged. A stage that is continued goes on in the same W&B
    run, since the run's id follows from a word kept in the study's folder and from the configuration.

    Without a key, or where the server does not answer within `patience` seconds, runs are kept offline in
    `save_dir`, for `wandb sync`. WANDB_MODE in the environment has the last word.

    Args:
        project, entity: of W&B; the entity is the key's own by default.
        group: by default the sweep, or the study outside of one.
        tags: beside the finders.
        save_dir: the folder for W&B's files.
        patience: seconds.
    """

    _stage: str
    _config: Config

    def __init__(
        self,
        project: str = "lowloss", entity: str | None = None, group: str | None = None, tags: list[str] | None = None,
        save_dir: str = ".", patience: float = 5.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.project, self.entity, self.group, self.tags = project, entity, group, tags or []
        self.folder, self.patience = Path(save_dir), patience
        self._run: wandb.Run | None = None
        self._told = False
        """Whether it was told that runs are kept offline."""
        self.begin("", None, [], Study(Path()), {})

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str:
        """The id of the current stage's run."""
        # A configuration is part of it for a study that is made anew, with other settings, in the same folder.
        settings = {key: self._config[key] for key in ("seed", "model", "data", "optimizer")}
        settings["data"] = {key: value for key, value in settings["data"].items() if key not in MACHINE}
        text = repr((self._study_word(), self._stage, settings))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def experiment(self) -> wandb.Run:
        """The W&B run of the current stage, begun on first use."""
        if self._run is None:
            import wandb

            study = str(self._config["study"])
            self.folder.mkdir(parents=True, exist_ok=True)
            settings: Any = {
                "project": self.project, "entity": self.entity, "group": self.group or study.partition("/")[0],
                "job_type": self._stage, "name": f"{study.rpartition('/')[2]} {self._stage}",
                "tags": [*self.tags, *self._config["finder"]], "config": self._config, "dir": self.folder,
                # An agent of a W&B sweep waits for the run that it names itself.
                "id": None if "WANDB_SWEEP_ID" in os.environ else self.version, "resume": "allow",
                "settings": wandb.Settings(silent=True, init_timeout=30),
            }  # fmt: skip
            mode, why = self._mode()
            try:
                self._run = wandb.init(**settings, mode=mode)
            except wandb.errors.CommError as error:
                why = f" ({error})"
                self._run = wandb.init(**settings, mode="offline")
            except ValueError as error:
                self._stage = ""  # there is no run to end
                what = " ".join(str(error).split())
                raise LowlossError(f"wandb refuses its settings: {what}: mend logger.… or WANDB_…") from error
            if self._run.offline and not self._told:
                self._told, runs = True, shlex.quote(str(self.folder / "wandb"))
                progress.say(f"wandb: offline{why}; send later with `wandb sync {runs}/offline-run-*`")
            self._run.define_metric("*", step_metric="step")
        return self._run

    def begin(self, stage: str, kind: str | None, sources: list[str], study: Study, config: Config) -> None:
        """From now on, what is logged belongs to this stage.

        Args:
            kind: of the stage's artifacts, if it has any.
            sources: the stages whose artifacts it starts from.
        """
        self._stage, self._kind, self._sources, self._study, self._config = stage, kind, sources, study, config

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.experiment.log({**metrics, "step": step})

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The configuration is logged whole, when a run begins."""

    def log_report(self) -> None:
        """Log the report's figures and tables."""
        import pandas as pd
        import wandb

        root = self._study.root
        pictures = sorted((root / "report" / "figures").glob("*.png"))
        found: dict[str, Any] = {picture.stem: wandb.Image(str(picture)) for picture in pictures}
        for table in (root / "report" / "table_b1.csv", root / "summary.csv", root / "ensemble.csv"):
            frame = pd.read_csv(table) if table.exists() else pd.DataFrame()
            if len(frame):
                found[table.stem] = wandb.Table(dataframe=frame)
        for path in self._study.complete("paths"):
            found[f"along/{path.name}"] = wandb.Table(dataframe=pd.read_csv(path.folder / "along.csv"))
        self.experiment.log(found)

    def log_summary(self, numbers: dict[str, float]) -> None:
        """Log what runs are sorted by."""
        self.experiment.summary.update(numbers)

    def log_objective(self, value: float) -> None:
        self.experiment.summary["objective"] = value

    def end(self, status: int = 0) -> None:
        """End the run of the stage that has begun; after success with the stage's results as an artifact."""
        if not self._stage:
            return
        run = self.experiment
        if status == 0 and self._kind is not None:
            self._log_artifact(run, self._kind)
        run.finish(exit_code=status)
        self._run, self._stage = None, ""

    def _study_word(self) -> str:
        """A word that no other study has: neither its name nor its folder's path is its own on all machines."""
        file = self._study.root / ".wandb-study"
        if not file.exists():
            with claims.wait_for(self._study.root / ".wandb-study.claim"):
                if not file.exists():
                    files.write_text(file, uuid.uuid4().hex)
        return file.read_text(encoding="utf-8")

    def _log_artifact(self, run: wandb.Run, kind: str) -> None:
        import wandb

        sources = [self._artifact_name(stage) for stage in self._sources]
        artifact = wandb.Artifact(self._artifact_name(self._stage), type=self._stage, metadata={"made_from": sources})
        for result in self._study.complete(kind):
            for file in sorted(path for path in result.folder.rglob("*") if path.is_file()):
                artifact.add_file(str(file), name=str(file.relative_to(result.folder.parent)))
        # W&B draws the lineage from what a run used; offline it takes no note, and the metadata have to do.
        if not run.offline:
            for name in sources:
                run.use_artifact(f"{name}:latest")
        run.log_artifact(artifact)

    def _artifact_name(self, stage: str) -> str:
        return re.sub(r"[^\w.-]", "-", f"{self._config['study']}-{stage}")

    def _mode(self) -> tuple[Any, str]:
        """The mode, None to leave it to the environment, and why it is offline."""
        if "WANDB_MODE" in os.environ:
            return None, ""
        server = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
        try:
            if not (os.environ.get("WANDB_API_KEY") or netrc.netrc().authenticators(server.hostname or "")):
                return "offline", ", since there is no key"
        except (OSError, netrc.NetrcParseError):
            return "offline", ", since there is no key"
        try:
            port = server.port or {"http": 80}.get(server.scheme, 443)
            socket.create_connection((server.hostname, port), timeout=self.patience).close()
        except (OSError, ValueError) as error:
            return "offline", f", since {server.hostname} does not answer ({error})"
        return "online", ""
