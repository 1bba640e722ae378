"""quickstart: the ClientApp."""

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from quickstart.task import load_data, loss
from quickstart.task import train as train_fn

app = ClientApp()


@app.train()
def train(msg: Message, context: Context):
    net = {name: array.numpy() for name, array in msg.content["arrays"].items()}
    x, y = load_data(int(context.node_config["partition-id"]))
    net = train_fn(net, x, y, context.run_config["local-epochs"], msg.content["config"]["lr"])
    arrays = ArrayRecord({name: Array(array) for name, array in net.items()})
    metrics = MetricRecord({"train_loss": loss(net, x, y), "num-examples": len(y)})
    return Message(content=RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context):
    net = {name: array.numpy() for name, array in msg.content["arrays"].items()}
    x, y = load_data(int(context.node_config["partition-id"]))
    metrics = MetricRecord({"eval_loss": loss(net, x, y), "num-examples": len(y)})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=msg)
