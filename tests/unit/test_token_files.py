"""Files that hold a token, or do not: what is none is refused by the file's name, and raises nothing of Python's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lifl.core.errors import Refused, ResourceFault
from lifl.tls.token_file import BYTES_MAX, token_in

LINE = f"LIFLB1{'a' * 64}::00000000.{'A' * 43}"


@pytest.mark.parametrize(
    "path", ["a\0b", "", ".", "no/such/file", "\udcff", "a" * 5000, b"no", 1_000_000, None, 2.5, []]
)
def test_what_is_no_file_is_told_by_its_name(path: Any) -> None:
    with pytest.raises(ResourceFault, match=r"token file .* cannot be read") as refused:
        token_in(path, bearer=True)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "data",
    [
        b"",
        LINE[:-1].encode(),
        f"{LINE}\n{LINE}".encode(),
        f"{LINE}\0".encode(),
        LINE.encode("utf-16"),
        b"\xff" * 100,
        LINE.encode().ljust(BYTES_MAX + 1),
        b"A" * 1_000_000,
    ],
)
def test_what_is_no_token_is_refused_and_not_told_again(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_bytes(data)
    with pytest.raises(Refused, match="that is no token") as refused:
        token_in(path, bearer=True)
    assert "A" * 20 not in str(refused.value)


def test_blanks_around_it_are_no_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(f" {LINE}\r\n")
    assert token_in(path, bearer=True).line() == LINE
    assert "A" * 20 not in repr(token_in(path, bearer=True))
    with pytest.raises(Refused, match="is a bearer's"):
        token_in(path)
