"""Each code that a refusal is made with is explained, once, and `lifl explain` says it."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner
from lifl_cli.explain import explain

from lifl.core.protocol import client as cm
from lifl.core.refusal_codes import CODES, TITLES

ROOT = Path(__file__).parents[2]
CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
KINDS = {"Refused", "Refusal", "UpdateRefused"}


def made() -> dict[str, str]:
    """The codes in calls that make a refusal, each with a place; those that are named are looked up."""
    found = {}
    for path in [*(ROOT / "src/lifl").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]:
        if path.is_relative_to(ROOT / "src/lifl/confine"):
            continue  # system calls are refused there
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and called(node.func) in KINDS:
                first = node.args[0]
                code = first.value if isinstance(first, ast.Constant) else getattr(cm, called(first), None)
                if isinstance(code, str) and CODE.fullmatch(code):
                    found[code] = f"{path.name}:{node.lineno}"
    return found


def called(function: ast.expr) -> str:
    return getattr(function, "attr", getattr(function, "id", ""))


def test_each_code_that_is_made_is_explained() -> None:
    codes = made()
    assert len(codes) > 80
    assert {code: where for code, where in codes.items() if code not in CODES} == {}


def test_a_code_stands_under_one_title() -> None:
    counts = Counter(code for codes in TITLES.values() for code in codes)
    assert [code for code, times in counts.items() if times > 1] == []


@pytest.mark.parametrize("code", CODES)
def test_each_is_said(code: str) -> None:
    said = CliRunner().invoke(explain, [f"[{code}]"])
    assert said.exit_code == 0
    assert CODES[code].means in said.output
    assert CODES[code].mend in said.output


def test_a_code_that_is_none_is_told_with_the_nearest() -> None:
    said = CliRunner().invoke(explain, ["unknwon-job"])
    assert said.exit_code == 1
    assert "did you mean unknown-job?" in said.output
    assert "unknown-job" in CliRunner().invoke(explain, []).output
