"""The documents for those who change the code say what is so: what they name exists, what they draw is what is held."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from test_imports import CORE_ORDER, LAYERS

from lifl.core.audit import EVENTS

ROOT = Path(__file__).parents[2]
ARCHITECTURE, CONTRIBUTING = ROOT / "docs/architecture.md", ROOT / "CONTRIBUTING.md"
NAMES = (
    "CHANGELOG.md",
    "README.md",
    "SECURITY.md",
    "docs/cluster.md",
    "docs/comparison.md",
    "docs/concepts.md",
    "docs/deploy.md",
    "docs/evaluation.md",
    "docs/failover.md",
    "docs/failures.md",
    "docs/flower.md",
    "docs/http.md",
    "docs/index.md",
    "docs/integrations.md",
    "docs/jax.md",
    "docs/log.md",
    "docs/nvflare.md",
    "docs/openfl.md",
    "docs/operating.md",
    "docs/metrics.md",
    "docs/json.md",
    "docs/paper.md",
    "docs/performance.md",
    "docs/proof.md",
    "docs/protocol.md",
    "docs/pytorch.md",
    "docs/security.md",
    "docs/simulate.md",
    "docs/start.md",
    "docs/trainers.md",
    "docs/web.md",
)
DOCUMENTS = [ARCHITECTURE, CONTRIBUTING, *(ROOT / name for name in NAMES)]
WORDS_MAX = 40
FILES_MAX = 4
"""Files of code that one kind of addition may touch."""
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#:]+)[^):]*\)")
FILE = re.compile(r"^[\w./-]+\.(py|toml|md|cfg|c|h)$")
FOLDERS = (ROOT, ROOT / "src/lifl", ROOT / "src/lifl/core", ROOT / "cli/lifl_cli")
MADE = {"mine.toml"}
"""Files that the README's reader makes."""


def found(name: str) -> Path | None:
    """The file that a document means by a name."""
    return next((folder / name for folder in FOLDERS if (folder / name).is_file()), None)


@cache
def defined(path: Path) -> frozenset[str]:
    """The functions, classes, methods and constants of a file, those of classes by `Class.name`."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            inside = [part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]
            names |= {f"{node.name}.{part.name}" for part in inside}
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(names)


def section(path: Path, title: str) -> str:
    """The text below a heading of the second level."""
    return path.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(text: str) -> Iterator[list[str]]:
    """The rows of the tables in a text, without their heads."""
    for line in re.sub(r"^\|.*\n\|[-| ]+\|$", "", text, flags=re.MULTILINE).splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


# ---- what is named exists ------------------------------------------------------------------------------------------


def spans() -> list[tuple[str, str]]:
    """What stands between backticks, in which document."""
    return sorted({(path.name, span) for path in DOCUMENTS for span in SPAN.findall(path.read_text())})


@pytest.mark.parametrize(("document", "span"), [pair for pair in spans() if "::" in pair[1].strip(":")])
def test_each_function_that_is_named_is_where_it_is_said_to_be(document: str, span: str) -> None:
    name, function = span.split("::")
    path = found(name)
    assert path is not None, f"{document} names {name}, which is not there"
    assert function in defined(path), f"{document} names {function}, which {name} does not have"


def test_each_file_that_is_named_is_there() -> None:
    named = [pair for pair in spans() if FILE.match(pair[1]) and "/" in pair[1]]
    assert named
    assert not [pair for pair in named if found(pair[1]) is None and pair[1] not in MADE]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_each_link_leads_to_a_file(document: Path) -> None:
    links = LINK.findall(document.read_text())
    assert links
    assert not [link for link in links if not (document.parent / link).exists()]


def test_what_a_document_gets_wrong_is_found() -> None:
    engine = found("core/engine.py")
    assert engine is not None
    assert {"Engine", "Engine.handle", "HANDLERS"} <= defined(engine)
    assert "Engine.hurry" not in defined(engine)
    assert found("core/motor.py") is None


# ---- words -----------------------------------------------------------------------------------------------------------


def glossary() -> list[str]:
    return [word for word, _meaning in rows(section(ARCHITECTURE, "Words"))]


def names_and_texts() -> str:
    """Every name and text of the code, in small letters, with blanks between words; comments are left out."""
    parts = []
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "bpf").rglob("*.py")]:
        parts += [path.stem, path.parent.name]
        for node in ast.walk(ast.parse(path.read_text())):
            parts += [getattr(node, field) for field in ("name", "id", "attr", "arg", "value") if hasattr(node, field)]
    text = "\n".join(part for part in parts if isinstance(part, str))
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text)
    return re.sub(r"[^a-z0-9\n]+", " ", text.lower())


def test_the_glossary_is_short_and_each_word_is_in_the_code() -> None:
    words = glossary()
    assert 30 <= len(words) <= WORDS_MAX
    assert len(set(words)) == len(words)
    code = names_and_texts()
    assert not [word for word in words if not re.search(rf"\b{word}(s|es)?\b", code)]


# ---- drawings --------------------------------------------------------------------------------------------------------


def test_the_drawing_of_packages_is_what_the_imports_are_held_to() -> None:
    layers, order = re.findall(r"```\n(.*?)```", section(ARCHITECTURE, "Packages"), re.DOTALL)
    drawn = [line.split("←") for line in layers.splitlines()]
    assert {name.strip(): set(below.split()) for name, below in drawn} == LAYERS
    steps = [set(re.split(r"\s{2,}", line)[0].split()) for line in order.splitlines()]
    assert steps == [{name.removeprefix("lifl.core.") for name in step} for step in CORE_ORDER]


def test_the_walk_passes_each_component_once_each_way() -> None:
    """Until the grant: client, gateway, lifld, agent, coordinator; and back."""
    walk = [cells for cells in rows(section(ARCHITECTURE, "The walk of an update")) if cells[0].isdigit()]
    assert [int(cells[0]) for cells in walk] == list(range(1, len(walk) + 1))
    granted = [SPAN.findall(cells[2])[0] for cells in walk[:8]]
    folders = [re.sub(r"/[^/]*$", "", place) for place in granted]
    gateway, node, agent = "node/gateway", "node", "core/agent"
    assert folders == ["client", gateway, node, agent, "core/coordinator", agent, node, gateway]


def test_each_promise_names_a_test_that_holds_it() -> None:
    promises = list(rows(section(ARCHITECTURE, "Promises")))
    assert len(promises) == 8
    for promise, held in promises:
        tests = SPAN.findall(held)
        assert tests, promise
        assert all(re.match(r"^tests/\S+::test_\w+$", test) for test in tests), promise


# ---- how to work on it -----------------------------------------------------------------------------------------------


def additions() -> list[str]:
    return section(CONTRIBUTING, "What to touch").split("\n### ")[1:]


@pytest.mark.parametrize("text", additions(), ids=lambda text: text.split("\n")[0])
def test_an_addition_touches_few_files_and_brings_a_test(text: str) -> None:
    files = re.findall(r"^\d\. .*$", text, re.MULTILINE)
    assert 1 <= len(files) <= FILES_MAX
    _, tests = text.split("\nWith it: ")
    assert re.search(r"test", tests)


def test_each_kind_of_addition_is_described() -> None:
    kinds = "\n".join(text.split("\n")[0] for text in additions())
    assert all(kind in kinds for kind in ("rule", "message", "config", "command", "failpoint", "effect", "receipt"))


def targets() -> set[str]:
    """The targets of the Makefile that are there to be called."""
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return set(phony.split())


def make(*arguments: str) -> str:
    """What make prints, also when it is make that runs the tests."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=plain, capture_output=True, text=True, check=True).stdout


