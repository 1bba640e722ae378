"""A client of LIFL that knows nothing of LIFL but docs/protocol.md: sockets, msgpack, and the arithmetic of a layout.

    python examples/plain_client.py HOST:PORT JOB CLIENT

It takes part in a job until that has finished, over plain TCP to a node on this machine (its cookie is shown) or to one
that was started with --insecure.  What it "trains" is the model plus one, with a weight of 1: for a test, or as a start
for a client in another language.
"""

import hashlib
import hmac
import math
import socket
import struct
import sys
from typing import Any

import msgpack

BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1}
BYTES |= {"uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1, "float8_e4m3fn": 1, "float8_e5m2": 1}
"""The dtypes, in the order of their vectors."""

Message = dict[str, Any]


class PlainClient:
    """One connection, which asks and waits."""

    def __init__(self, host: str, port: int, job: str, name: str) -> None:
        self.address = f"{host}:{port}"
        self.job = job
        self.sock = socket.create_connection((host, port))
        self.send(type="Hello", version=1, client=name, knows=["cookie"])
        answer = self.receive()
        if answer["type"] == "Challenge":
            with open(answer["cookie"], "rb") as file:
                said = f"LIFL loopback client\n{answer['nonce']}\n{self.address}".encode()
                proof = hmac.new(file.read(), said, hashlib.sha256).hexdigest()
            self.send(type="Prove", proof=proof)
            answer = self.receive()
        if answer["type"] != "Welcome":
            raise SystemExit(f"not taken: {answer}")

    def send(self, **message: Any) -> None:
        """Send a frame: four bytes of length, little-endian, and a map."""
        body = msgpack.packb(message)
        self.sock.sendall(struct.pack("<I", len(body)) + body)

    def exactly(self, nbytes: int) -> bytes:
        """Receive so many bytes."""
        data = bytearray()
        while len(data) < nbytes:
            piece = self.sock.recv(min(nbytes - len(data), 1 << 20))
            if not piece:
                raise SystemExit("the node closed the connection")
            data += piece
        return bytes(data)

    def receive(self) -> Message:
        """Receive a frame."""
        (length,) = struct.unpack("<I", self.exactly(4))
        message: Message = msgpack.unpackb(self.exactly(length))
        return message

    def answer(self, *types: str) -> Message:
        """Wait for one of these; a message about another round may come before it."""
        while (message := self.receive())["type"] not in types:
            pass
        return message

    def take_part(self) -> None:
        """Train in every round that it is selected for, until the job ends."""
        self.send(type="Join", job=self.job)
        while True:
            message = self.answer("Selected", "JobOver", "Refusal")
            if message["type"] != "Selected":
                print(message)
                return
            self.train(message)

    def train(self, selected: Message) -> None:
        """Fetch the model, change it, and send it as the update."""
        about = {"job": self.job, "round": selected["round"]}
        self.send(type="GetModel", **about)
        if self.answer("Model", "Refusal")["type"] == "Refusal":
            return
        update = plus_one(self.exactly(selected["data_bytes"]), selected["tensors"])
        submit = {"weight": 1.0, "data_bytes": len(update), "tensors": selected["tensors"], "metrics": {"loss": 0.5}}
        self.send(type="Submit", **about, **submit)
        answer = self.answer("Go", "Accepted", "Busy", "Refusal", "RoundOver")
        if answer["type"] == "Go":
            self.sock.sendall(update)
            answer = self.answer("Accepted", "Refusal", "RoundOver")
        print(answer)


def layout(tensors: list[Any]) -> list[tuple[str, int, int]]:
    """Return where the numbers of each dtype lie in a model or update: dtype, first byte, how many."""
    found, position = [], 0
    for dtype, nbytes in BYTES.items():
        count = sum(math.prod(shape) for _name, of, shape in tensors if of == dtype)
        if count:
            found.append((dtype, position, count))
            position = -(-(position + count * nbytes) // 64) * 64
    return found


def plus_one(data: bytes, tensors: list[Any]) -> bytes:
    """Add one to all numbers of float32; the others stay as they are."""
    changed = bytearray(data)
    for dtype, begin, count in layout(tensors):
        if dtype == "float32":
            numbers = struct.unpack_from(f"<{count}f", data, begin)
            struct.pack_into(f"<{count}f", changed, begin, *(number + 1.0 for number in numbers))
    return bytes(changed)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    where, of_job, called = sys.argv[1:]
    at, _, number = where.rpartition(":")
    PlainClient(at, int(number), of_job, called).take_part()
