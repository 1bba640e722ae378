"""Nested tensors, as JAX's users have them, beside the flat names of a job's model.

    params = unflatten(round.model, params)
    round.submit(flatten(train(params)), weight=n)

A tree is made of mappings, lists, tuples (named ones, too) and dataclasses; its leaves are arrays of NumPy, JAX or
torch.  A leaf's name is its path with points between the steps: keys (texts and whole numbers), indices, fields.  As in
JAX, None holds no leaf, and a field that its dataclass calls static stays as it is.  JAX and torch are not imported.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from lifl.client.tensors import Array, Tensors, as_array, as_arrays
from lifl.client.torch_tensors import as_state_dict
from lifl.core.errors import LiflError, Refused
from lifl.core.limits import TENSOR_NAME_CHARS_MAX

_Children = list[tuple[object, Any]]
"""Each key, index or field, with what it leads to."""


def flatten(tree: Any) -> dict[str, Array]:
    """Return path → C-contiguous array for each leaf of `tree`; what lies in the host's memory is not copied.

    Raise `Refused`, naming the path, when a leaf is no array or has a dtype that cannot be aggregated, when two leaves
    have one path, and when a path is longer than a tensor's name may be.
    """
    found: dict[str, Array] = {}
    for name, leaf in _leaves(tree, ""):
        if name in found:
            raise _refused("bad-tensor", name, f"two leaves of the tree have the path {name!r}; rename a key")
        found[name] = as_array(name, leaf)
    return found


def unflatten(tensors: Tensors, like: Any) -> Any:
    """Return a tree of the structure of `like` with `tensors` as its leaves, each by its path: arrays by name, or the
    path of a safetensors file.

    Where `like` has an array of JAX or of torch there is one again, on the same device (of JAX, with the same
    sharding); else it is `tensors`' own.  JAX's `ShapeDtypeStruct` stands for an array.  To replace some leaves only,
    give ``flatten(like) | tensors``.

    Raise `Refused`, naming the path, when `tensors` lacks a leaf or has another, when dtype or shape differ, or when
    they are no tensors by name, nor a file of such; `ResourceFault` when a file cannot be read.
    """
    left = as_arrays(tensors)
    tree = _rebuilt(like, "", left)
    for name in left:
        raise _refused("unknown-tensor", name, f"the tree has no leaf {name!r}; give the tree that the job's model is")
    return tree


def _refused(code: str, name: str, text: str) -> Refused:
    return Refused(code, f"tensors.{name[:TENSOR_NAME_CHARS_MAX]}" if name else "tensors", text)


def _leaves(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
    children = _children(tree, name)
    if children is None:
        yield name, _leaf(tree, name)
    for step, child in children or ():
        yield from _leaves(child, _joined(name, step))


def _rebuilt(like: Any, name: str, left: dict[str, Array]) -> Any:
    children = _children(like, name)
    if children is None:
        return _placed(_leaf(like, name), name, left)
    made = [(step, _rebuilt(child, _joined(name, step), left)) for step, child in children]
    try:
        return _of_kind(like, made)
    except Exception as error:  # of a class that is not made as others of its kind are
        what = f"{name or 'the tree'}, a {type(like).__name__}, cannot be made again: {error or type(error).__name__}"
        raise _refused("bad-tensor", name, what) from error


def _children(tree: Any, name: str) -> _Children | None:
    """Return what a node of a tree holds, or None of a leaf."""
    try:
        if tree is None:
            return []
        if isinstance(tree, Mapping):
            return list(tree.items())
        if isinstance(tree, tuple) and hasattr(tree, "_fields"):
            return list(zip(tree._fields, tree, strict=True))
        if isinstance(tree, list | tuple):
            return list(enumerate(tree))
        if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
            return [(each.name, getattr(tree, each.name)) for each in dataclasses.fields(tree) if not _is_static(each)]
    except Exception as error:  # of whatever stands for a mapping or a dataclass
        what = f"{name or 'the tree'}, a {type(tree).__name__}, cannot be read: {error or type(error).__name__}"
        raise _refused("bad-tensor", name, what) from error
    return None


def _is_static(field: dataclasses.Field[Any]) -> bool:
    """Return whether JAX (and Equinox), or Flax, leave the field out of a tree."""
    return bool(field.metadata.get("static")) or field.metadata.get("pytree_node") is False


def _of_kind(like: Any, children: _Children) -> Any:
    """Return a node as `like` with these children."""
    if like is None:
        return None
    if isinstance(like, MutableMapping):
        made = copy.copy(like)  # a defaultdict keeps its default, an ordered one its order
        made.update(children)
        return made
    if isinstance(like, Mapping):
        return type(like)(dict(children))  # type: ignore[call-arg]
    if isinstance(like, tuple) and hasattr(like, "_fields"):
        return type(like)(*(child for _step, child in children))
    if isinstance(like, list | tuple):
        return type(like)(child for _step, child in children)
    made = copy.copy(like)
    for field, child in children:
        object.__setattr__(made, str(field), child)  # also of a frozen one, and past an __init__ of its own
    return made


def _joined(name: str, step: object) -> str:
    """Return the path one step on; its length ends the walk of a tree that holds itself."""
    if isinstance(step, bool) or not isinstance(step, str | int) or step == "":
        where = f"at {name!r}" if name else "of the tree"
        raise _refused("bad-tensor", name, f"the key {step!r} {where} is no path: use texts or whole numbers")
    path = f"{name}.{step}" if name else str(step)
    if len(path) > TENSOR_NAME_CHARS_MAX:
        text = f"the path {path[:60]}... is longer than {TENSOR_NAME_CHARS_MAX} characters; use fewer or shorter keys"
        raise _refused("bad-tensor", path, text)
    return path


def _leaf(leaf: Any, name: str) -> Any:
    if not name:
        raise _refused("bad-tensor", "", f"the tree is a {type(leaf).__name__}; put it into a dict, to give it a name")
    try:
        if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
            return leaf
    except Exception as error:  # of a property
        raise _refused("bad-tensor", name, f"{name!r}, a {type(leaf).__name__}, cannot be read: {error}") from error
    text = f"{name!r} is a {type(leaf).__name__}, no array; make it one, or put None in its place"
    raise _refused("bad-tensor", name, text)


def _placed(leaf: Any, name: str, left: dict[str, Array]) -> Any:
    """Take a leaf's tensor out of `left`, and return it as what `leaf` is."""
    if name not in left:
        text = f"there is no tensor {name!r} for the tree's leaf; to leave some as they are, flatten(tree) | tensors"
        raise _refused("missing-tensor", name, text)
    array = left.pop(name)
    dtype = str(leaf.dtype).removeprefix("torch.")
    if array.dtype.name != dtype:
        raise _refused("wrong-dtype", name, f"{name!r} is {array.dtype.name}, the tree's leaf is {dtype}")
    if array.shape != tuple(leaf.shape):
        raise _refused("wrong-shape", name, f"{name!r} has shape {array.shape}, the tree's leaf {tuple(leaf.shape)}")
    try:
        jax = sys.modules.get("jax")
        if jax is not None and isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
            return jax.device_put(array, getattr(leaf, "sharding", None))
        if "torch" in sys.modules and isinstance(leaf, sys.modules["torch"].Tensor):
            return as_state_dict({name: array})[name].to(leaf.device)
    except LiflError:
        raise
    except Exception as error:  # of JAX, of torch: no memory there, a device that is gone
        raise _refused("bad-tensor", name, f"{name!r} cannot be put where the tree's leaf is: {error}") from error
    return array
