"""Where a cluster's authority lies: `authority.pem` in its node's state folder, or the two files of a given one."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

from lifl.core.config.node import NodeConfig
from lifl.core.errors import ResourceFault
from lifl.node.authority.certificate_authority import CertificateAuthority, make_authority, read_authority
from lifl.node.authority.credential_store import CredentialStore
from lifl.node.modes import FILE_MODE, open_file

AUTHORITY_FILE = "authority.pem"
BYTES_MAX = 1024 * 1024
_ROOM = "the one of before stays: make room on its disk, then try again"


def has_authority(config: NodeConfig, folder: Path) -> bool:
    """Return whether a node has an authority already, its own or a given one."""
    return bool(config.ca_cert) or (folder / AUTHORITY_FILE).exists()


def open_authority(
    config: NodeConfig, folder: Path, store: CredentialStore
) -> tuple[CertificateAuthority, Path | None]:
    """Return the authority of a node, and its file unless it was given; it is made where there is none.

    Raise `ResourceFault` when it cannot be read, is no authority, or others may read its key.
    """
    cluster = store.cluster(secrets.token_hex(8))
    if config.ca_cert:
        key, certificates = _read(Path(config.ca_key), private=True), _read(Path(config.ca_cert), private=False)
        where = f"--ca-cert {config.ca_cert} with --ca-key {config.ca_key}"
        return read_authority(cluster, key, certificates, where, given=True), None
    path = folder / AUTHORITY_FILE
    if not path.exists():
        made = make_authority(cluster, time.time())
        write_authority(path, made)
        return made, path
    data = _read(path, private=True)
    return read_authority(cluster, data, data, str(path), given=False), path


def check_authority(path: Path) -> None:
    """Raise `ResourceFault` when the file of an authority cannot be used."""
    data = _read(path, private=True)
    read_authority("", data, data, str(path), given=False)


def authority_time(path: Path) -> tuple[float, float]:
    """Return from when until when the authority in a file can sign (s since 1970).  Raise as `check_authority` does."""
    data = _read(path, private=True)
    found = read_authority("", data, data, str(path), given=False)
    return found.not_before_unix_s, found.not_after_unix_s


def write_authority(path: Path, authority: CertificateAuthority) -> None:
    """Put the file of an authority in place, at once and synced to the disk.  Raise `ResourceFault`."""
    new = path.with_name(f".{path.name}.new")
    try:
        new.unlink(missing_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        with open(fd, "wb") as file:
            os.fchmod(fd, FILE_MODE)
            file.write(authority.pem())
            file.flush()
            os.fsync(fd)
        new.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ResourceFault(f"the authority's file {path} cannot be written: {error.strerror}; {_ROOM}") from error


def _read(path: Path, private: bool) -> bytes:
    try:
        with open(open_file(path, os.O_RDONLY), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            data = file.read(BYTES_MAX + 1)
    except OSError as error:
        raise ResourceFault(f"{path}, of the cluster's authority, cannot be read: {error.strerror}") from error
    if private and mode & 0o077:
        text = f"{path} has mode {mode:04o}: whoever reads the authority's key can be anybody in the cluster"
        raise ResourceFault(f"{text}; close it with `chmod 600 {path}`")
    if len(data) > BYTES_MAX:
        raise ResourceFault(f"{path}, of the cluster's authority, has more than {BYTES_MAX} bytes")
    return data
