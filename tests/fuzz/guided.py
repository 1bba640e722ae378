"""Each parser of what comes from outside, as a function of bytes; `lead.py` has atheris led through it by coverage.

A target raises nothing but what its parser says; what it returns must hold what it promises.  Each has seeds, from
which atheris begins.  Without atheris (the extra `fuzz`) they are still functions: `test_guided.py` hands them
their seeds, damaged at random.
"""

from __future__ import annotations

import base64
import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from lifl.core.audit import parsed, tail_of
from lifl.core.config.job import parse_job
from lifl.core.config.node import parse_node
from lifl.core.config.store_url import parse_store
from lifl.core.config.values import joined_address, parse_duration, parse_size, split_address
from lifl.core.errors import ConfigError, Refused, RemoteFault, ResourceFault
from lifl.core.event_log import Recording
from lifl.core.identity import identity_of, identity_uri, issued_of, jobs_of
from lifl.core.modelfile import LENGTH_BYTES, decode_header, header_bytes
from lifl.core.protocol import cli as om
from lifl.core.protocol import client as cm
from lifl.core.protocol import cluster as xm
from lifl.core.protocol import enrolment as em
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import journal as jm
from lifl.core.protocol import worker as wm
from lifl.core.protocol.contribution import Contribution, pack_contribution, unpack_contributions
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.core.trust.tokens import read_token
from lifl.node import rows
from lifl.node.authority.certificate_authority import read_authority, request_key
from lifl.node.backup.archive import Reader
from lifl.node.etcd import keys
from lifl.tls.description import described
from lifl.tls.peer import peer_of
from lifl.tls.signing_request import new_key

KEY = new_key()
CHANNELS: tuple[Any, ...] = (
    cm.FromClient,
    cm.ToClient,
    gm.FromGateway,
    gm.ToGateway,
    wm.FromWorker,
    wm.ToWorker,
    wm.FromZygote,
    wm.ToZygote,
    jm.FromJournal,
    jm.ToJournal,
    om.FromCli,
    em.Asking,
    em.Answer,
)
FRAME_BYTES_MAX = 1 << 16


def frames(data: bytes) -> None:
    """A frame of each channel; the first byte says which, the second where the stream is cut."""
    if len(data) < 2:
        return
    decoder: FrameDecoder[Any] = FrameDecoder(CHANNELS[data[0] % len(CHANNELS)], FRAME_BYTES_MAX)
    body = data[2:]
    stream = struct.pack("<I", len(body)) + body
    with suppress(RemoteFault):
        decoder.feed(stream[: data[1]])
        decoder.next_message()
        decoder.feed(stream[data[1] :])
        message = decoder.next_message()
        if message is not None:
            again: FrameDecoder[Any] = FrameDecoder(CHANNELS[data[0] % len(CHANNELS)])
            again.feed(encode(message))
            assert repr(again.next_message()) == repr(message), "what is told again is something else"


def hello(data: bytes) -> None:
    """The first frame on a control port."""
    with suppress(RemoteFault):
        found = xm.read_hello(msgspec.Raw(data))
        assert split_address(found.control)[1] > 0 < split_address(found.gateway)[1]


def model_header(data: bytes) -> None:
    """A safetensors file: its length, its header, and as many bytes behind it as the rest of `data`."""
    with suppress(Refused):
        length = header_bytes(data[:LENGTH_BYTES], "here")
        body = data[LENGTH_BYTES : LENGTH_BYTES + length]
        found = decode_header(body, len(data), "here")
        assert len(found.tensors) == len(found.offsets)


def config(data: bytes) -> None:
    """A job's configuration, and a node's."""
    from lifl_cli.config_file import read_toml

    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            table = read_toml(file.name)
        except ConfigError:
            return
    for parse in (parse_job, parse_node):
        with suppress(ConfigError):
            parse(table)


def token(data: bytes) -> None:
    """A token's line."""
    text = data.decode(errors="surrogateescape")
    with suppress(Refused):
        found = read_token(text)
        assert read_token(found.line()) == found


def contributions(data: bytes) -> None:
    """What an object's meta region says of who is in it."""
    with suppress(RemoteFault):
        found = unpack_contributions(data)
        assert unpack_contributions(b"".join(map(pack_contribution, found))) == found or "nan" in repr(found)


def stored_rows(data: bytes) -> None:
    """A value of etcd's, and a packed column of the database."""
    keys.parts_of(data)
    with suppress(*rows.UNREADABLE):
        keys.unpack(data)
    with suppress(*rows.UNREADABLE):
        rows.unpack(data, dict[str, Any])


def recording(data: bytes) -> None:
    """A recording of an engine."""
    with suppress(RemoteFault):
        Recording.unpack(data)


def audit(data: bytes) -> None:
    """The end of an audit log."""
    tail_of(data)
    for line in data.split(b"\n"):
        parsed(line)


