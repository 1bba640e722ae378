"""An identity on a disk: a folder of its user's alone, with the key that never leaves it.

``ca.pem``    whom to trust: one CA's certificate or several, the old and the new one side by side
``cert.pem``  the own certificate, and those between it and the CA if there are any
``key.pem``   its key (0600, in a folder of 0700)

A node's is in its state folder, a client's or operator's where `user_folder` says.  `save` puts each file in place at
once; where two of them change together, who reads in between finds a pair that does not match, and keeps what it had
(`contexts.py`).  All of them are on the disk before the first takes its place, and a mark says so: when `save` is cut
off by a kill, the next `load` goes on with it.

``home``      where the authority is (the control address of its node), for who renews by itself
``.lock``     held by who renews: of several processes with one identity, one does it
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lifl.core.errors import ResourceFault
from lifl.core.limits import ADDRESS_CHARS_MAX

CA, CERTIFICATE, KEY = "ca.pem", "cert.pem", "key.pem"
HOME, LOCK = "home", ".lock"
_NEW, _WHOLE = ".new", ".whole"
"""The end of the names of what is to take others' places; and the mark that it is whole, which has its number."""
_ROOM_BYTES = 32 * 1024
"""More than an identity takes: certificates, the roots, a key."""
IDENTITIES = Path("~/.config/lifl/identities")
VARIABLE = "LIFL_IDENTITY"
"""Names the identity folder of who has no other."""
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_CLOEXEC = getattr(os, "O_CLOEXEC", getattr(os, "O_NOINHERIT", 0) | getattr(os, "O_BINARY", 0))


class IdentityFiles(NamedTuple):
    """The files of an identity that is whole."""

    folder: Path
    ca: Path
    certificate: Path
    key: Path

    def stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Return what changes when one of them does.  Raise `OSError`."""
        found = [path.stat() for path in self[1:]]
        return tuple((each.st_ino, each.st_size, each.st_mtime_ns) for each in found)


def node_folder(state: Path) -> Path:
    """Return where the identity of the node with this state folder lies."""
    return state / "identity"


def user_folder(address: str, given: str | os.PathLike[str] | None = None) -> Path:
    """Return where a client's or operator's identity at `address` (HOST:PORT) lies: as given, or said, or usual.

    Raise `ResourceFault` when there is no home folder to look in.
    """
    if chosen := given or os.environ.get(VARIABLE):
        return _expanded(Path(chosen))
    host, _, port = address.rpartition(":")
    return _expanded(IDENTITIES) / f"{host.strip('[]')}_{port}"


def sole_folder() -> Path | None:
    """Return the identity folder of this account, if it has exactly one where they usually lie.

    Of a cluster one knows many addresses, and has enrolled at one.
    """
    folder = _expanded(IDENTITIES)
    try:
        found = [each for each in folder.iterdir() if (each / CERTIFICATE).exists()]
    except OSError:
        return None
    return found[0] if len(found) == 1 else None


def user_folders(address: str) -> list[Path]:
    """Return where the identity for a gateway at `address` may lie: its own, then those of other ports of its host.

    A client enrolls at a control port, and comes to a gateway's.  None, for who has no home.
    """
    try:
        own = user_folder(address)
    except ResourceFault:
        return []
    host = own.name.rpartition("_")[0]
    try:
        others = sorted(each for each in own.parent.iterdir() if each.name.rpartition("_")[0] == host)
    except OSError:
        others = []
    return [own, *(each for each in others if each != own)]


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except (RuntimeError, OSError) as error:
        raise ResourceFault(f"identity folder {path} cannot be found: {error}; give an absolute path") from error


def load(folder: Path) -> IdentityFiles | None:
    """Return the files of an identity; None when there is neither certificate nor key.

    Raise `ResourceFault`, with the remedy, when a part is missing, or when others may read the key.
    """
    files = IdentityFiles(folder, folder / CA, folder / CERTIFICATE, folder / KEY)
    try:
        if not _is_missing(folder / _WHOLE):
            _finish(folder)
        missing = [path.name for path in files[1:] if _is_missing(path)]
        if {CERTIFICATE, KEY} <= set(missing):
            return None
        if missing:
            raise ResourceFault(
                f"identity folder {folder} has no {' and no '.join(missing)}: an identity is {CA}, {CERTIFICATE} and "
                f"{KEY}; put it there, or remove the folder and enroll again"
            )
        for path in (folder, files.key):
            _check_private(path)
        for path in files[1:]:
            if not path.is_file():
                raise ResourceFault(f"{path} is no file: put it there, or remove the folder and enroll again")
    except OSError as error:
        raise ResourceFault(
            f"identity folder {folder} cannot be read: {error.strerror}; it must be its user's own"
        ) from error
    return files


def _is_missing(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return True
    return False


def _check_private(path: Path) -> None:
    if not hasattr(os, "geteuid"):
        return  # Windows: modes say nothing there, and what lies in a user's profile is the user's
    found = path.stat()
    if found.st_uid not in (os.geteuid(), 0):
        raise ResourceFault(f"{path} belongs to another user (uid {found.st_uid}): an identity is its user's own")
    if mode := stat.S_IMODE(found.st_mode) & _OTHERS:
        wanted = "700" if stat.S_ISDIR(found.st_mode) else "600"
        raise ResourceFault(
            f"{path} has mode {stat.S_IMODE(found.st_mode):04o}, which lets other users in ({mode:03o}): "
            f"whoever reads a key is who it stands for; close it with `chmod {wanted} {path}`"
        )


def save(
    folder: Path,
    *,
    ca: bytes | None = None,
    certificate: bytes | None = None,
    key: bytes | None = None,
    home: bytes | None = None,
) -> None:
    """Write what is given, synced to the disk; the folder is made.  Raise `OSError`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    number = secrets.token_hex(4)
    with contextlib.suppress(FileNotFoundError):
        (folder / _WHOLE).unlink()
    for old in folder.glob(f".*{_NEW}"):  # of one that was cut off
        old.unlink(missing_ok=True)
    for name, data in ((CA, ca), (KEY, key), (CERTIFICATE, certificate), (HOME, home)):
        if data is not None:
            _write(folder / f".{name}.{number}{_NEW}", data)
    _sync(folder)
    _write(folder / _WHOLE, number.encode())
    _sync(folder)
    _finish(folder)


