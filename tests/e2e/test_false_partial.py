"""A stranger at a gateway cannot pass for another node: the model is what the accepted updates make."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fleet import OneHot, Watch, fleet, submit, until
from nodes import Node
from stops import Stops

from lifl.core.config.values import split_address
from lifl.core.ids import epoch_of
from lifl.core.protocol import client as cm
from lifl.core.protocol.contribution import Contribution, pack_contribution
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.core.schema import Layout, TensorSpec
from lifl.shm.checksum import checksum

N = 4
WAIT_S = 60.0
"""Only a failing test waits so long."""


class Stranger:
    """A connection that says what another node's gateway would."""

    def __init__(self, address: str) -> None:
        self.sock = socket.create_connection(split_address(address), timeout=WAIT_S)
        self._decoder: FrameDecoder[cm.ToClient] = FrameDecoder(cm.ToClient)

    def say(self, message: cm.FromClient) -> None:
        self.sock.sendall(encode(message))

    def hear(self) -> cm.ToClient:
        while (message := self._decoder.next_message()) is None:
            data = self.sock.recv(65_536)
            assert data
            self._decoder.feed(data)
        return message

    def offer(self, branch: int, nbytes: int, secret: str = "") -> cm.ToClient:
        """Offers a partial of two clients that are not the real ones; sends it, if it may come."""
        members = b"".join(pack_contribution(Contribution(f"false-{number}", 1.0)) for number in range(2))
        data = np.full(nbytes // 8, 1e6).tobytes()
        self.say(cm.Offer(1, epoch_of(1, 1), branch, 2.0, 2, len(data), len(members), secret))
        answer = self.hear()
        if isinstance(answer, cm.Go):
            self.sock.sendall(data + members)
            self.say(cm.Checksums(checksum(data), checksum(members)))
            answer = self.hear()
        return answer


@pytest.mark.parametrize("secret", ["", "0" * 32], ids=["none", "a wrong one"])
def test_a_strangers_partial_is_refused(start_node: Callable[..., Node], state_dir: Path, secret: str) -> None:
    oracle = OneHot(N)
    specs = tuple(TensorSpec(name, array.dtype.name, array.shape) for name, array in oracle.model().items())
    with tempfile.TemporaryDirectory(prefix="lt-", dir="/tmp") as other, Stops("gateway.carry.before") as stops:
        home = start_node("--insecure", "--control", "127.0.0.1:0", "--capacity", "2")
        flags = ("--insecure", "--join", home.info["control"], "--capacity", "2")
        agent = start_node(*flags, folder=Path(other), points=stops.variable)
        until("two nodes", lambda: sum(each["state"] == "alive" for each in home.json("nodes")["nodes"]) == 2)
        submit(home, "j", oracle.model(), job__rounds=1, aggregation__placement="round-robin")
        watch = Watch(home, "j")
        hold = stops.hold("gateway.carry.before")
        with fleet([home.address, agent.address], "j", N, oracle.update) as team:
            visit = hold.reached()  # the agent's partial is sealed; its gateway is about to offer it
            stranger = Stranger(home.address)
            stranger.say(cm.Hello(cm.PROTOCOL_VERSION, f"node-{agent.info['node']}"))
            assert isinstance(stranger.hear(), cm.Welcome)
            for branch in (1, 2):
                answer = stranger.offer(branch, Layout(specs).accumulator_bytes, secret)
                assert isinstance(answer, cm.Refusal), answer
                assert answer.code == "round-over"
            visit.go()
            watch.over()
            team.join()
            stranger.sock.close()
        lines = oracle.check(home, "j", team)
        assert [line["receipt"]["counted"] for line in lines] == [N]
        assert (home.state_dir / "lifld.log").read_text().count("offer.refused") == 1
        agent.down()
