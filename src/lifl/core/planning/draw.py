"""Which clients are drawn for a round, of those that may be: the same decision wherever it is made.

A draw depends on its seed, on the clients' names, on what they have said of themselves, and on their last losses.

* By default each client is as likely as any other.
* With `stratify`, a label, the clients are groups by its value, those without it one of their own.  Each group has the
  share of places that it has of the clients, rounded by the largest remainders.
* ``power_of_choice`` (Cho, Wang and Joshi, *Client Selection in Federated Learning*, 2020; its variant rpow-d, with the
  last losses that are known): more are drawn than are wanted, each the more likely the more examples it has; of these
  the ones with the greatest last loss are taken.  One whose loss is not known counts as having the greatest.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from lifl.core.config.job import SelectionSection
from lifl.core.fields import Properties

NOTHING_SAID = Properties()
CANDIDATES_TIMES = 2
"""So many times the wanted ones are drawn by power of choice where the job does not say."""


def seed_of(section: SelectionSection, number: int, attempt: int, selected: int) -> str:
    """Return what a draw of an attempt at a round depends on, when so many are selected already."""
    return f"{section.seed}/{number}/{attempt}/{selected}"


def drawn(
    clients: Sequence[str],
    wanted: int,
    seed: str,
    section: SelectionSection,
    said: Mapping[str, Properties],
    losses: Mapping[str, float],
) -> list[str]:
    """Return `wanted` of the clients, or all of them when they are no more."""
    if len(clients) <= wanted:
        return list(clients)
    if not isinstance(section.stratify, str):
        return _chosen(clients, wanted, seed, section, said, losses)
    groups: dict[str, list[str]] = {}
    for client in clients:
        value = said.get(client, NOTHING_SAID).labels.get(section.stratify, "")
        groups.setdefault(value, []).append(client)
    places = shares({value: len(group) for value, group in groups.items()}, wanted)
    return [
        client
        for value in sorted(groups)
        for client in _chosen(groups[value], places[value], f"{seed}/{value}", section, said, losses)
    ]


def shares(sizes: Mapping[str, int], wanted: int) -> dict[str, int]:
    """Return how many of `wanted` places each group gets: its share, rounded by the largest remainders."""
    total = sum(sizes.values())
    places = {value: wanted * size // total for value, size in sizes.items()}
    left = wanted - sum(places.values())
    by_remainder = sorted(sizes, key=lambda value: (-(wanted * sizes[value] % total), value))
    for value in by_remainder[:left]:
        places[value] += 1
    return places


def _chosen(
    clients: Sequence[str],
    wanted: int,
    seed: str,
    section: SelectionSection,
    said: Mapping[str, Properties],
    losses: Mapping[str, float],
) -> list[str]:
    ordered, rng = sorted(clients), random.Random(seed)
    if section.strategy != "power_of_choice":
        return rng.sample(ordered, wanted)
    most = section.candidates if isinstance(section.candidates, int) else CANDIDATES_TIMES * wanted
    keys = {client: _key(rng.random(), said.get(client, NOTHING_SAID)) for client in ordered}
    candidates = sorted(ordered, key=lambda client: keys[client])[: max(most, wanted)]
    # Sorting keeps the order of the draw among equals.
    return sorted(candidates, key=lambda client: -losses.get(client, math.inf))[:wanted]


def _key(number: float, said: Properties) -> float:
    """Return the place of a client in a draw by weight (Efraimidis and Spirakis, 2006): the first ones are drawn."""
    examples = said.examples if isinstance(said.examples, int) else 1
    return -math.log(1.0 - number) / examples if examples else math.inf
