"""A trainer of the digits example: a real process with its own share of the data.

    python -m lifl.examples.digits_trainer --gateway 127.0.0.1:7433 --job digits --client 3 --clients 16

It waits to be selected, trains the round's model on its share and submits the result, until the job is
over.  How it trains comes with each round from the job's config (`client.options`).
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lifl import Client
from lifl.core.errors import LiflError
from lifl.examples import digits

DEFAULTS: dict[str, Any] = {"alpha": 0.5, "epochs": 8, "batch": 8, "learning_rate": 0.1}


def main() -> None:
    """Run until the job is over."""
    parser = argparse.ArgumentParser(description="Trains on one share of scikit-learn's digits.")
    parser.add_argument(
        "--gateway",
        default="127.0.0.1:7433",
        help="HOST:PORT, unix:PATH or a state folder; of a cluster several, with commas between them",
    )
    parser.add_argument("--job", default="digits")
    parser.add_argument(
        "--client", type=_shares, required=True, help="which share, from 0; 0-9: ten clients as threads"
    )
    parser.add_argument("--clients", type=int, default=16, help="into how many shares the data are split")
    parser.add_argument("--data", type=Path, help="a file of digits.save(); default: scikit-learn")
    parser.add_argument("--identities", type=Path, help="where each client's identity is, in a folder of its name")
    given = parser.parse_args()
    if not 0 <= given.client[0] <= given.client[-1] < given.clients:
        parser.error(f"--client is 0 to {given.clients - 1}")
    examples, _test = digits.load(given.data)
    with ThreadPoolExecutor(len(given.client)) as pool:
        taking_part = [pool.submit(_take_part, given, number, examples) for number in given.client]
    ends = [(number, done.exception()) for number, done in zip(given.client, taking_part, strict=True)]
    texts = [f"client {number}: {error}" for number, error in ends if isinstance(error, LiflError)]
    for _number, error in ends:
        if error is not None and not isinstance(error, LiflError):
            raise error
    if texts:
        sys.exit("\n".join(texts))


def _shares(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def client_name(number: int) -> str:
    """Return the name of the client with that share."""
    return f"digits-{number:03}"


def _take_part(given: argparse.Namespace, number: int, examples: digits.Examples) -> None:
    share: digits.Examples | None = None
    name = client_name(number)
    identity = given.identities / name if given.identities else None
    with Client(given.gateway, job=given.job, client=name, identity=identity) as client:
        for selected in client.rounds():
            options = DEFAULTS | selected.options
            if share is None:
                share = digits.split(examples, given.clients, options["alpha"])[number]
            model = digits.train(
                selected.model,
                share,
                epochs=options["epochs"],
                batch=options["batch"],
                learning_rate=options["learning_rate"],
                seed=selected.number * given.clients + number,
            )
            selected.submit(model, weight=len(share.labels), metrics=digits.evaluate(model, share))


if __name__ == "__main__":
    main()
