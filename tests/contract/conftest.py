"""Gateways of a test file come from one template."""

from __future__ import annotations

from collections.abc import Iterator

import gateway_template
import pytest


@pytest.fixture(scope="module", autouse=True)
def template_ends() -> Iterator[None]:
    yield
    gateway_template.end()
