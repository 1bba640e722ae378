"""What a node takes of its machine: for the runs that look whether it grows."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil
from netns import Machine


def measured(machine: Machine) -> dict[str, float]:
    """What a node takes: all of its processes but the workers, which come and go."""
    lifld = psutil.Process(machine.pid)
    found = [lifld, *lifld.children()]
    names = []
    for file in (file for process in found for file in Path(f"/proc/{process.pid}/fd").iterdir()):
        with suppress(FileNotFoundError):  # it is closed by now
            names.append(file.readlink().name)
    memory = [process.memory_full_info() for process in found]
    return {
        "pss_bytes": sum(each.pss for each in memory),
        "private_bytes": sum(each.uss for each in memory),
        "descriptors": len(names),
        "processes": len(found),
        "bpf": sum("bpf" in name for name in names),
        "database_bytes": sum(file.stat().st_size for file in machine.state_dir.glob("*.db*")),
        "cpu_s": sum(process.cpu_times().user + process.cpu_times().system for process in found),
    }
