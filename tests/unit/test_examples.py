"""The digits example: the split loses nobody, training learns, and the same seed gives the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifl.core.config.job import parse_job
from lifl.core.errors import ConfigError
from lifl.examples import digits, make_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[digits.Examples, digits.Examples]:
    pytest.importorskip("sklearn", reason="scikit-learn holds the data: pip install lifl[demo]")
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    digits.save(path)
    return digits.load(path)


def test_the_saved_data_are_the_data(data: tuple[digits.Examples, digits.Examples]) -> None:
    for saved, fresh in zip(data, digits.load(), strict=True):
        np.testing.assert_array_equal(saved.images, fresh.images)
        np.testing.assert_array_equal(saved.labels, fresh.labels)
    train, test = data
    assert len(train.labels) + len(test.labels) == 1797
    assert 0 <= train.images.min() < train.images.max() <= 1


@given(clients=st.integers(1, 24), alpha=st.floats(0.4, 100), seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_a_split_gives_each_example_to_exactly_one_client(clients: int, alpha: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, 1500)
    # Each image carries its own number.
    train = digits.Examples(np.arange(1500, dtype=np.float32)[:, None], labels)
    shares = digits.split(train, clients, alpha, seed)
    assert len(shares) == clients
    numbers = np.concatenate([share.images[:, 0] for share in shares]).astype(int)
    assert sorted(numbers) == list(range(1500))
    for share in shares:
        assert len(share.labels) >= digits.EXAMPLES_PER_CLIENT_MIN
        np.testing.assert_array_equal(share.labels, labels[share.images[:, 0].astype(int)])


def test_an_impossible_split_is_refused() -> None:
    few = digits.Examples(np.zeros((50, 64), np.float32), np.arange(50) % 10)
    with pytest.raises(ValueError, match="fewer clients"):
        digits.split(few, 16, 0.5)


def test_federated_averaging_of_the_shares_learns_what_the_demo_promises(
    data: tuple[digits.Examples, digits.Examples],
) -> None:
    """The demo's config, averaged here in float64: the target of 0.93 is reachable with a margin."""
    import tomllib

    config = parse_job(tomllib.loads((ROOT / "configs/digits.toml").read_text()))
    options = config.client.options
    train, test = data
    clients = config.selection.clients_per_round
    shares = digits.split(train, clients, options["alpha"])
    model = make_model(config.model.example, config.model.seed)
    weights = np.array([len(share.labels) for share in shares], np.float64)
    for number in range(1, config.job.rounds + 1):
        updates = [
            digits.train(
                model,
                share,
                epochs=options["epochs"],
                batch=options["batch"],
                learning_rate=options["learning_rate"],
                seed=number * clients + client,
            )
            for client, share in enumerate(shares)
        ]
        model = {
            name: np.average([u[name] for u in updates], axis=0, weights=weights).astype(np.float32) for name in model
        }
    scores = digits.evaluate(model, test)
    assert scores["accuracy"] >= 0.94
    assert scores["loss"] < digits.evaluate(make_model("digits-mlp", 1), test)["loss"] / 5


def test_training_is_deterministic_and_leaves_its_argument_alone() -> None:
    model = make_model("digits-mlp", 7)
    before = {name: value.copy() for name, value in model.items()}
    share = digits.Examples(np.random.default_rng(1).random((20, 64), np.float32), np.arange(20) % 10)
    first, second = (digits.train(model, share, epochs=2, batch=4, learning_rate=0.1, seed=5) for _ in range(2))
    for name, value in model.items():
        np.testing.assert_array_equal(value, before[name])
        np.testing.assert_array_equal(first[name], second[name])
        assert first[name].dtype == np.float32
        assert not np.array_equal(first[name], value)


def test_models_depend_on_their_seed_and_unknown_ones_are_refused() -> None:
    assert not np.array_equal(
        make_model("digits-mlp", 1)["hidden.weight"], make_model("digits-mlp", 2)["hidden.weight"]
    )
    with pytest.raises(ConfigError, match="did you mean 'digits-mlp'"):
        make_model("digits-mpl", 0)
