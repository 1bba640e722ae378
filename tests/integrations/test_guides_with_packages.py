"""What the pages tell of libraries that are too large for all tests, or takes too long, is done as it stands."""

from __future__ import annotations

import guides
import pytest

pytest.importorskip("torch", reason="NOT TESTED: make test-integrations installs torch")
pytest.importorskip("lightning", reason="NOT TESTED: make test-integrations installs lightning")
pytest.importorskip("peft", reason="NOT TESTED: make test-integrations installs peft")
pytest.importorskip("jax", reason="NOT TESTED: make test-integrations installs jax")


@pytest.mark.parametrize("page", ["docs/pytorch.md", "docs/jax.md", "docs/openfl.md", "docs/simulate.md"])
def test_what_a_page_tells_to_do_can_be_done(page: str) -> None:
    done = guides.run(guides.ROOT / page)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
