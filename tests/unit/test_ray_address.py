"""Whether a Ray cluster is there is found out before Ray is asked, which would try for minutes."""

from __future__ import annotations

import socket

import pytest

from lifl.simulation.ray_pool import check_there


def test_an_address_at_which_nobody_listens_is_refused_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConnectionRefusedError):
            check_there(address)
        taken.listen()
        check_there(address)


@pytest.mark.parametrize("address", ["auto", "local", "", ":", "ray://127.0.0.1:1", "a name", "h:", "h:x"])
def test_another_address_is_left_to_ray(address: str) -> None:
    check_there(address)
