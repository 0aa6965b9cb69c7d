"""What the options of `run` and `extract` ask for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from msm4sr.cluster import check_local_path
from msm4sr.errors import InputError

if TYPE_CHECKING:
    from msm4sr.experiments.run import Run
    from msm4sr.experiments.settings import RunSettings


@dataclass(frozen=True)
class Request:
    """The run that the options of `run` or `extract` ask for."""

    data: Path
    out: Path
    preset: str | None
    model: str | None
    file: Path | None
    changes: list[str]
    seed: int | None
    features: list[str]
    overwrite: bool
    strict: bool
    resume: bool = False
    warm_start: Path | None = None

    def __post_init__(self) -> None:
        check_local_path("DATA", self.data)
        check_local_path("--out", self.out)
        if self.warm_start is not None:
            check_local_path("--warm-start", self.warm_start)
        if self.warm_start is not None and self.preset is not None:
            raise InputError("--warm-start uses the settings of its run, so --preset cannot be given too; use --set")

    @cached_property
    def source(self) -> Run | None:
        """The run that a warm start continues."""
        from msm4sr.experiments.run import open_run

        return None if self.warm_start is None else open_run(self.warm_start)

    def settings(self) -> RunSettings:
        """The settings, resolved. Raises InputError."""
        from msm4sr.experiments.settings import resolve_settings, warm_start_settings

        changes = self.changes, self.seed, self.file
        if self.source is not None:
            return warm_start_settings(self.source.folder, self.source.settings, self.model, *changes)
        return resolve_settings(self.preset or "best", self.model or "msm4sr", *changes, data=self.data)

    def without_effect(self) -> list[str]:
        """The given options that the model does not use."""
        from msm4sr.models.registry import MODELS
        from msm4sr.training.stages import STAGES

        model = MODELS[self.settings().model.name]
        absent = tuple(f"{stage}." for stage in STAGES if stage not in model.tasks)
        unused = [f"--set {change}" for change in self.changes if change.startswith(absent)]
        embeddings = [f"--features {source}" for source in self.features if "=" in source]
        return unused + ([] if model.uses_features else embeddings)

    def options(self) -> list[str]:
        """The options that were given, for another command about the same run."""
        named = {"--preset": self.preset, "--model": self.model, "--settings": self.file, "--seed": self.seed}
        words = [word for name, value in named.items() if value is not None for word in (name, str(value))]
        words += [word for change in self.changes for word in ("--set", change)]
        words += [word for source in self.features for word in ("--features", source)]
        return words + ["--overwrite"] * self.overwrite + ["--strict"] * self.strict

    @property
    def resumes(self) -> bool:
        """Whether there is a run to resume."""
        return self.resume and (self.out / "config.yaml").exists()
