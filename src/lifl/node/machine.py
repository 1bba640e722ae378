"""What a node asks of its machine: the state folder, the arena, listening sockets, CPU meters."""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from lifl.confine import box
from lifl.core.config.job import JobConfig
from lifl.core.config.node import NodeConfig, asks_for_cookie, secured
from lifl.core.config.values import joined_address, split_address
from lifl.core.errors import ConfigError, ResourceFault
from lifl.core.ids import Key, Kind
from lifl.core.limits import CLIENTS_FILE_BYTES_MAX, OBJECTS_MAX, STATE_DIR_BYTES_MAX, WORKER_DATA_BYTES_MIN
from lifl.core.modelfile import LENGTH_BYTES, decode_header, header_bytes
from lifl.core.planning.treatment import trainable_of
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.body_ranges import streams_for
from lifl.core.protocol.contribution import Contribution, unpack_contributions
from lifl.core.schema import TensorSpec
from lifl.node import cgroups, descriptors
from lifl.node.children import Child
from lifl.node.modes import private_folder, remedy, told
from lifl.node.service_manager import Place
from lifl.shm.layout import ObjectState
from lifl.shm.owned_arena import OwnedArena
from lifl.shm.segment import SegmentMissing, SegmentUnfinished, SegmentUnusable, remove_segment
from lifl.tls import cookie_file

log = logging.getLogger("lifl.machine")

BACKLOG = 512
CUT = "its shared memory was cut by another program of the node's account, which may be a client of it"
PROCESSES_BYTES = 128 * 1024 * 1024
"""What the processes of a node take beside the arena, before a worker folds anything."""
GATEWAY_QUOTAS = (
    "connections_max",
    "connections_per_client",
    "connections_per_address",
    "requests_per_s",
    "client_bytes_per_s",
)
"""Keys of a node's config that the gateway is told."""


