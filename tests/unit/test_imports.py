"""The layers and their circles, what `core` may not touch, and that `lifl --help` loads next to nothing.

Imports are read from the source, so those within functions count as well; for circles and for the order of core's
packages those under TYPE_CHECKING count, too, since they tie readers.  The command line is the one
exception: it starts the daemon, checks rules and tries the redirector, so it may import those layers, but
only within functions.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = {
    "core": set(),
    "failpoints": {"core"},
    "tls": {"core"},
    "shm": {"core", "failpoints"},
    "confine": {"core"},
    "redirect": {"core"},
    "rules": {"core"},
    "worker": {"core", "confine", "failpoints", "shm", "redirect", "rules"},
    "node": {"core", "confine", "failpoints", "tls", "shm", "redirect", "rules"},
    "client": {"core", "tls"},
    "trees": {"core", "client"},
    "aggregator": {"core", "client", "rules"},
    "integrations": {"core", "client", "aggregator"},
    "simulation": {"core", "client"},
    "verification": {"core", "shm", "rules", "worker"},
    "examples": {"core", "client"},
    "cli": {"core", "client"},
}
CLI_WITHIN_FUNCTIONS = {
    "aggregator",
    "confine",
    "examples",
    "node",
    "redirect",
    "rules",
    "shm",
    "simulation",
    "tls",
    "verification",
}
CORE_FORBIDDEN = {"asyncio", "socket", "os", "time", "secrets", "select", "subprocess", "threading", "signal", "numpy"}
CLIENT_MAY = ("lifl.shm.mapping.", "lifl.shm.ingest_check.")
"""A client of the same machine maps the arena, and looks at what it writes there, as everybody else does."""
NODE_MAY = ("lifl.examples.make_model",)
"""A job that comes from a page may start from an example's model."""
HEAVY = {"numpy", "rich", "psutil", "msgpack", "msgspec", "safetensors", "uvloop", "asyncio", "posix_ipc"}


def modules() -> list[tuple[str, Path]]:
    """Every module of ours with its layer."""
    found = [(path.relative_to(ROOT / "src/lifl").parts[0], path) for path in (ROOT / "src/lifl").rglob("*/*.py")]
    found += [(name, ROOT / f"src/lifl/{name}.py") for name in ("failpoints", "trees")]
    return found + [("cli", path) for path in (ROOT / "cli/lifl_cli").rglob("*.py")]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> tuple[tuple[str, bool], ...]:
    """The dotted names that a file imports, each with whether that is within a function; typing-only ones left out."""
    return tuple(_imports(tree(path), path, inside=False))


