"""A copy of a graph of objects, cheap to take and exact to restore, that can be written out.

`take` copies every *mutable* object that can be reached (containers, and instances of classes of `lifl.core`), each
once; a reference to one of them becomes a `Ref`.  Immutable values are shared with the original.  What a container
holds is looked at only if its first element is not such a value, or a tuple: our containers are of one kind of element
each, but a tuple's last place may be empty.  So the cost goes with the number of mutable objects, hardly with that of
clients.

`pack` and `unpack` turn a copy into msgpack and back.  Classes are named by their module, and only those that
`lifl.core` itself defines are restored: a file can make no other code run.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from enum import Enum
from importlib import import_module
from typing import Any, NamedTuple

import msgpack
import msgspec

from lifl.core.errors import LocalFault, RemoteFault

PACKAGE = "lifl.core."
_SCALARS = (type(None), bool, int, float, str, bytes)
_IMMUTABLE = (*_SCALARS, frozenset, Enum, msgspec.Struct, msgspec.Raw, msgspec.UnsetType, type)
_LEAF, _MUTABLE, _TUPLE = 0, 1, 2
_PLAIN_FIELDS = frozenset({"int", "float", "str", "bytes", "bool"})
_kinds: dict[type, int] = {}
"""By class, as it was looked up: what never refers to a mutable object, what is one, and tuples, which may do so."""
_CONTAINERS: dict[str, Callable[[], Any]] = {
    "dict": dict,
    "list": list,
    "set": set,
    "deque": deque,
    "counter": Counter,
    "defaultdict": lambda: defaultdict(dict),
}
_CONTAINER_NAMES: dict[type, str] = {
    dict: "dict",
    list: "list",
    set: "set",
    deque: "deque",
    Counter: "counter",
    defaultdict: "defaultdict",
}


class Ref(NamedTuple):
    """Stands for the mutable object with this number."""

    number: int


class Snapshot(NamedTuple):
    """A copy: for each mutable object the name of its class, and its elements or attributes; the first is the root."""

    objects: list[tuple[str, Any]]


def take(root: Any, left_out: type) -> Snapshot:
    """Return a copy of `root` and all that it reaches; an instance of `left_out` is restored by its own `blank()`."""
    numbers: dict[int, int] = {}
    todo: list[Any] = []
    objects: list[tuple[str, Any]] = []

    def seen(value: Any) -> Any:
        kind = _kind_of(value)
        if kind == _LEAF:
            return value
        if kind == _TUPLE:
            return value if _plain(value) else _like(value, [seen(item) for item in value])
        number = numbers.get(id(value))
        if number is None:
            number = numbers[id(value)] = len(todo)
            todo.append(value)
        return Ref(number)

    seen(root)
    kinds = _kinds
    for value in todo:  # grows as it goes
        if isinstance(value, left_out):
            objects.append((_name(type(value)), None))
            continue
        name = _CONTAINER_NAMES.get(type(value))
        if name is None or isinstance(value, dict):
            items = vars(value) if name is None else value
            if name is not None and _only_plain(items.values()):
                objects.append((name, dict(items)))
                continue
            # Most attributes are leaves: to ask `seen` of each would cost most of the copy.
            copied = {key: item if kinds.get(type(item)) == _LEAF else seen(item) for key, item in items.items()}
            objects.append((name or _name(type(value)), copied))
        else:
            objects.append((name, list(value) if _only_plain(value) else [seen(item) for item in value]))
    return Snapshot(objects)


def restore(snapshot: Snapshot) -> Any:
    """Return a new root like the one that was copied.  Raise `RemoteFault` when the copy is damaged."""
    try:
        return _restored(snapshot.objects)
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise RemoteFault(f"the record is damaged: {error!r}") from error


def _restored(objects: list[tuple[str, Any]]) -> Any:
    shells = [_shell(name, content) for name, content in objects]

    def real(value: Any) -> Any:
        if isinstance(value, Ref):
            return shells[value.number]
        if isinstance(value, tuple):
            return _like(value, [real(item) for item in value])
        return value

    for shell, (name, content) in zip(shells, objects, strict=True):
        if content is None:
            continue
        if name not in _CONTAINERS:
            vars(shell).update({key: real(item) for key, item in content.items()})
        elif isinstance(shell, dict):
            dict.update(shell, {key: real(item) for key, item in content.items()})  # a Counter's own would count
        elif isinstance(shell, set):
            shell.update(map(real, content))
        else:
            shell.extend(map(real, content))
    return shells[0]


def _shell(name: str, content: Any) -> Any:
    make = _CONTAINERS.get(name)
    if make is not None:
        return make()
    cls = _class(name)
    return cls.blank() if content is None else cls.__new__(cls)


def _kind_of(value: Any) -> int:
    cls = type(value)
    kind = _kinds.get(cls)
    if kind is None:
        kind = _kinds[cls] = _kind(cls)
    if cls is defaultdict and value.default_factory is not dict:
        raise LocalFault(f"a defaultdict that makes a {value.default_factory} cannot be copied")
    return kind


def _kind(cls: type) -> int:
    if cls in _CONTAINER_NAMES:
        return _MUTABLE
    if issubclass(cls, _IMMUTABLE):
        return _LEAF
    if issubclass(cls, tuple):
        fields = cls.__annotations__.values() if hasattr(cls, "_fields") else ("",)
        return _LEAF if all(getattr(each, "__forward_arg__", each) in _PLAIN_FIELDS for each in fields) else _TUPLE
    if not cls.__module__.startswith(PACKAGE):
        raise LocalFault(f"a {cls.__module__}.{cls.__qualname__} cannot be copied with the engine's state")
    return _MUTABLE


def _may_refer(value: Any) -> bool:
    """Return whether a value is a mutable object, or a tuple with one."""
    kind = _kind_of(value)
    return kind == _MUTABLE or (kind == _TUPLE and any(map(_may_refer, value)))


def _only_plain(values: Iterable[Any]) -> bool:
    """Return whether none of a container's elements is a mutable object, or a tuple with one."""
    first = next(iter(values), None)
    kind = _kind_of(first)
    return kind == _LEAF or (kind == _TUPLE and not any(map(_may_refer, values)))