def state_folder(config: NodeConfig) -> Path:
    """Return the node's folder, made if need be, closed to other users.

    Raise `ResourceFault` when it cannot be made or written to, or when other users may write to it.
    """
    chosen = config.state_dir or os.environ.get("LIFL_STATE") or "~/.local/state/lifl"
    try:
        folder = Path(chosen).expanduser().absolute()
    except (RuntimeError, OSError) as error:
        raise ResourceFault(f"state folder {chosen} cannot be found: {error}; give an absolute path") from error
    if len(os.fsencode(folder)) > STATE_DIR_BYTES_MAX:
        raise ResourceFault(
            f"state folder {folder} has a path of {len(os.fsencode(folder))} bytes; the sockets in it allow at most "
            f"{STATE_DIR_BYTES_MAX}: choose a shorter one with --state"
        )
    try:
        private_folder(folder)
    except OSError as error:
        raise ResourceFault(
            f"state folder {folder} cannot be made: {error.strerror}; choose another with --state"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        text = f"state folder {folder}, of uid {folder.stat().st_uid}, is not writable by this user"
        raise ResourceFault(f"{text}: choose another with --state, or start the node as that user; {remedy(folder)}")
    with told(folder):
        private_folder(folder / "jobs")
    return folder


def open_arena(name: str, config: NodeConfig, node: int) -> tuple[OwnedArena, list[str]]:
    """Return the arena that a killed daemon left, with what is sealed in it, or a new one; and warnings."""
    try:
        arena = OwnedArena.adopt(name)
    except SegmentMissing:
        check_memory_limit(config.arena_bytes)
        return OwnedArena.create(name, config.arena_bytes, node, OBJECTS_MAX), []
    except (SegmentUnfinished, SegmentUnusable) as error:
        remove_segment(name)
        check_memory_limit(config.arena_bytes)
        said = f"the arena of an earlier lifld could not be adopted and was made anew: {error}"
        return OwnedArena.create(name, config.arena_bytes, node, OBJECTS_MAX), [said]
    if arena.arena_bytes == config.arena_bytes and arena.node == node:
        return arena, []
    if arena.node == node and any(entry.state == ObjectState.SEALED for _, entry in arena.live()):
        said = (
            f"the arena keeps its {arena.arena_bytes} bytes, not {config.arena_bytes}: it holds updates of running "
            "rounds; `lifl down`, then `lifl up` makes it anew"
        )
        return arena, [said]
    arena.close(unlink=True)
    check_memory_limit(config.arena_bytes)
    return OwnedArena.create(name, config.arena_bytes, node, OBJECTS_MAX), []


def tell_of_segments(arena: OwnedArena, gateway: Child) -> None:
    """Have the gateway told of segments that begin or end after it has: it opens no file.

    What it gets, and hands on to local clients, makes no segment shorter (`box.keep_lengths`): that holds for what a
    thread opens, so there is one for it.
    """
    opener = ThreadPoolExecutor(1, "segments", box.keep_lengths)

    def opened(number: int, fd: int) -> None:
        handed = opener.submit(os.open, f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC).result()
        try:
            gateway.send(gm.SegmentOpened(number), descriptors=[handed])
        finally:
            os.close(handed)

    arena.places.on_open = opened
    arena.places.on_closed = lambda number: gateway.send(gm.SegmentClosed(number))


def mend(arena: OwnedArena, broken: Callable[[int, str], None]) -> None:
    """Make whole what another program has cut out of jobs' memory; tell of the jobs that have lost it."""
    for job in arena.mend():
        log.warning("arena.mended job=%d %s", job, CUT)
        broken(job, CUT)


class ArenaStore:
    """The arena as `core/object_store.ObjectStore`."""

    def __init__(self, arena: OwnedArena) -> None:
        self.arena = arena

    @property
    def free_bytes(self) -> int:
        """Bytes in no object."""
        return self.arena.free_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes of live objects."""
        return self.arena.used_bytes

    def alloc(
        self, kind: Kind, job: int, epoch: int, data_bytes: int, meta_bytes: int = 0, slab: Hashable | None = None
    ) -> Key:
        """See `shm/owned_arena.OwnedArena.alloc`."""
        return self.arena.alloc(kind, job, epoch, data_bytes, meta_bytes, slab)

    def free(self, key: Key) -> None:
        """See `shm/owned_arena.OwnedArena.free`."""
        self.arena.free(key)

    def sealed(self, key: Key) -> bool:
        """Return whether the object is complete."""
        return self.arena.entry(key).state == ObjectState.SEALED

    def extent_bytes(self, key: Key) -> int:
        """Return the bytes that the object takes."""
        return self.arena.entry(key).extent_bytes

    def epoch_of(self, key: Key) -> int:
        """Return the epoch that the object was allocated for."""
        return self.arena.entry(key).round

    def kind_of(self, key: Key) -> Kind:
        """Return what the object is."""
        return Kind(self.arena.entry(key).kind)

    def members(self, key: Key) -> list[Contribution]:
        """Return the contributions in a sealed update or partial.  Raise `RemoteFault` when its meta is damaged."""
        with self.arena.meta(key) as meta:
            return unpack_contributions(meta)

    def close_slab(self, slab: Hashable) -> None:
        """Give back what the slab has reserved: no more objects of it will come."""
        self.arena.close_slab(slab)

    def begin_job(self, job: int, owner: str) -> None:
        """See `shm/owned_arena.OwnedArena.begin_job`."""
        self.arena.begin_job(job, owner)

    def lend(self, key: Key) -> None:
        """See `shm/owned_arena.OwnedArena.lend`."""
        self.arena.lend(key)

    def end_job(self, job: int) -> None:
        """Let the job's pages be others': no more objects of it will come."""
        self.arena.end_job(job)


def cores(root: Path = cgroups.ROOT) -> int:
    """Return how many cores this process may keep busy: those it may run on, or what its quota of CPU time gives."""
    quota = cgroups.cpu_quota(root)
    allowed = len(os.sched_getaffinity(0))
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota.cores)))


def gateway_settings(config: NodeConfig, folder: Path, root: Path = cgroups.ROOT) -> list[str]:
    """Return the flags by which the gateway is told the node's quotas, over how many connections a body may go, and the
    cookie that it asks for.

    Raise `ResourceFault` when that cannot be kept in the folder.
    """
    settings = {quota: getattr(config, quota) for quota in GATEWAY_QUOTAS}
    settings["connections_max"] = descriptors.connections_max(config)
    settings["streams"] = streams_for(config.streams, cores(root), secured(config))
    if asks_for_cookie(config):
        with told(folder):
            settings["cookie"] = cookie_file.made(folder)
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def workers_max(config: NodeConfig, root: Path = cgroups.ROOT) -> int:
    """Return the most workers: what is configured, or one more than there are cores."""
    return config.workers_max or cores(root) + 1


def check_memory_limit(arena_bytes: int, root: Path = cgroups.ROOT) -> None:
    """Raise `ResourceFault` when the container's memory is too small for arena and processes: they would be killed."""
    limit = cgroups.memory_limit(root)
    if limit is not None and arena_bytes + PROCESSES_BYTES > limit.limit_bytes:
        raise ResourceFault(
            f"an arena of {arena_bytes} bytes, and {PROCESSES_BYTES} for the node's processes, are more than the "
            f"{limit.limit_bytes} bytes of memory that this container is allowed ({limit.where}): raise that limit, or "
            "give the node a smaller arena (--arena-bytes)"
        )


def worker_data_bytes(config: NodeConfig, root: Path = cgroups.ROOT) -> int:
    """Return the memory that a worker may have for itself.

    It is a fair share, with `lifld` and gateway, of what the arena leaves of the machine's or the container's.
    """
    limit, total = cgroups.memory_limit(root), int(psutil.virtual_memory().total)
    left = (total if limit is None else min(total, limit.limit_bytes)) - config.arena_bytes
    return max(WORKER_DATA_BYTES_MIN, left // (workers_max(config, root) + 2))


def listen_tcp(address: str, flag: str = "--listen", handed: dict[Place, socket.socket] | None = None) -> socket.socket:
    """Return a listening socket at HOST:PORT, which `flag` chooses; where `handed` has one, it is taken out of there.

    Raise `ResourceFault` when the port is taken or the host another's.
    """
    host, port = split_address(address, "listen")
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        if handed and where[:2] in handed:
            listener = handed.pop(where[:2])
            listener.setblocking(False)
            return listener
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ResourceFault(f"cannot listen on {address}: {error}; choose another with {flag} HOST:PORT") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        advice = f"choose another port with {flag} {host}:PORT (0: any free one)"
        if error.errno == errno.EADDRNOTAVAIL:
            advice = f"{host} is no address of this machine, choose one with {flag} HOST:PORT"
        raise ResourceFault(f"cannot listen on {address}: {error.strerror}; {advice}") from error
    listener.setblocking(False)
    return listener


def shown(listener: socket.socket) -> str:
    """Return the HOST:PORT at which a socket listens."""
    host, port = listener.getsockname()[:2]
    return joined_address(host, port)


def read_clients(path: str) -> list[str]:
    """Return the names and patterns of clients that a file lists, a line each; ``#`` begins a comment.

    Raise `ConfigError` when it cannot be read; what the lines say is not looked at.
    """
    where = "selection.clients_file"
    if not Path(path).is_file():
        raise ConfigError(where, f"there is no file {path}; give one with a client's name on each line")
    try:
        with open(path, "rb") as file:
            content = file.read(CLIENTS_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(where, f"cannot read {path}: {error.strerror}") from error
    if len(content) > CLIENTS_FILE_BYTES_MAX:
        raise ConfigError(where, f"{path} is longer than {CLIENTS_FILE_BYTES_MAX} bytes; use patterns (hospital-*)")
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(where, f"{path} is no text in UTF-8") from error
    return [name for line in lines if (name := line.partition("#")[0].strip())]


def read_schema(path: str) -> tuple[TensorSpec, ...]:
    """Return the tensors of a safetensors file, from its header.  Raise `Refused` or `ResourceFault`, naming it."""
    try:
        with open(path, "rb") as file:
            length = header_bytes(file.read(LENGTH_BYTES), path)
            header = decode_header(file.read(length), os.fstat(file.fileno()).st_size, path)
    except OSError as error:
        raise ResourceFault(f"model file {path} cannot be read: {error.strerror}; check model.path") from error
    return header.tensors


def read_tensors(config: JobConfig) -> tuple[TensorSpec, ...]:
    """Return the tensors that a job is about, from the header of its model's file.

    Raise as `read_schema`, and `ConfigError` when ``job.trainable`` names none of them.
    """
    return trainable_of(read_schema(config.model.path), config.trainable)


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU seconds (user and system) of processes; those that are gone count nothing."""
    total = 0.0
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
