"""What an earlier version left or sends: its state folder, its arena and its client work with this node.

`tests/data/state-0.1.0` was written by LIFL 0.1.0, killed with kill -9: a job that is finished, one (FedAdam) with two
committed rounds of four, and in the arena the accepted update of one of the third round's two clients.  The client
below speaks the protocol in bytes of its own, as they were then, and imports nothing of ours.
"""

from __future__ import annotations

import gzip
import mmap
import shutil
import socket
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from fleet import OneHot, Watch, arena_use, fleet, objects, submit, until
from nodes import Node
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lifl.core.formats import CHECKPOINT_FORMAT, STATE_FORMAT
from lifl.core.ids import Kind
from lifl.core.schema import ACCUMULATOR, NARROW_PARTIAL, Layout, TensorSpec, align, end_of, relaid
from lifl.node.state_format import check_format
from lifl.rules.kernels import vector
from lifl.shm import layout
from lifl.shm.arena import Arena
from lifl.shm.layout import Entry, ObjectState

DATA = Path(__file__).parents[1] / "data" / "state-0.1.0"
VALUES, VALUE_BYTES = 8, 64
TENSORS = [["w", "float32", [VALUES]]]
WAIT_S = 60.0


class EarlierClient:
    """A client of 0.1.0, as far as one round needs it; it comes by the node's socket, as it knows no cookie."""

    def __init__(self, node: Node, name: str, job: str, holding: int | None = None) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(WAIT_S)
        self.socket.connect(str(node.state_dir / "gateway.sock"))
        self.job = job
        self.heard: list[dict[str, Any]] = []
        self.say(type="Hello", version=1, client=name, direct=False)
        assert self.hear("Welcome")["version"] == 1
        self.say(type="Join", job=job, holding=holding, connected_ns=1)

    def say(self, **fields: Any) -> None:
        body = msgpack.packb(fields)
        self.socket.sendall(struct.pack("<I", len(body)) + body)

    def read(self, nbytes: int) -> bytes:
        data = b""
        while len(data) < nbytes:
            got = self.socket.recv(nbytes - len(data))
            assert got, "the node closed the connection"
            data += got
        return data

    def hear(self, kind: str) -> dict[str, Any]:
        """The next message of this kind; others before it are kept, for rounds overlap."""
        while True:
            found = next((message for message in self.heard if message["type"] == kind), None)
            if found is not None:
                self.heard.remove(found)
                return found
            (length,) = struct.unpack("<I", self.read(4))
            self.heard.append(msgpack.unpackb(self.read(length)))
            assert self.heard[-1]["type"] not in ("Refusal", "RoundOver"), self.heard

    def model(self, number: int) -> np.ndarray:
        self.say(type="GetModel", job=self.job, round=number, checked=False)
        model = self.hear("Model")
        assert (model["round"], model["data_bytes"], model["tensors"]) == (number, VALUE_BYTES, TENSORS)
        return np.frombuffer(self.read(VALUE_BYTES)[: 4 * VALUES], np.float32)

    def submit(self, number: int, value: float) -> None:
        about = {"job": self.job, "round": number, "weight": 1.0, "data_bytes": VALUE_BYTES}
        self.say(type="Submit", **about, tensors=TENSORS, metrics={"loss": 0.25})
        go = self.hear("Go")
        assert go == {"type": "Go", "job": self.job, "round": number, "direct": False, "offset": 0}
        update = np.full(VALUES, value, np.float32).tobytes()
        self.socket.sendall(update + bytes(VALUE_BYTES - len(update)))
        assert self.hear("Accepted")["round"] == number


def earlier_state(folder: Path, arena: bool) -> None:
    """Lay out the state folder, and the segment, as the killed daemon left them."""
    shutil.copytree(DATA, folder, dirs_exist_ok=True)
    packed = folder / "arena.gz"
    database = sqlite3.connect(folder / "lifl.db")
    with database:
        for number, config, jobs in database.execute("SELECT number, config, folder FROM jobs").fetchall():
            fields = msgpack.unpackb(config)
            fields["model"]["path"] = fields["model"]["path"].replace("@", str(folder))
            row = (msgpack.packb(fields), jobs.replace("@", str(folder)), number)
            database.execute("UPDATE jobs SET config = ?, folder = ? WHERE number = ?", row)
    (node,) = database.execute("SELECT node FROM node").fetchone()
    database.close()
    if arena:
        segment = Path("/dev/shm") / f"lifl-{node}"
        segment.touch(mode=0o600)
        segment.write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()


@pytest.fixture
def earlier(start_node: Callable[..., Node], state_dir: Path, request: pytest.FixtureRequest) -> Node:
    earlier_state(state_dir, arena=request.param)
    return start_node("--arena-bytes", "16MiB")