def _finish(folder: Path) -> None:
    """Put in place what is written beside it; several may do so at once."""
    with contextlib.suppress(FileNotFoundError):
        number = (folder / _WHOLE).read_text()
        for name in (CA, KEY, CERTIFICATE, HOME):
            with contextlib.suppress(FileNotFoundError):
                os.replace(folder / f".{name}.{number}{_NEW}", folder / name)
        _sync(folder)
        (folder / _WHOLE).unlink()


def unwritten(folder: Path, error: OSError) -> ResourceFault:
    """Return what to say of an identity folder that cannot be written."""
    text = f"identity folder {folder} cannot be written: {error.strerror}"
    return ResourceFault(f"{text}; make room on its disk, and let its user write")


def check_room(folder: Path) -> None:
    """Raise `ResourceFault` where an identity cannot be written: who finds that afterwards has used its token up."""
    room, is_there = folder / f".room.{secrets.token_hex(4)}{_NEW}", folder.is_dir()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            _write(room, bytes(_ROOM_BYTES))
            room.unlink()
        finally:
            if not is_there:
                folder.rmdir()
    except OSError as error:
        text = f"{unwritten(folder, error)}; nothing was changed, and nobody asked for an identity"
        raise ResourceFault(f"{text}: mend that, and come again (with the same token)") from error


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink()
        raise


def _sync(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows: a folder cannot be opened
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def home_of(folder: Path) -> str:
    """Return the control address at which an identity is renewed; empty when none is known."""
    try:
        return (folder / HOME).read_text().strip()[:ADDRESS_CHARS_MAX]
    except (OSError, UnicodeDecodeError):
        return ""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock; yields False, at once, when another process has it.  Raise `OSError`."""
    fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | _CLOEXEC, 0o600)
    try:
        yield _is_locked(fd)
    finally:
        os.close(fd)


def _is_locked(fd: int) -> bool:
    """Lock a file, unless another process has; where it cannot be locked (Windows), two may renew at once."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