def _imports(node: ast.AST, path: Path, inside: bool) -> Iterator[tuple[str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{path}: relative import; write it out"
            assert child.module is not None
            yield from ((f"{child.module}.{alias.name}", inside) for alias in child.names)
        elif isinstance(child, ast.Import):
            yield from ((alias.name, inside) for alias in child.names)
        elif not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from _imports(child, path, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def layer_of(name: str) -> str | None:
    """Our layer that a dotted name belongs to, if it is ours at all."""
    parts = name.split(".")
    if parts[0] == "lifl_cli":
        return "cli"
    if parts[0] != "lifl":
        return None
    # `from lifl import Client` is the client's public name.
    return {"Client": "client", "Aggregator": "aggregator", "take_part": "aggregator"}.get(parts[1], parts[1])


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
        if layer == "node" and inside and name in NODE_MAY:
            continue
        assert other in allowed, f"{path.relative_to(ROOT)} ({layer}) imports {name} ({other})"


@pytest.mark.parametrize("path", [path for layer, path in modules() if layer == "core"], ids=lambda path: path.name)
def test_core_is_pure(path: Path) -> None:
    taken = {name.split(".")[0] for name, _inside in imports(path)} & CORE_FORBIDDEN
    assert not taken, f"{path.relative_to(ROOT)} imports {', '.join(sorted(taken))}"


@pytest.mark.parametrize("path", [path for layer, path in modules() if layer == "core"], ids=lambda path: path.name)
def test_core_draws_only_from_a_seed(path: Path) -> None:
    nodes = list(ast.walk(tree(path)))
    calls = [each for each in nodes if isinstance(each, ast.Call)]
    seeded = {id(call.func) for call in calls if call.args or call.keywords}
    for node in nodes:
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


def test_cryptography_is_imported_within_functions() -> None:
    """It takes a tenth of a second, which no start has to wait for that makes no certificate."""
    found = [(path.name, name) for _layer, path in modules() for name, inside in imports(path) if not inside]
    assert [each for each in found if each[1].split(".")[0] == "cryptography"] == []


def test_the_daemon_does_not_load_numpy() -> None:
    code = "import sys, lifl.node.daemon\nassert 'numpy' not in sys.modules, 'numpy'\nassert 'rich' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- circles, and the order of core's packages -----------------------------------------------------------------------

FOLDERS = {"lifl": ROOT / "src/lifl", "lifl_cli": ROOT / "cli/lifl_cli", "lifl_bpf": ROOT / "bpf"}
GROUND = ("errors", "refusal_codes", "ids", "limits", "schema", "fields", "identity", "modelfile", "audit", "formats")
CORE_ORDER = (
    {f"lifl.core.{name}" for name in GROUND},
    {"lifl.core.trust"},
    {"lifl.core.config"},
    {"lifl.core.planning"},
    {"lifl.core.protocol"},
    {"lifl.core.effects", "lifl.core.events", "lifl.core.object_store", "lifl.core.snapshot"},
    {"lifl.core.turn", "lifl.core.event_log"},
    {"lifl.core.agent", "lifl.core.coordinator"},
    {"lifl.core.broken_jobs"},
    {"lifl.core.engine"},
)
"""Each may import what stands before it, and within its own package; within one step, packages not each other."""


def names() -> dict[str, Path]:
    """Every module by its dotted name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: Collection[str]) -> set[str]:
    """The modules of ours that a file imports anywhere, also for typing only."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            wanted = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            wanted = [(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for module, name in wanted:
            found |= {f"{module}.{name}"} & set(known) or {module} & set(known)
    return found


def graph() -> dict[str, set[str]]:
    """What each module imports of ours."""
    known = names()
    return {name: imported(path, known) - {name} for name, path in known.items()}


def step_of(name: str) -> int | None:
    """The place of a module of core in `CORE_ORDER`."""
    return next((i for i, step in enumerate(CORE_ORDER) if any(f"{name}.".startswith(f"{p}.") for p in step)), None)


def height(name: str) -> tuple[int, int]:
    """How far up a module stands: an import from a lower one to a higher one points the wrong way."""
    return [*LAYERS, None].index(layer_of(f"{name}.")), step_of(name) or 0


def shortest_circle(edges: Mapping[str, Collection[str]]) -> list[str]:
    """The modules of the shortest circle of imports, each importing the next one and the last the first; or none."""
    best: list[str] = []
    for start in sorted(edges):
        before: dict[str, str] = {}
        waiting = deque([start])
        while waiting and start not in before:
            here = waiting.popleft()
            for after in sorted(edges[here]):
                if after not in before:
                    before[after] = here
                    waiting.append(after)
        if start in before:
            circle = [before[start]]
            while circle[0] != start:
                circle.insert(0, before[circle[0]])
            best = circle if not best or len(circle) < len(best) else best
    return best


def where_to_cut(circle: list[str]) -> tuple[str, str]:
    """The import of a circle that points up the layers; where none does, the one that takes the fewest names."""
    known = names()
    pairs = list(zip(circle, [*circle[1:], circle[0]], strict=True))

    def taken(pair: tuple[str, str]) -> int:
        froms = [node for node in ast.walk(tree(known[pair[0]])) if isinstance(node, ast.ImportFrom)]
        return sum(len(node.names) for node in froms if node.module == pair[1]) or 1

    return min(pairs, key=lambda pair: (height(pair[1]) <= height(pair[0]), taken(pair)))


def test_no_circle_of_imports() -> None:
    known = names()
    circle = shortest_circle(graph())
    if circle:
        source, target = (known[name].relative_to(ROOT) for name in where_to_cut(circle))
        around = " -> ".join([*circle, circle[0]])
        pytest.fail(f"{around}: cut it between {source} and {target}; the first need not import the second")


def test_a_circle_is_found_and_told_where_to_cut() -> None:
    edges = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"b"}, "e": {"a"}}
    assert shortest_circle(edges) == ["b", "d"]
    assert shortest_circle({"a": {"b"}, "b": set()}) == []
    up = ["lifl.core.ids", "lifl.core.protocol.frames"]
    assert where_to_cut(up) == tuple(up)
    assert where_to_cut(["lifl.node.link", "lifl.core.errors"]) == ("lifl.core.errors", "lifl.node.link")


CORE = sorted(name for name in names() if name.startswith("lifl.core."))


@pytest.mark.parametrize("name", [name for name in CORE if step_of(name) is not None])
def test_the_packages_of_core_import_only_what_stands_before_them(name: str) -> None:
    here = step_of(name)
    assert here is not None
    package = ".".join(name.split(".")[:3])
    for other in sorted(imported(names()[name], CORE)):
        there = step_of(other)
        assert there is not None, f"{other} has no place in CORE_ORDER"
        within = here == 0 or f"{other}.".startswith(f"{package}.")
        assert there < here or (there == here and within), f"{name} imports {other}, which stands after or beside it"


def test_every_module_of_core_has_its_place() -> None:
    packages = {"lifl.core.__init__"}
    assert [name for name in CORE if step_of(name) is None and name not in packages] == []


def test_a_typed_dict_that_extends_another_stands_beside_it() -> None:
    """From Python 3.14 on the types of both are looked up in the module of the one that extends."""
    classes = {
        (path, node.name): {base.id for base in node.bases if isinstance(base, ast.Name)}
        for _layer, path in modules()
        for node in tree(path).body
        if isinstance(node, ast.ClassDef)
    }
    typed = {name: path for (path, name), bases in classes.items() if "TypedDict" in bases}
    assert "TreeLine" in typed
    assert not [name for (path, name), bases in classes.items() for base in bases & typed.keys() if typed[base] != path]
