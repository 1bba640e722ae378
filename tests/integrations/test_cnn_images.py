"""The example with images: a convolutional network learns them at sites whose data differ."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="NOT TESTED: make test-integrations installs torch")
pytest.importorskip("sklearn", reason="scikit-learn holds the data: pip install lifl[demo]")

EXAMPLE = Path(__file__).parents[2] / "examples/cnn_images.py"


def test_the_example_runs_as_its_first_line_says_and_learns() -> None:
    done = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    found = re.search(r"([\d.]+)% of the held-out images are right", done.stdout)
    assert found is not None, done.stdout
    assert float(found[1]) > 90, "an untrained network has 10 %, one site alone has seen few of some digits"
