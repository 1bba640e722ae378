"""What a user's function may answer that selects clients, or says when to stop, and what it is given."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lifl.core.errors import LiflError
from lifl.core.protocol.user_calls import SELECTS, STOPS
from lifl.core.protocol.worker import Call
from lifl.worker.call import call

CLIENTS = [{"name": f"c{number}", "loss": None} for number in range(4)]
GIVEN = {"clients": CLIENTS, "wanted": 2, "round": 7, "seed": "0/7/1/0"}


def answer(folder: Path, body: str, key: str = SELECTS, given: Any = None) -> Any:
    """What a function answers whose body is this."""
    parameters = "clients, wanted, round" if key == SELECTS else "history"
    (folder / "mine.py").write_text(
        f"import os, sys, itertools\nimport numpy as np\ndef f({parameters}):\n    {body}\n"
    )
    packed = msgspec.msgpack.encode(GIVEN if given is None else given)
    return msgspec.msgpack.decode(call(Call(1, 1, "j", 1, key, "mine:f", str(folder), packed)))


@pytest.mark.parametrize(
    "body",
    [
        "return ['c2', 'c0']",
        "return (name for name in ['c2', 'c0'])",
        "return np.array(['c2', 'c0'])",
        "clients.clear(); return ['c2', 'c0']",
    ],
)
def test_names_become_places(tmp_path: Path, body: str) -> None:
    assert answer(tmp_path, body) == [2, 0]


def test_what_is_drawn_at_random_is_drawn_again_by_the_same_seed(tmp_path: Path) -> None:
    random.seed(1)
    body = "import random; return random.sample([c['name'] for c in clients], wanted)"
    first = answer(tmp_path, body)
    random.seed(2)
    assert answer(tmp_path, body) == first


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("return None", "returned a NoneType: it is to return a list"),
        ("return 'c0'", "returned a str"),
        ("return {'c0': 1}", "returned a dict"),
        ("return ['c9']", "named 'c9', which is none of the 4 clients it was given"),
        ("return [['c0']]", "named ['c0']"),
        ("return ['c0', 'c0']", "named 'c0' twice"),
        ("return ['c0', 'c1', 'c2']", "named more than the 2 clients"),
        ("return itertools.cycle(['c0', 'c1'])", "named more than the 2 clients"),
        ("return ['\\ud800']", "none of the 4 clients"),
    ],
)
def test_what_names_no_clients_is_refused(tmp_path: Path, body: str, text: str) -> None:
    with pytest.raises(LiflError) as raised:
        answer(tmp_path, body)
    assert text in str(raised.value) and "mine:f" in str(raised.value)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return history[-1]['loss'] < 1", [True, ""]),
        ("return np.bool_(False)", [False, ""]),
        ("pass", [False, ""]),
        ("return ''", [False, ""]),
        ("return 'genug ä'", [True, "genug ä"]),
        ("return 'x' * 10_000", [True, "x" * 4096]),
    ],
)
def test_a_job_stops_by_true_or_a_text(tmp_path: Path, body: str, said: list[Any]) -> None:
    assert answer(tmp_path, body, STOPS, [{"round": 1, "loss": 0.5}]) == said


@pytest.mark.parametrize("body", ["return 1", "return [True]", "return np.zeros(2)", "return float('nan')"])
def test_what_says_nothing_of_stopping_is_refused(tmp_path: Path, body: str) -> None:
    with pytest.raises(LiflError, match="it is to return True, False, or a text"):
        answer(tmp_path, body, STOPS, [])


def test_a_function_that_is_missing_is_told_by_its_key(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    with pytest.raises(LiflError, match=r"selection.strategy: module 'mine' has no function 'f'"):
        call(Call(1, 1, "j", 1, SELECTS, "mine:f", str(tmp_path), b"\xc0"))
