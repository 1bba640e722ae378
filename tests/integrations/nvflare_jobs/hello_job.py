"""A job as NVFlare documents it: `job.py WORKSPACE`."""

import sys

from nvflare.app_common.np.recipes.fedavg import NumpyFedAvgRecipe
from nvflare.recipe import SimEnv


def main():
    """Run it in the simulator."""
    recipe = NumpyFedAvgRecipe(
        name="hello-numpy",
        min_clients=2,
        num_rounds=2,
        model=[[1, 2, 3], [4, 5, 6], [7, 8, 9]],
        train_script="hello_client.py",
    )
    run = recipe.execute(SimEnv(num_clients=2, workspace_root=sys.argv[1]))
    print("the result is in", run.get_result())


if __name__ == "__main__":
    main()
