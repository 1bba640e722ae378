"""What one simulation has come to, as it is shown."""

from __future__ import annotations

from typing import Any

from lifl.core.config.job import JobConfig


class Simulation:
    """One config's training: what was told of it."""

    def __init__(self, file: str, config: JobConfig) -> None:
        self.file = file
        self.config = config
        self.rounds: list[dict[str, Any]] = []
        self.failures = 0
        self.status = ""
        self.reason = ""
        self.took_s = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return it as it is printed with --json."""
        rounds = [
            {name: each[name] for name in ("round", "counted", "metrics", "receipt", "evaluation") if name in each}
            for each in self.rounds
        ]
        told = {"config": self.file, "job": self.config.job.name, "status": self.status, "reason": self.reason}
        return told | {"took_s": self.took_s, "trainers_failed": self.failures, "rounds": rounds}
