"""The layers: who may import whom, what `core` may not touch, and that `lifl --help` loads next to nothing.

Imports are read from the source, so those within functions count as well.  The command line is the one
exception: it starts the daemon, checks rules and tries the redirector, so it may import those layers, but
only within functions.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = {
    "core": set(),
    "failpoints": {"core"},
    "shm": {"core"},
    "redirect": {"core"},
    "rules": {"core"},
    "worker": {"core", "failpoints", "shm", "redirect", "rules"},
    "node": {"core", "failpoints", "shm", "redirect", "rules"},
    "client": {"core"},
    "examples": {"core", "client"},
    "cli": {"core", "client"},
}
CLI_WITHIN_FUNCTIONS = {"node", "rules", "redirect", "examples", "shm"}
CORE_FORBIDDEN = {"asyncio", "socket", "os", "time", "secrets", "select", "subprocess", "threading", "signal", "numpy"}
CLIENT_MAY = "lifl.shm.mapping."
"""A client of the same machine maps the arena as everybody else does."""
HEAVY = {"numpy", "rich", "psutil", "msgpack", "msgspec", "safetensors", "uvloop", "asyncio", "posix_ipc"}


def modules() -> list[tuple[str, Path]]:
    """Every module of ours with its layer."""
    found = [(path.relative_to(ROOT / "src/lifl").parts[0], path) for path in (ROOT / "src/lifl").rglob("*/*.py")]
    found.append(("failpoints", ROOT / "src/lifl/failpoints.py"))
    return found + [("cli", path) for path in (ROOT / "cli/lifl_cli").rglob("*.py")]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """The dotted names that a file imports, each with whether that is within a function; typing-only ones left out."""
    tree = ast.parse(path.read_text())
    for parent in ast.walk(tree):
        for child in ast.iter_child_nodes(parent):
            child.parent = parent  # type: ignore[attr-defined]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        above = node
        inside = False
        while (above := getattr(above, "parent", None)) is not None:
            inside |= isinstance(above, ast.FunctionDef | ast.AsyncFunctionDef)
            if isinstance(above, ast.If) and ast.unparse(above.test) == "TYPE_CHECKING":
                break
        else:
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import; write it out"
                assert node.module is not None
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                names = [alias.name for alias in node.names]
            yield from ((name, inside) for name in names)


def layer_of(name: str) -> str | None:
    """Our layer that a dotted name belongs to, if it is ours at all."""
    parts = name.split(".")
    if parts[0] == "lifl_cli":
        return "cli"
    if parts[0] != "lifl":
        return None
    # `from lifl import Client` is the client's public name.
    return "client" if parts[1:] == ["Client"] else parts[1]


def test_the_walk_sees_the_modules() -> None:
    assert {layer for layer, _path in modules()} == set(LAYERS)


@pytest.mark.parametrize(("layer", "path"), modules(), ids=lambda value: getattr(value, "name", value))
def test_imports_point_one_way(layer: str, path: Path) -> None:
    for name, inside in imports(path):
        other = layer_of(name)
        allowed = LAYERS[layer] | {layer, None}
        if layer == "cli" and inside:
            allowed |= CLI_WITHIN_FUNCTIONS
        if layer == "client" and name.startswith(CLIENT_MAY):
            continue
        assert other in allowed, f"{path.relative_to(ROOT)} ({layer}) imports {name} ({other})"


@pytest.mark.parametrize("path", [path for layer, path in modules() if layer == "core"], ids=lambda path: path.name)
def test_core_is_pure(path: Path) -> None:
    taken = {name.split(".")[0] for name, _inside in imports(path)} & CORE_FORBIDDEN
    assert not taken, f"{path.relative_to(ROOT)} imports {', '.join(sorted(taken))}"


@pytest.mark.parametrize("path", [path for layer, path in modules() if layer == "core"], ids=lambda path: path.name)
def test_core_draws_only_from_a_seed(path: Path) -> None:
    tree = ast.parse(path.read_text())
    seeded = {id(call.func) for call in ast.walk(tree) if isinstance(call, ast.Call) and (call.args or call.keywords)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random":
            assert node.attr == "Random", f"{path.name}:{node.lineno}: random.{node.attr} has a hidden, global seed"
            assert id(node) in seeded, f"{path.name}:{node.lineno}: random.Random without a seed"
    assert not [name for name, _inside in imports(path) if name.startswith("random.")]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["no-such-command"]])
def test_the_front_page_of_the_cli_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom lifl_cli.main import main\n"
        f"sys.argv = ['lifl', *{arguments}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('LOADED', *{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split()[1:])
    assert "click" in loaded
    assert not loaded & HEAVY


def test_the_daemon_does_not_load_numpy() -> None:
    code = "import sys, lifl.node.daemon\nassert 'numpy' not in sys.modules, 'numpy'\nassert 'rich' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
