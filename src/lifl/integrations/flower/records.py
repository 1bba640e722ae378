"""Flower's records as arrays, and back; what of them a message of ours carries beside."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, RecordDict

from lifl.client.packing import numpy_dtype
from lifl.client.tensors import Array
from lifl.core.errors import Refused
from lifl.core.limits import METRIC_NAME_CHARS_MAX, METRICS_MAX
from lifl.core.schema import DTYPE_BYTES

log = logging.getLogger("flwr")
RECORD = "lifl"
"""The ConfigRecord in which the two sides speak to each other; the app's own code sees none of it."""
KEY, WEIGHTED_BY = "arrays-key", "weighted-by"
DID, WHY = "did", "why"
ROUNDS, CONFIG_KEY, ROUND = "rounds", "config-key", "server-round"
"""How many rounds a message is for; where the app's configuration stands, in which the round is counted on."""
SUBMITTED, CARRIED, LATE, MODEL_WANTED, SEEN = "submitted", "carried", "late", "model-wanted", "seen"
"""What a client did: its update is in LIFL; it is in this reply; it was too late for its round; it has no model yet;
nothing that concerns LIFL."""
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def view(name: str, array: Any) -> Array:
    """Return the numbers of one of Flower's arrays where they lie, without a copy.

    Raise `Refused`, naming it, when its bytes are no array.
    """
    if isinstance(array, LentArray):
        lent: Array = array.lent
        return lent
    try:
        if array.stype != "numpy.ndarray":
            raise ValueError(f"it is stored as {array.stype!r}, not as a NumPy array")
        stream = io.BytesIO(array.data)
        header = _HEADERS.get(np.lib.format.read_magic(stream))
        if header is None:
            found: Array = array.numpy()
            return found
        shape, fortran_order, dtype = header(stream)
        if dtype.kind == "V" and array.dtype in DTYPE_BYTES:  # NumPy writes dtypes that are not its own as bytes
            dtype = numpy_dtype(array.dtype)
        count = int(np.prod(shape, dtype=np.int64))
        flat = np.frombuffer(array.data, dtype, count, stream.tell())
        return flat.reshape(shape, order="F" if fortran_order else "C")
    except (ValueError, TypeError, AttributeError, KeyError, OSError, EOFError) as error:
        text = f"array {name!r} cannot be read: {error or type(error).__name__}"
        raise Refused("bad-tensor", f"tensors.{name}", text) from error


def views(record: Mapping[str, Any]) -> dict[str, Array]:
    """Return name → array over the bytes of an ArrayRecord.  Raise `Refused`."""
    return {name: view(name, array) for name, array in record.items()}


class LentArray(FlowerArray):  # type: ignore[misc]
    """One of Flower's arrays over the memory of `array`, which nobody changes: its bytes are made when they are wanted.

    Then it is a plain one, as what it is called stands in Flower's messages.
    """

    def __init__(self, array: Array) -> None:
        about = {"dtype": str(array.dtype), "shape": tuple(array.shape), "stype": "numpy.ndarray"}
        self.__dict__.update(about, lent=array)

    def __getattr__(self, name: str) -> Any:
        """Return `data`, which is not there yet."""
        lent = self.__dict__.get("lent")
        if name != "data" or lent is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        made = FlowerArray(lent)
        del self.__dict__["lent"]
        self.__dict__["data"] = made.data
        object.__setattr__(self, "__class__", FlowerArray)
        return made.data

    def __setattr__(self, name: str, value: Any) -> None:
        """Change a plain one."""
        _made = self.data
        setattr(self, name, value)

    def __eq__(self, other: object) -> bool:
        """Compare two plain ones."""
        _made = self.data
        return bool(self == other)

    __hash__ = None  # type: ignore[assignment]  # as of Flower's

    def __reduce__(self) -> tuple[Any, ...]:
        """Be a plain one elsewhere."""
        return FlowerArray, (self.dtype, self.shape, self.stype, self.data)

    def numpy(self) -> Array:
        """Return a copy that may be changed."""
        found: Array = self.lent.copy()
        return found


def as_record(tensors: Mapping[str, Array]) -> Any:
    """Return an ArrayRecord with these arrays, in their order; they are not copied, and not to be changed any more."""
    record = ArrayRecord()
    for name in tensors:
        array = np.asarray(tensors[name])
        # NumPy knows dtypes that are not its own as bytes: those are as Flower has them.
        record[name] = LentArray(array) if array.dtype.kind in "biufc" else FlowerArray(array)
    return record


def freed(record: Any) -> None:
    """Take the arrays out of an ArrayRecord: the messages that hold it stand in circles, and are freed much later."""
    for name in list(record):
        del record[name]


def sole_arrays(content: Any) -> Any:
    """Return the ArrayRecord of a reply.  Raise `Refused` unless there is just one."""
    records = list(content.array_records.values())
    if len(records) != 1:
        raise Refused("bad-reply", "arrays", f"the reply has {len(records)} ArrayRecords; one is expected")
    return records[0]


def weight_of(content: Any, weighted_by: str) -> float:
    """Return the weight of a reply.  Raise `Refused` unless its one MetricRecord has it, a number."""
    records = list(content.metric_records.values())
    if len(records) != 1:
        raise Refused("bad-reply", "metrics", f"the reply has {len(records)} MetricRecords; one is expected")
    weight = records[0].get(weighted_by)
    if not isinstance(weight, int | float):
        text = f"the reply's MetricRecord has no number {weighted_by!r} to weigh it by"
        raise Refused("bad-weight", "weight", text)
    return float(weight)


def with_same_metrics(contents: list[Any]) -> list[Any]:
    """Return the contents, each with the metrics that all have: what some have cannot be averaged over all."""
    records = [record for content in contents for record in content.metric_records.values()]
    common = set.intersection(*(set(record) for record in records))
    dropped = sorted({name for record in records for name in record} - common)
    for record in records if dropped else ():
        for name in dropped:
            record.pop(name, None)
    if dropped:
        log.warning("LIFL: not all replies have the metrics %s: they are left out", ", ".join(dropped))
    return contents


def sent_metrics(content: Any, weighted_by: str) -> dict[str, float]:
    """Return the metrics of a reply that go with an update: single numbers with names that LIFL takes."""
    (record,) = content.metric_records.values()
    found = {name: float(value) for name, value in record.items() if isinstance(value, int | float)}
    short = [name for name in found if name != weighted_by and 0 < len(name) <= METRIC_NAME_CHARS_MAX]
    return {name: found[name] for name in short[:METRICS_MAX]}


def without(content: Any, *keys: str) -> Any:
    """Return a RecordDict with the same records but those of `keys`."""
    return RecordDict({key: record for key, record in content.items() if key not in keys})