@pytest.mark.parametrize("earlier", [True, False], indirect=True, ids=["with its arena", "after the machine's death"])
def test_a_job_of_an_earlier_version_goes_on_to_its_end(earlier: Node, request: pytest.FixtureRequest) -> None:
    """Else an upgrade loses running jobs, or updates that were ACCEPTED."""
    node, adopts = earlier, request.node.callspec.params["earlier"]
    lines = {line["name"]: line for line in node.json("jobs")["jobs"]}
    assert check_format(node.state_dir) == STATE_FORMAT
    assert (lines["done"]["status"], lines["done"]["committed"]) == ("finished", 1)
    assert lines["old"]["committed"] == 2
    assert [line["status"] for line in node.json("status", "old")["rounds"]] == ["committed", "committed"]
    watch = Watch(node, "old")
    # c0's update of the third round was ACCEPTED before; it survived with the arena, and is sent again without.
    first = EarlierClient(node, "c0", "old", holding=3)
    second = EarlierClient(node, "c1", "old")
    selected = second.hear("Selected")
    assert selected["round"] == 3
    assert set(selected) == {"type", "job", "round", "deadline_s", "tensors", "data_bytes", "options", "gateway"}
    stored = load_file(Path(lines["old"]["folder"].replace("@", str(node.state_dir))) / "round-00002.safetensors")
    assert np.array_equal(second.model(3), stored["w"])
    if not adopts:
        assert first.hear("Selected")["round"] == 3
        first.submit(3, 1.0)
    second.submit(3, 2.0)
    for client in (first, second):
        assert client.hear("Committed") == {"type": "Committed", "job": "old", "round": 3, "counted": True}
    for value, client in enumerate((first, second), start=1):
        assert client.hear("Selected")["round"] == 4
        client.model(4)
        client.submit(4, float(value))
    watch.wait("job.over")
    assert node.json("status", "old")["job"]["status"] == "finished"
    written = Path(lines["old"]["folder"].replace("@", str(node.state_dir))) / "round-00004.safetensors"
    with safe_open(written, "numpy") as model:
        assert model.metadata()["lifl.format"] == str(CHECKPOINT_FORMAT)
    for client in (first, second):
        client.socket.close()


def test_a_client_of_an_earlier_version_takes_part(start_node: Callable[..., Node], tmp_path: Path) -> None:
    """Else every trainer must be upgraded in the same moment as the node."""
    node = start_node()
    save_file({"w": np.zeros(VALUES, np.float32)}, tmp_path / "m.safetensors")
    submit(node, "j", {"w": np.zeros(VALUES, np.float32)}, job__rounds=1, selection__clients_per_round=1)
    client = EarlierClient(node, "c0", "j")
    assert client.hear("Selected")["tensors"] == TENSORS
    assert not client.model(1).any()
    client.submit(1, 3.0)
    assert client.hear("Committed")["counted"]
    assert client.hear("JobOver")["status"] == "finished"
    client.say(type="Leave", job="j")
    client.socket.close()
    target = tmp_path / "result.safetensors"
    node.lifl("model", "j", "-o", str(target))
    assert load_file(target)["w"] == pytest.approx(np.full(VALUES, 3.0))


def sealed_partials(node: Node) -> list[Entry]:
    return [e for e in objects(node) if e.kind == Kind.PARTIAL and e.state == ObjectState.SEALED]


def narrowed(table: memoryview, segment: memoryview, entry: Entry, slot: int, specs: tuple[TensorSpec, ...]) -> None:
    """Write a partial of a dead node's arena as it was before: in float32 and int128, the members behind that."""
    models = Layout(specs).segments
    old, new = relaid(models, ACCUMULATOR), relaid(models, NARROW_PARTIAL)
    data = segment[entry.offset : entry.offset + entry.extent_bytes]
    wide = memoryview(bytes(data))
    members = bytes(segment[layout.meta_offset(entry) :][: entry.meta_bytes])
    data[:] = b"\xff" * len(data)
    for source, target in zip(old, new, strict=True):
        numbers = vector(wide, source)
        if target.dtype == "int128":  # of 62 bits in the place of a weight, today's have 126
            vector(data, target)["low"], vector(data, target)["high"] = numbers["middle"], numbers["high"]
        else:
            vector(data, target)[:] = numbers
    changed = entry._replace(kind=Kind.NARROW_PARTIAL, data_bytes=align(end_of(new)))
    layout.ENTRY.pack_into(table, layout.entry_position(slot), *changed)
    segment[layout.meta_offset(changed) :][: len(members)] = members


def test_a_round_goes_on_from_partials_that_were_rounded_to_float32(start_node: Callable[..., Node]) -> None:
    """A killed node comes up with this version: what it had sealed counts once, and is not asked for again."""
    clients, node = 8, start_node("--redirector", "unix")
    oracle, first = OneHot(clients), 4
    submit(node, "j", oracle.model())
    watch = Watch(node, "j")
    with fleet(node.address, "j", clients, oracle.update, held=[(i, 1) for i in range(first, clients)]) as team:
        watch.wait("update.accepted", first)
        until("the leaves' seals", lambda: len(sealed_partials(node)) == first // 2)
        node.kill()
        specs = tuple(TensorSpec(name, a.dtype.name, a.shape) for name, a in oracle.model().items())
        with node.segment.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped, memoryview(mapped) as table:
            arena = Arena.attach(f"/{node.segment.name}")
            for slot in range(arena.entries):
                entry = arena._sealed(arena._in_table(slot))
                if entry.state == ObjectState.SEALED and entry.kind == Kind.PARTIAL:
                    narrowed(table, arena.segments.view(entry), entry, slot, specs)
            arena.close()
        node.up("--listen", node.address)
        assert node.info["adopted"] == {"jobs": 1, "updates": first}
        team.release()
        team.join()
        (line,) = oracle.check(node, "j", team)
    assert (line["attempt"], line["receipt"]["counted"]) == (1, clients)
    assert line["receipt"]["bytes_in"] == (clients - first) * oracle.data_bytes
    assert until("an empty arena", lambda: arena_use(node) == (0, 0))
