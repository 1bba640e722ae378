"""docs/protocol.md says what the protocol is: its frames, its messages, and the codes of its refusals."""

from __future__ import annotations

import ast
import re
import typing
from pathlib import Path

import protocol_frames
import pytest

from lifl.core.protocol import client as cm
from lifl.core.protocol.frames import encode
from lifl.core.schema import DTYPE_BYTES

SOURCE = Path(protocol_frames.__file__).parents[1] / "src/lifl"
OF_NODES = {cm.Offer, cm.Checksums}
"""The messages that a node's gateway alone sends to another's."""
SAYS = ("core/agent/*.py", "core/coordinator/answers.py", "core/protocol/update_check.py", "node/gateway/*.py")
LAYOUT_OF_NODES = ("partial_transfers.py", "peer_transfer.py", "content.py")
TEXT = protocol_frames.PAGE.read_text()


@pytest.mark.parametrize(("line", "digits"), list(protocol_frames.examples()), ids=lambda text: text[:40])
def test_a_message_on_the_page_has_the_bytes_that_stand_there(line: str, digits: str) -> None:
    assert encode(protocol_frames.message_of(line)).hex() == digits, "`python tests/protocol_frames.py` writes them"


def test_each_message_of_clients_is_on_the_page_as_bytes() -> None:
    shown = {type(protocol_frames.message_of(line)) for line, _digits in protocol_frames.examples()}
    assert shown == {*typing.get_args(cm.FromClient), *typing.get_args(cm.ToClient)} - OF_NODES


def codes(path: Path) -> set[str]:
    """The codes of the refusals that a file makes."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    made = [call for call in calls if call.args and ast.unparse(call.func).endswith(("Refused", "Refusal"))]
    return {call.args[0].value for call in made if isinstance(call.args[0], ast.Constant)}


@pytest.mark.parametrize(
    "path", [path for pattern in SAYS for path in sorted(SOURCE.glob(pattern)) if path.name not in LAYOUT_OF_NODES]
)
def test_each_code_by_which_a_client_is_refused_is_on_the_page(path: Path) -> None:
    for code in codes(path):
        assert f"`{code}`" in TEXT, f"{path.name} refuses by {code!r}"


def test_the_dtypes_are_on_the_page_in_the_order_of_their_vectors() -> None:
    line = TEXT.split("### Bytes of a model")[1].split("\n\n")[2]
    assert re.findall(r"`(\w+)`", line) == list(DTYPE_BYTES)


@pytest.mark.parametrize("word", cm.KNOWS)
def test_the_words_of_what_came_later_are_on_the_page(word: str) -> None:
    assert f"| `{word}` |" in TEXT
