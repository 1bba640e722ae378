"""Another minor release of LIFL for tests: a build of this tree whose release number, and nothing else, is another.

So each of its processes says the versions of that release in its first frames.  A build for an upgrade (`state_format`)
has a newer state folder as well.  There is no earlier release that this one works with: 0.1 is the first.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from lifl.core.formats import RELEASE, STATE_FORMAT
from lifl.core.protocol.versions import MINOR

ROOT = Path(__file__).parents[1]
PACKAGES = {"lifl": "src/lifl", "lifl_cli": "cli/lifl_cli", "lifl_bpf": "bpf"}


def release(later: int) -> str:
    """The release that is so many minor releases later."""
    return f"0.{MINOR + later}.0"


def written_by(lines: Sequence[dict[str, Any]]) -> list[str]:
    """The releases whose workers wrote the models of rounds, as `lifl status` tells of these."""
    found = []
    for line in lines:
        with safe_open(line["path"], "np") as file:
            found.append(file.metadata()["lifl.release"])
    return found


def build(folder: Path, later: int, state_format: int = STATE_FORMAT) -> Path:
    """The packages of a later release, in a new folder, which is to come first in PYTHONPATH."""
    for name, source in PACKAGES.items():
        shutil.copytree(ROOT / source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "lifl" / "core" / "formats.py"
    text = path.read_text()
    for name, old, new in (
        ("RELEASE", f'"{RELEASE}"', f'"{release(later)}"'),
        ("STATE_FORMAT", *_numbers(state_format)),
    ):
        text, count = re.subn(rf"^{name} = {re.escape(old)}$", f"{name} = {new}", text, flags=re.MULTILINE)
        assert count == 1, name
    path.write_text(text)
    return folder


def _numbers(state_format: int) -> tuple[str, str]:
    return str(STATE_FORMAT), str(state_format)
