"""What the engine needs of an arena: `shm/` has the real one, the simulator its allocator alone."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

from lifl.core.ids import Key, Kind
from lifl.core.protocol.contribution import Contribution


class ObjectStore(Protocol):
    """The objects of an arena."""

    @property
    def free_bytes(self) -> int: ...

    @property
    def used_bytes(self) -> int: ...

    def alloc(
        self, kind: Kind, job: int, epoch: int, data_bytes: int, meta_bytes: int = 0, slab: Hashable | None = None
    ) -> Key: ...

    def free(self, key: Key) -> None: ...

    def sealed(self, key: Key) -> bool: ...

    def extent_bytes(self, key: Key) -> int: ...

    def close_slab(self, slab: Hashable) -> None: ...

    def end_job(self, job: int) -> None: ...

    def epoch_of(self, key: Key) -> int: ...

    def kind_of(self, key: Key) -> Kind: ...

    def members(self, key: Key) -> list[Contribution]: ...