def test_make_help_tells_of_each_target_in_a_line() -> None:
    told = make("help")
    assert make() == told
    lines = [re.match(r"make ([\w-]+)\s.*\w", line) for line in told.splitlines()]
    assert {line[1] for line in lines if line} == targets() and len(lines) == len(targets())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_each_target_of_make_that_is_named_is_there(document: Path) -> None:
    text = document.read_text()
    named = re.findall(r"^ {4}make ([a-z-]+)", text, re.MULTILINE) + re.findall(r"`make ([a-z-]+)", text)
    assert set(named) <= targets()


HOOKS = re.findall(r"^ +entry: (.*)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.MULTILINE)


@pytest.mark.parametrize("entry", HOOKS)
def test_each_hook_runs_what_ci_runs(entry: str) -> None:
    tool, *arguments = entry.split()
    assert Path(tool).parts[:2] == (".venv", "bin")
    assert (Path(sys.executable).parent / Path(tool).name).exists()
    command = " ".join([tool.replace(".venv/bin", "$(BIN)"), *arguments]).replace(" --force-exclude", "")
    command = command.split(" -q ")[0]  # pytest: `make test` runs all tests, the hook some
    recipes = [line.strip().lstrip("@") for line in (ROOT / "Makefile").read_text().splitlines() if line[:1] == "\t"]
    assert any(recipe == command or recipe.startswith(f"{command} ") for recipe in recipes), command
    assert all((ROOT / argument).exists() for argument in arguments if argument.startswith("tests/"))


def test_every_command_of_make_lint_is_a_hook() -> None:
    lint = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    commands = re.findall(r"^\t\$\(BIN\)/(.*?)(?: \.)?$", lint, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert any(hook.startswith(f".venv/bin/{command}") for hook in HOOKS), command
    assert "repo: local" in (ROOT / ".pre-commit-config.yaml").read_text()


def test_nothing_is_downloaded_by_a_hook() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    assert set(re.findall(r"repo: (.*)", text)) == {"local"}
    assert set(re.findall(r"language: (.*)", text)) == {"system"}


def test_each_event_of_the_audit_log_is_described() -> None:
    described = {row[0].strip("`"): row[1] for row in rows(section(ROOT / "docs/operating.md", "The audit log"))}
    assert described == EVENTS
