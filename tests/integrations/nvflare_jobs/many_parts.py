"""Parts of the job in `many_job.py`: they go into the job, and run on its server and at its clients."""

import os

import msgspec
import numpy as np
from nvflare.apis.dxo import from_shareable
from nvflare.apis.filter import Filter
from nvflare.app_common.abstract.model import ModelLearnableKey, make_model_learnable
from nvflare.app_common.abstract.model_persistor import ModelPersistor


def first_model():
    """A model of every kind that is averaged, one tensor that is excluded, and a number."""
    rng = np.random.default_rng(4)
    return {
        "zz.weight": rng.normal(size=(300, 40)).astype(np.float32),
        "half": rng.normal(size=64).astype(np.float16),
        "wide": rng.normal(size=(3, 3)),
        "aa.bias": np.float32(0.5) * np.ones((), np.float32),
        "skip.this": np.ones(5, np.float32),
        "number": 0.25,
    }


class Persistor(ModelPersistor):
    """Saves all parameters by name; `more` is in the model, too."""

    def __init__(self, more=None):
        super().__init__()
        self.more = more

    def load_model(self, fl_ctx):
        return make_model_learnable(weights=first_model() | (self.more or {}), meta_props={})

    def save_model(self, model, fl_ctx):
        folder = fl_ctx.get_engine().get_workspace().get_result_root(fl_ctx.get_job_id())
        os.makedirs(folder, exist_ok=True)
        np.savez(os.path.join(folder, "model.npz"), **model[ModelLearnableKey.WEIGHTS])


class CutOff(Filter):
    """Stands for a network in which one site does not reach the gateway: its tickets lead nowhere."""

    def __init__(self, site):
        super().__init__()
        self.site = site

    def process(self, shareable, fl_ctx):
        import base64

        from lifl.aggregator.tickets import BEGIN, read_ticket
        from lifl.integrations.references import TICKET

        data = from_shareable(shareable).data
        if fl_ctx.get_identity_name() == self.site and TICKET in data:
            content = msgspec.structs.replace(read_ticket(data[TICKET]), addresses=("127.0.0.1:1",))
            shareable["DXO"]["data"] = data | {
                TICKET: BEGIN + base64.urlsafe_b64encode(msgspec.msgpack.encode(content)).decode()
            }
        return shareable
