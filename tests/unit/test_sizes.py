"""Nothing grows out of sight: how long files and functions may be, and how many methods a class may have."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("src", "cli", "bpf") for path in (ROOT / folder).rglob("*.py"))
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 60
METHODS_MAX = 25
Function = ast.FunctionDef | ast.AsyncFunctionDef


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=short)
def test_a_file_can_be_read_in_one_go(path: Path) -> None:
    text = path.read_text()
    lines = len(text.splitlines())
    assert lines <= FILE_LINES_MAX, f"{short(path)} has {lines} lines: part it by responsibility"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{short(path)}:{node.lineno}: {node.name} has {lines} lines"
        if isinstance(node, ast.ClassDef):
            methods = sum(isinstance(child, Function) for child in node.body)
            text = (
                f"{short(path)}:{node.lineno}: {node.name} has {methods} methods, private ones and properties counted"
            )
            assert methods <= METHODS_MAX, text
