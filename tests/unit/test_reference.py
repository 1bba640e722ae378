"""The pages of commands and of config keys are what the code says, and show each of them."""

from __future__ import annotations

import msgspec
import pytest
import reference_pages
from lifl_cli.main import COMMANDS

from lifl.core.config.job import JobConfig
from lifl.core.config.node import NodeConfig


def test_the_pages_are_current() -> None:
    assert reference_pages.CLI_PAGE.read_text() == reference_pages.cli_page(), "run `make limits`"
    assert reference_pages.CODES_PAGE.read_text() == reference_pages.codes_page(), "run `make limits`"
    assert reference_pages.CONFIG_PAGE.read_text() == reference_pages.config_page(), "run `make limits`"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_section(command: str) -> None:
    assert f"\n## lifl {command}\n" in reference_pages.cli_page()


def test_each_key_has_a_line() -> None:
    page = reference_pages.config_page()
    assert [key for key in msgspec.structs.fields(NodeConfig) if f"\n| `{key.name}` |" not in page] == []
    assert [part for part in msgspec.structs.fields(JobConfig) if f"\n### {part.name}\n" not in page] == []


def test_what_is_shown_as_a_default_is_what_a_key_left_out_is() -> None:
    page = reference_pages.config_page()
    assert f"| `connections_max` | `{NodeConfig().connections_max}` |" in page
    assert "| `job.rounds` | to be given |" in page
