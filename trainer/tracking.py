"""Where metrics go: always `metrics.jsonl` in the run's log folder; wandb and tensorboard are sinks that may be off."""

import json
import platform
import re
import sys
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trainer import config as config_module
from trainer.config.schema import Config
from trainer.files import read_jsonl, write_jsonl, write_text

PACKAGES = ("torch", "transformers", "tokenizers", "ray", "vllm", "numpy", "scipy", "pyarrow", "hydra-core", "wandb")


class Sink(ABC):
    """Takes the metrics of a step."""

    @abstractmethod
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """File the metrics of a step."""

    def close(self) -> None:
        """Flush what is open."""


class JsonLines(Sink):
    """`metrics.jsonl`: one object per line with `step` and the metrics; a step may have several lines."""

    def __init__(self, path: Path, *, resume_step: int | None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume_step is not None and path.is_file():  # steps after the checkpoint are trained and logged again
            write_jsonl(path, [row for row in read_jsonl(path) if row["step"] <= resume_step])
        self.file = path.open("a", encoding="utf-8")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.file.write(json.dumps({"step": step, **metrics}) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class Wandb(Sink):
    """Weights & Biases; WANDB_MODE=offline writes under wandb/ and needs no account.

    A run that goes on goes on there too: its id lies in LOG_DIR/wandb_id.
    """

    def __init__(self, config: Config, *, resume_step: int | None) -> None:
        import wandb

        trainer, file = config.trainer, Path(config.trainer.log_dir) / "wandb_id"
        if resume_step is None or not file.is_file():
            name = re.sub(r"[^\w.-]", "-", f"{trainer.project_name}-{trainer.experiment_name}")
            write_text(file, f"{name}-{uuid.uuid4().hex[:8]}")
        self.run = wandb.init(
            project=trainer.project_name,
            name=trainer.experiment_name,
            id=file.read_text(),
            resume="allow",
            config=config_module.flat(config),
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log(dict(metrics), step=step)

    def close(self) -> None:
        self.run.finish()


class Tensorboard(Sink):
    """Event files under LOG_DIR/tensorboard."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class Tracker:
    """All sinks of a run. Also writes the resolved configuration and the versions into the log folder."""

    def __init__(self, config: Config, *, resume_step: int | None) -> None:
        folder = Path(config.trainer.log_dir)
        what = ".validation" if config.trainer.val_only else ""  # beside those of the run that trained
        write_text(folder / f"config{what}.yaml", config_module.to_yaml(config))
        write_text(folder / f"versions{what}.json", json.dumps(versions(), indent=1))
        self.sinks: list[Sink] = [JsonLines(folder / "metrics.jsonl", resume_step=resume_step)]
        if "wandb" in config.trainer.logger:
            self.sinks.append(Wandb(config, resume_step=resume_step))
        if "tensorboard" in config.trainer.logger:
            self.sinks.append(Tensorboard(folder))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """File the metrics of a step with every sink."""
        for sink in self.sinks:
            sink.log(metrics, step)

    def close(self) -> None:
        """Close every sink."""
        for sink in self.sinks:
            sink.close()


def versions() -> dict[str, Any]:
    """Return the versions a run depends on."""
    found: dict[str, Any] = {"python": sys.version.split()[0], "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
