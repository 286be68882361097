"""What finished runs left behind, read without torch."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        run_dir: its folder.
        overrides: what it was given, e.g. ``("model=lstm", "seed=1")``.
        results: its ``results.json``; None if it did not finish.
    """

    run_dir: Path
    overrides: tuple[str, ...]
    results: dict[str, Any] | None


def sweep_jobs(sweep_dir: Path) -> Iterator[Job]:
    """The jobs of a Hydra multirun, in their order."""
    numbered = (path for path in sweep_dir.iterdir() if path.is_dir() and path.name.isdecimal())
    for run_dir in sorted(numbered, key=lambda path: int(path.name)):
        overrides = run_dir / ".hydra/overrides.yaml"
        results = run_dir / "results.json"
        yield Job(
            run_dir,
            tuple(str(item) for item in OmegaConf.load(overrides)) if overrides.is_file() else (),
            json.loads(results.read_text("utf-8")) if results.is_file() else None,
        )
