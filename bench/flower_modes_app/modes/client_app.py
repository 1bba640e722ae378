"""Adds a constant to every array; with LIFL's mod where the run says so."""

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from lifl.integrations.flower import lifl_mod


def chosen_mod(message: Message, context: Context, call_next):
    """Be LIFL's mod, or none."""
    return lifl_mod(message, context, call_next) if context.run_config["mod"] else call_next(message, context)


app = ClientApp()


@app.train(mods=[chosen_mod])
def train(message: Message, context: Context) -> Message:
    """Return the arrays, each larger by what is the node's own."""
    i = int(context.node_config["partition-id"])
    arrays = {name: array.numpy() for name, array in message.content["arrays"].items()}
    new = ArrayRecord({name: Array(array + array.dtype.type(0.001 * (i + 1))) for name, array in arrays.items()})
    metrics = MetricRecord({"num-examples": 20 + 37 * i % 101, "client": float(i)})
    return Message(RecordDict({"arrays": new, "metrics": metrics}), reply_to=message)
