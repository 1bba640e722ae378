"""What a client of NVFlare's first example trains."""

import numpy as np
import nvflare.client as flare
from nvflare.app_common.np.constants import NPConstants


def main():
    """Train whenever a model comes."""
    flare.init()
    steps = {"site-1": 1, "site-2": 3}[flare.get_site_name()]
    while flare.is_running():
        model = flare.receive()
        params = model.params[NPConstants.NUMPY_KEY]
        flare.send(
            flare.FLModel(
                params={NPConstants.NUMPY_KEY: params + steps},
                params_type="FULL",
                metrics={"weight_mean": np.mean(params), "site": flare.get_site_name(), "good": True},
                current_round=model.current_round,
                meta={"NUM_STEPS_CURRENT_ROUND": steps},
            )
        )


if __name__ == "__main__":
    main()
