"""What `pip install` takes along: an editable installation finds every package, a wheel those that setup.cfg lists."""

from __future__ import annotations

import configparser
from pathlib import Path

ROOT = Path(__file__).parents[2]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def packages() -> set[str]:
    """The packages that there are, by their folders."""
    roots = dict(line.split(" = ") for line in SETUP["options"]["package_dir"].split("\n") if line)
    found = set()
    for name, folder in roots.items():
        top = ROOT / folder
        for init in top.rglob("__init__.py"):
            found.add(".".join((name, *init.parent.relative_to(top).parts)))
    return found


def test_a_wheel_has_all_packages() -> None:
    listed = SETUP["options"]["packages"].split()
    assert sorted(listed) == sorted(packages())
