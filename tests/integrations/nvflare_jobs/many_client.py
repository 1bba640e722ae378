"""Trains what `many_job.py` sends; its arguments say what is special: the type of the updates, and faults."""

import sys

import numpy as np
import nvflare.client as flare


def trained(params, number, kind):
    """What this client makes of a model: every number of it takes part."""
    step = {name: np.asarray(value) * 0 + (number + 1) / 7 for name, value in params.items()}
    step = {name: value.astype(np.asarray(params[name]).dtype) for name, value in step.items()}
    full = {name: params[name] + step[name] for name in params}
    return (step if kind == "DIFF" else full) | {"number": params["number"] + number}


def main():
    """Train whenever a model comes."""
    kind, *faults = sys.argv[1].split(",")
    flare.init()
    site = flare.get_site_name()
    number = int(site.rpartition("-")[2])
    while flare.is_running():
        model = flare.receive()
        params = trained(model.params, number, kind)
        if "nan" in faults and number == 2:
            params["wide"] = params["wide"] * np.nan
        if "mixed" in faults and number == 2:
            kind = "DIFF"
        if "part" in faults:
            params = {name: np.asarray(value, np.float64) for name, value in params.items() if name != "half"}
        metrics = {"loss": 1.0 / number, "only": 2.0} if number == 1 else {"loss": 1.0 / number}
        if "unmeasured" in faults and number == 3:
            metrics = None
        meta = {"NUM_STEPS_CURRENT_ROUND": 10 * number}
        flare.send(flare.FLModel(params=params, params_type=kind, metrics=metrics, meta=meta))


if __name__ == "__main__":
    main()