def backup(data: bytes) -> None:
    """An archive of a node's state."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        with suppress(Refused):
            Reader(Path("here"), file).entries(lambda _name, _mode, pieces: [None for _ in pieces] and None)


def certificate(data: bytes) -> None:
    """A certificate, as it comes in a handshake or lies in a folder, and a signing request."""
    assert isinstance(described(data), str)
    with suppress(Refused):
        request_key(data)
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(data) + b"-----END CERTIFICATE-----\n"
    with suppress(ResourceFault):
        read_authority("ab", KEY.key, pem, "here", given=True)


def identity(data: bytes) -> None:
    """The names in a certificate: one on each line."""
    names = data.decode(errors="replace").split("\n")
    for read in (jobs_of, issued_of):
        with suppress(RemoteFault):
            read(names)
    with suppress(RemoteFault):
        cluster, found = identity_of(names)
        assert identity_uri(cluster, found) in names
    told = {
        "subjectAltName": tuple(("URI", name) for name in names),
        "serialNumber": "0A",
        "notBefore": "Jan  5 09:34:43 2018 GMT",
        "notAfter": "Jan  5 09:34:43 2038 GMT",
    }
    with suppress(RemoteFault):
        peer_of(told)


def addresses(data: bytes) -> None:
    """Addresses, sizes, durations, and a store's URL."""
    text = data.decode(errors="surrogateescape")
    with suppress(ConfigError):
        host, port = split_address(text)
        assert split_address(joined_address(host, port)) == (host, port)
    for parse in (parse_size, parse_duration, parse_store):
        with suppress(ConfigError):
            parse(text)


def _model_seed() -> bytes:
    header = b'{"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"__metadata__":{"a":"b"}}'
    return struct.pack("<Q", len(header)) + header + bytes(16)


def _config_seed() -> bytes:
    return b"""[job]
name = "j"
rounds = 3
[model]
path = "m.safetensors"
[selection]
clients_per_round = 4
deadline_s = "1m"
clients = ["hospital-*"]
[aggregation]
rule = "fedavg"
options = { lr = 0.1 }
"""


def _frame_seeds() -> list[bytes]:
    submit = cm.Submit("j", 1, 1.0, 0, ())
    said = (submit, cm.Accepted("j", 1), gm.Sealed(1, bytes(16), 1), jm.UpdateStored(bytes(16), None))
    return [
        bytes((CHANNELS.index(at), 3)) + encode(message)[4:]
        for at, message in zip((cm.FromClient, cm.ToClient, gm.FromGateway, jm.FromJournal), said, strict=True)
    ]


class Target(NamedTuple):
    """A parser, and what atheris begins from."""

    parse: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]


TARGETS: dict[str, Target] = {
    "frames": Target(frames, _frame_seeds),
    "hello": Target(hello, lambda: [msgspec.msgpack.encode({"type": "PeerHello", "version": 1, "node": "aa"})]),
    "model-header": Target(model_header, lambda: [_model_seed()]),
    "config": Target(config, lambda: [_config_seed(), b'listen = ["127.0.0.1:1"]\narena_bytes = "1GiB"\n']),
    "token": Target(token, lambda: [b"LIFL1" + b"a" * 64 + b"::0000000a." + b"x" * 43]),
    "contributions": Target(contributions, lambda: [pack_contribution(Contribution("c", 1.0, {"loss": 0.5})) * 2]),
    "stored-rows": Target(stored_rows, lambda: [keys.pack({"status": "open", "term": 3, "attempt": 1})[0]]),
    "recording": Target(recording, lambda: [b"\x82\xa6format\x01\xa7entries\x90"]),
    "audit": Target(audit, lambda: [b'{"seq":1,"prev":"","event":"node.up","at":1.0}\n']),
    "backup": Target(backup, lambda: [_backup_seed()]),
    "certificate": Target(certificate, lambda: [new_key().request, _certificate_seed(), _strange_name_seed()]),
    "identity": Target(identity, lambda: [b"lifl://ab/client/c1\nlifl-job:j\nlifl-issued:1.000000"]),
    "addresses": Target(addresses, lambda: [b"[::1]:7433", b"10.0.0.1:0", b"64MiB", b"1.5h", b"etcd://a:1,b:2/x"]),
}


def _backup_seed() -> bytes:
    import tarfile

    made = BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo("lifl.db")
        info.size = 4
        archive.addfile(info, BytesIO(b"data"))
    return made.getvalue()


def _certificate_seed() -> bytes:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    began = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("lifl://ab/node/n"), x509.DNSName("a")])
    made = x509.CertificateBuilder(name, name, key.public_key(), 7, began, began + datetime.timedelta(days=9))
    signed = made.add_extension(names, critical=False).sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.DER)


def _strange_name_seed() -> bytes:
    """A certificate with a name of a kind that the library knows and does not read (x400Address)."""
    return _certificate_seed().replace(b"\x86\x10lifl://", b"\xa3\x10lifl://")
