"""A job of three clients and a model of many tensors: `many_job.py WORKSPACE stock|aggregator|filters KIND[,FAULT]`.

Where it is run by NVFlare's simulator, or (POC) in a project that it provisions, a file of which is given.
"""

import sys

from many_parts import CutOff, Persistor
from nvflare.client.config import ExchangeFormat
from nvflare.fuel.utils.constants import FrameworkType
from nvflare.recipe import PocEnv, SimEnv
from nvflare.recipe.fedavg import FedAvgRecipe

from lifl.integrations.nvflare import LiflAggregator, LiflFilter, send_by_lifl

CLIENTS = 3


def made(way, special):
    """The recipe."""
    recipe = FedAvgRecipe(
        name="many",
        min_clients=CLIENTS,
        num_rounds=2,
        model_persistor=Persistor({"words": "of a tokenizer"} if "unfit" in special else None),
        framework=FrameworkType.RAW,
        server_expected_format=ExchangeFormat.RAW,
        train_script="many_client.py",
        train_args=special,
        aggregation_weights={"site-1": 2.5},
        exclude_vars="^skip",
        aggregator=None if way in ("stock", "alone") else LiflAggregator(),
        key_metric="loss",
        key_metric_mode="min",
    )
    if "cut" in special:
        recipe.add_client_input_filter(CutOff("site-2"), tasks=["train"])
    if way == "filters":
        send_by_lifl(recipe)
    if way == "alone":
        recipe.add_server_output_filter(LiflFilter(), tasks=["train"])
    return recipe


def main():
    """Run it."""
    workspace, way, special, *project = sys.argv[1:]
    recipe = made(way, special)
    if not project:
        recipe.execute(SimEnv(num_clients=CLIENTS, workspace_root=workspace))
        return
    env = PocEnv(num_clients=CLIENTS, project_conf_path=project[0])
    run = recipe.execute(env)
    try:
        print("RESULT", run.get_result(clean_up=False))
        print("STATUS", run.get_status())
    finally:
        env.stop()  # its files stay, the model is among them


if __name__ == "__main__":
    main()