def _plain(value: tuple[Any, ...]) -> bool:
    return not any(map(_may_refer, value))


def _like(value: tuple[Any, ...], items: list[Any]) -> Any:
    """Return a tuple of the kind of `value`."""
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _class(name: str, base: type = object) -> Any:
    """Return the class of this name, below `base`.  Raise `RemoteFault` unless `lifl.core` defines it."""
    module, _, qualname = str(name).partition(":")
    found: Any = None
    if module.startswith(PACKAGE):
        try:
            found = import_module(module)
            for part in qualname.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise RemoteFault(f"a record names the class {name!r}, which this version does not have") from error
    # What a module of ours has imported is not ours, nor is a function a class.
    if not (isinstance(found, type) and found.__module__.startswith(PACKAGE) and issubclass(found, base)):
        raise RemoteFault(f"a record names the class {name!r}, which is none of LIFL's decisions")
    return found


# ---- as bytes ------------------------------------------------------------------------------------------------------


def pack(value: Any) -> bytes:
    """Return plain values, snapshots, messages and events as msgpack."""
    packed: bytes = msgpack.packb(_flat(value))
    return packed


def unpack(data: bytes) -> Any:
    """Return what `pack` was given.  Raise `RemoteFault` when the bytes are no such thing."""
    try:
        return _built(msgpack.unpackb(data, strict_map_key=False))
    except (ValueError, TypeError, LookupError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise RemoteFault(f"the record is damaged: {error!r}") from error


def _flat(value: Any) -> Any:
    """Return `value` as scalars and lists, each list headed by what it is."""
    if type(value) in _SCALARS:
        return value
    if value is msgspec.UNSET:
        return ["unset"]
    if isinstance(value, Enum):
        return ["enum", _name(type(value)), value.name]
    if isinstance(value, msgspec.Raw):
        return ["raw", bytes(value)]
    if isinstance(value, msgspec.Struct):
        return ["struct", _name(type(value)), [_flat(getattr(value, name)) for name in value.__struct_fields__]]
    if isinstance(value, tuple):
        return ["tuple", _name(type(value)) if hasattr(value, "_fields") else "", [_flat(item) for item in value]]
    if isinstance(value, dict):
        return ["dict", [[_flat(key), _flat(item)] for key, item in value.items()]]
    if isinstance(value, list | set | frozenset | deque):
        kind = "frozenset" if isinstance(value, frozenset) else "list"
        return [kind, [_flat(item) for item in value]]
    raise LocalFault(f"a {type(value).__name__} cannot be written to a record")


def _built(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    kind, *rest = value
    match kind:
        case "unset":
            return msgspec.UNSET
        case "enum":
            return _class(rest[0], Enum)[rest[1]]
        case "raw":
            return msgspec.Raw(memoryview(rest[0]))
        case "struct":
            return _class(rest[0], msgspec.Struct)(*map(_built, rest[1]))
        case "tuple":
            items = [_built(item) for item in rest[1]]
            return _class(rest[0], tuple)(*items) if rest[0] else tuple(items)
        case "dict":
            return {_built(key): _built(item) for key, item in rest[0]}
        case "frozenset":
            return frozenset(map(_built, rest[0]))
        case "list":
            return [_built(item) for item in rest[0]]
    raise RemoteFault(f"a record has a {kind!r}, which is nothing that it can have")
