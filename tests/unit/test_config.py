"""Configs: what is accepted, and that each refusal names the key and the way out."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import date
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifl.core.config.job import AggregationSection, SelectionSection, parse_job, with_listed
from lifl.core.config.node import NodeConfig, asks_for_cookie, beyond_loopback, coordinates, parse_node, secured
from lifl.core.config.store_url import StoreUrl, parse_store
from lifl.core.config.values import parse_size, split_address
from lifl.core.errors import ConfigError
from lifl.core.limits import (
    CLIENTS_LISTED_MAX,
    CLIENTS_PER_ROUND_MAX,
    DEADLINE_S_MAX,
    FAN_IN_MAX,
    OPTIONS_BYTES_MAX,
    OPTIONS_DEPTH_MAX,
    PATTERNS_MAX,
    ROUNDS_MAX,
    STATE_DIR_BYTES_MAX,
    STORE_ENDPOINTS_MAX,
    STORE_NAME_CHARS_MAX,
)

MINIMAL: dict[str, Any] = {
    "job": {"name": "digits", "rounds": 3},
    "model": {"example": "digits-mlp"},
    "selection": {"clients_per_round": 16},
}


def refused(data: dict[str, Any], overrides: tuple[str, ...] = ()) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_job(data, overrides)
    return caught.value


def test_minimal_job_has_the_documented_defaults() -> None:
    job = parse_job(MINIMAL)
    assert job.selection == SelectionSection(
        clients_per_round=16, over_provision=1.0, quorum=None, deadline_s=600.0, attempts=3, seed=0
    )
    assert job.aggregation == AggregationSection("fedavg", {}, "eager", msgspec.UNSET, 8, "", "best-fit")
    assert job.checkpoint.folder == ""
    assert job.client.options == {}


def test_a_job_survives_the_trip_as_builtins() -> None:
    job = parse_job(MINIMAL, ["selection.quorum=12", "client.options.lr=0.1"])
    assert parse_job(msgspec.to_builtins(job)) == job


def test_parsing_leaves_the_callers_table_alone() -> None:
    data = {**MINIMAL, "client": {"options": {"lr": 1}}}
    parse_job(data, ["client.options.lr=2", "job.rounds=9"])
    assert data["client"] == {"options": {"lr": 1}}
    assert data["job"]["rounds"] == 3


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("selection.qorum", "selection.quorum"),
        ("selection.clients_round", "selection.clients_per_round"),
        ("job.rule", "aggregation.rule"),
        ("agregation.rule", "aggregation"),
        ("aggregation.fanin", "aggregation.fan_in"),
    ],
)
def test_unknown_key_names_its_path_and_the_nearest(key: str, nearest: str) -> None:
    error = refused(MINIMAL, (f"{key}=1",))
    assert key.startswith(error.path)
    assert f"did you mean {nearest}" in error.problem


def test_unknown_key_without_a_neighbour_lists_what_is_known() -> None:
    assert "known here: job.name, job.rounds" in refused(MINIMAL, ("job.zzzz=1",)).problem
    assert "known here: checkpoint.keep.last" in refused(MINIMAL, ("checkpoint.keep.foo=1",)).problem


def test_a_value_in_a_table_is_told_with_the_table() -> None:
    error = refused(MINIMAL, ("placement.nodes={zone=1}",))
    assert (error.path, "(given: {'zone': 1})" in error.problem) == ("placement.nodes", True)


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("job.rounds=0", "job.rounds"),
        ("job.rounds=true", "job.rounds"),
        ("job.rounds=1.5", "job.rounds"),
        (f"job.rounds={ROUNDS_MAX + 1}", "job.rounds"),
        ("job.name=7", "job.name"),
        ("job.name='two words'", "job.name"),
        ("selection.clients_per_round=0", "selection.clients_per_round"),
        (f"selection.clients_per_round={CLIENTS_PER_ROUND_MAX + 1}", "selection.clients_per_round"),
        ("selection.quorum=17", "selection.quorum"),
        ("selection.quorum=0", "selection.quorum"),
        ("selection.over_provision=0.5", "selection.over_provision"),
        ("selection.over_provision=10.5", "selection.over_provision"),
        ("selection.deadline_s=0", "selection.deadline_s"),
        ("selection.deadline_s=nan", "selection.deadline_s"),
        ("selection.deadline_s=inf", "selection.deadline_s"),
        ("aggregation.timing=soon", "aggregation.timing"),
        ("aggregation.placement=bestfit", "aggregation.placement"),
        ("aggregation.fan_in=0", "aggregation.fan_in"),
        (f"aggregation.fan_in={FAN_IN_MAX + 1}", "aggregation.fan_in"),
        ("aggregation.middle_fan_in=1", "aggregation.middle_fan_in"),
        ("aggregation.rule='a b:C'", "aggregation.rule"),
        ("aggregation.options=3", "aggregation.options"),
        ("aggregation=3", "aggregation"),
        ("client.options.when=2024-01-01", "client.options.when"),
        ("client.options.n=9223372036854775808", "client.options.n"),
        ("model.path=here.safetensors", "model.path"),
        ("model.example=''", "model.path"),
        ("client.options.x=\udcff", "client.options.x"),
        ("client.options.x=[[1], {y = [nan]}]", "client.options.x[1].y[0]"),
        ("client.options.\udcff=1", "client.options"),
        ("checkpoint.folder=\udcff", "checkpoint.folder"),
        ("aggregation.rule_folder=\udcff", "aggregation.rule_folder"),
        ('checkpoint.folder="a\\u0000b"', "checkpoint.folder"),
        ('aggregation.rule_folder="a\\u0000b"', "aggregation.rule_folder"),
    ],
)
def test_a_bad_value_is_refused_at_its_path(override: str, path: str) -> None:
    assert refused(MINIMAL, (override,)).path == path


@pytest.mark.parametrize(
    "override",
    [
        f"job.rounds={ROUNDS_MAX}",
        f"selection.clients_per_round={CLIENTS_PER_ROUND_MAX}",
        f"selection.deadline_s={DEADLINE_S_MAX}",
        "selection.quorum=16",
        f"aggregation.fan_in={FAN_IN_MAX}",
        "aggregation.rule=my_rules.robust:Clipped",
        "aggregation.placement=round-robin",
        "client.options.n=9223372036854775807",
    ],
)
def test_values_at_the_limit_are_taken(override: str) -> None:
    parse_job(MINIMAL, [override])


@pytest.mark.parametrize(("section", "key"), [("job", "name"), ("job", "rounds"), ("selection", "clients_per_round")])
def test_a_missing_key_is_named(section: str, key: str) -> None:
    data = {name: dict(table) for name, table in MINIMAL.items()}
    del data[section][key]
    error = refused(data)
    assert error.path == f"{section}.{key}"
    assert "missing" in error.problem


def test_a_missing_section_is_named() -> None:
    assert refused({"job": MINIMAL["job"], "model": MINIMAL["model"]}).path == "selection"


def test_overrides_are_toml_or_bare_text() -> None:
    job = parse_job(
        MINIMAL,
        [
            "job.name=night-run",
            "client.options.lr = 0.25",
            'client.options.tags=["a", "b"]',
            "client.options.note=it is fine",
            "client.options.deep.er=true",
            "client.options.two=1\nx = 2",
        ],
    )
    assert job.job.name == "night-run"
    assert job.client.options == {
        "lr": 0.25,
        "tags": ["a", "b"],
        "note": "it is fine",
        "deep": {"er": True},
        "two": "1\nx = 2",
    }


@pytest.mark.parametrize("override", ["job.rounds", "=3", "job..rounds=3", ".=1", ""])
def test_an_override_without_key_or_value_is_refused(override: str) -> None:
    assert "section.key=value" in refused(MINIMAL, (override,)).problem


def test_a_broken_toml_value_and_a_path_into_a_value_are_refused() -> None:
    assert "not a TOML value" in refused(MINIMAL, ("client.options.a=[1,",)).problem
    assert "is a value" in refused(MINIMAL, ("job.name.first=x",)).problem


@pytest.mark.parametrize("key", ["aggregation.options", "client.options"])
def test_options_take_only_so_many_bytes(key: str) -> None:
    part, name = key.split(".")
    beside = len(msgspec.msgpack.encode({"x": "y" * 60_000})) - 60_000
    text = "y" * (OPTIONS_BYTES_MAX - beside)
    assert parse_job({**MINIMAL, part: {name: {"x": text}}}) is not None
    with pytest.raises(ConfigError) as caught:
        parse_job({**MINIMAL, part: {name: {"x": text + "y"}}})
    assert caught.value.path == key
    assert f"takes {OPTIONS_BYTES_MAX + 1} bytes, at most {OPTIONS_BYTES_MAX} fit" in caught.value.problem


def test_options_nest_only_so_deep() -> None:
    path = "client.options" + ".a" * (OPTIONS_DEPTH_MAX)
    parse_job(MINIMAL, [f"{path}=1"])
    assert "deeper" in refused(MINIMAL, (f"{path}.a=1",)).problem


@pytest.mark.parametrize("override", [(), ("job.rounds=2",), ("client.options.x=1",)])
def test_tables_and_lists_without_end_are_refused(override: tuple[str, ...]) -> None:
    deep: Any = 1
    for _ in range(5_000):
        deep = {"a": deep}
    assert "deeper" in refused({**MINIMAL, "client": {"options": deep}}, override).problem
    for _ in range(5_000):
        deep = [deep]
    assert "deeper" in refused({**MINIMAL, "client": {"options": {"a": deep}}}, override).problem
    assert "deeper" in refused(MINIMAL, ("client.options" + ".a" * 5_000 + "=1",)).problem


@pytest.mark.parametrize("folder", ["/tmp/\udcff", "/tmp/a\0b"])
def test_a_state_folder_that_cannot_be_named_is_refused(folder: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_node({"state_dir": folder})
    assert caught.value.path == "state_dir"


@given(st.text(max_size=40), st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_override_text_gives_a_job_or_a_config_error(path: str, value: str) -> None:
    with suppress(ConfigError):
        parse_job(MINIMAL, [f"client.options.{path}={value}", f"{path}={value}"])


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_SECTIONS = st.sampled_from(["job", "model", "selection", "aggregation", "checkpoint", "client", "other"])
_KEYS = st.sampled_from(["name", "rounds", "clients_per_round", "quorum", "rule", "options", "timing", "path"])


@given(st.dictionaries(_SECTIONS, _VALUES | st.dictionaries(_KEYS, _VALUES, max_size=4), max_size=4))
@settings(max_examples=200, deadline=None)
def test_any_table_gives_a_job_or_a_config_error(data: dict[str, Any]) -> None:
    with suppress(ConfigError):
        parse_job({**MINIMAL, **data})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("4096", 4096),
        ("2GiB", 2 << 30),
        ("2 gib", 2 << 30),
        ("1.5GB", 1_500_000_000),
        ("0.1TB", 100_000_000_000),
        ("512KiB", 512 << 10),
        ("3B", 3),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "2GG", "1e9", "0x10", "1,5GB", "2 Gi B", "NaN"])
def test_what_is_no_size_is_refused_at_its_path(text: str) -> None:
    with pytest.raises(ConfigError, match="arena_bytes"):
        parse_node({"arena_bytes": text})


@given(st.integers(0, 2**60))
@settings(max_examples=100, deadline=None)
def test_a_size_in_bytes_is_exact(size: int) -> None:
    assert parse_size(str(size)) == size


def test_node_defaults_and_sizes() -> None:
    node = parse_node({})
    assert (node.listen, node.arena_bytes, node.redirector) == ("127.0.0.1:7433", 1 << 30, "auto")
    assert parse_node({"arena_bytes": "2GiB"}).arena_bytes == 2 << 30
    assert parse_node({"arena_bytes": "1GiB"}, ["arena_bytes=64MiB", "idle_timeout_s=0"]) == NodeConfig(
        arena_bytes=64 << 20, idle_timeout_s=0.0
    )


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("listen=7433", "listen"),
        ("listen=localhost", "listen"),
        ("listen=:7433", "listen"),
        ("listen=::1:7433", "listen"),
        ("listen=host:65536", "listen"),
        ("arena_bytes=1MiB", "arena_bytes"),
        ("arena_bytes=-5", "arena_bytes"),
        ("arena_bytes=true", "arena_bytes"),
        ("redirector=bpf", "redirector"),
        ("idle_timeout_s=-1", "idle_timeout_s"),
        ("workers_max=-1", "workers_max"),
        ("state_dir=" + "x" * (STATE_DIR_BYTES_MAX + 1), "state_dir"),
        ("state_dir=" + "\u00e4" * (STATE_DIR_BYTES_MAX // 2) + "x", "state_dir"),
        ("arena_byte=5", "arena_byte"),
    ],
)
def test_a_bad_node_value_is_refused_at_its_path(override: str, path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_node({}, [override])
    assert caught.value.path == path


def test_a_state_folder_of_the_longest_path_is_taken() -> None:
    folder = "/" + "\u00e4" * (STATE_DIR_BYTES_MAX // 2 - 1) + "x"
    assert len(folder.encode()) == STATE_DIR_BYTES_MAX
    assert parse_node({}, [f"state_dir={folder}"]).state_dir == folder


@pytest.mark.parametrize("key", ["listen", "control"])
@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "10.1.2.3", "[fe80::1]", "localhost.example", "node-3"])
def test_beyond_loopback_a_node_is_secured_unless_it_says_insecure(key: str, host: str) -> None:
    address = f"{host}:7400"
    assert secured(parse_node({key: address}))
    config = parse_node({key: address, "insecure": True})
    assert beyond_loopback(config) == {key: address}
    assert not secured(config)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "[::1]", "localhost", "LOCALHOST"])
def test_loopback_needs_no_insecure(host: str) -> None:
    config = parse_node({"listen": f"{host}:1", "control": f"{host}:2", "join": "10.0.0.1:7434"})
    assert beyond_loopback(config) == {}
    assert beyond_loopback(parse_node({})) == {}


@pytest.mark.parametrize(
    ("keys", "certificate", "cookie"),
    [
        ({}, False, True),
        ({"listen": "[::1]:1"}, False, True),
        ({"listen": "10.0.0.1:7433"}, True, False),
        ({"control": "127.0.0.1:7434"}, True, False),
        ({"join": "127.0.0.1:7434"}, True, False),
        ({"store": "etcd://127.0.0.1:2379"}, True, False),
        ({"insecure": True}, False, False),
        ({"insecure": True, "listen": "10.0.0.1:7433"}, False, False),
        ({"insecure": True, "control": "127.0.0.1:7434"}, False, False),
    ],
)
def test_who_comes_is_asked_for_a_certificate_or_a_cookie_or_by_insecure_for_nothing(
    keys: dict[str, Any], certificate: bool, cookie: bool
) -> None:
    config = parse_node(keys)
    assert (secured(config), asks_for_cookie(config)) == (certificate, cookie)


@pytest.mark.parametrize("key", ["control", "join"])
def test_addresses_of_a_node_are_checked(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_node({key: "10.0.0.1", "insecure": True})
    assert caught.value.path == key


def test_addresses() -> None:
    assert split_address("127.0.0.1:0") == ("127.0.0.1", 0)
    assert split_address("[::1]:7433") == ("::1", 7433)
    assert split_address("node-3.lan:65535") == ("node-3.lan", 65535)
    assert split_address("kn\xf6ten.lan.:1") == ("kn\xf6ten.lan.", 1)


NO_HOSTS = ["x" * 64, "..a", "a..b", "\xe9" * 64, "\u3002", "\udc80", "a\0b", "\x1b[31m", "a b", "a/b", "me@b"]


@pytest.mark.parametrize("host", NO_HOSTS)
def test_what_cannot_be_a_host_is_refused(host: str) -> None:
    """A resolver raises something of its own for the most of them."""
    with pytest.raises(ConfigError, match="HOST:PORT"):
        split_address(f"{host}:7433")


def test_a_date_is_no_option() -> None:
    data = {**MINIMAL, "client": {"options": {"list": ["x", date(2024, 1, 1)]}}}
    assert refused(data).path == "client.options.list[1]"


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("aggregation.timing=soon", "'soon' is none of eager, lazy"),
        ("job.name='two words'", "'two words' is no name: letters, digits and ._:-"),
    ],
)
def test_a_bad_word_is_told_what_there_is(override: str, text: str) -> None:
    assert text in str(refused(MINIMAL, (override,)))


def test_a_list_of_clients_is_bounded_and_each_of_it_is_a_name_or_a_pattern() -> None:
    names = [f"c{number}" for number in range(CLIENTS_LISTED_MAX)]
    table = {**MINIMAL, "selection": {**MINIMAL["selection"], "clients": names}}
    assert len(parse_job(table).selection.clients) == CLIENTS_LISTED_MAX  # type: ignore[arg-type]
    for bad in ([*names, "more"], [], ["a b"], [""], ["x" * 65], ["*"] * (PATTERNS_MAX + 1), "hospital-*"):
        table["selection"] = {**MINIMAL["selection"], "clients": bad}
        assert refused(table).path.startswith("selection.clients"), bad
    assert "letters, digits" in refused({**MINIMAL, "selection": {**MINIMAL["selection"], "clients": ["a b"]}}).problem


def test_a_file_of_clients_joins_those_that_are_named() -> None:
    config = parse_job({**MINIMAL, "selection": {**MINIMAL["selection"], "clients": ["a", "b"]}})
    assert with_listed(config, ["b", "c*"]).selection.clients == ("a", "b", "c*")
    plain = parse_job(MINIMAL)
    assert "clients" not in msgspec.to_builtins(plain)["selection"], "an earlier version would not know it"
    for bad in ([], ["a b"], [f"c{number}" for number in range(CLIENTS_LISTED_MAX + 1)]):
        with pytest.raises(ConfigError) as error:
            with_listed(plain, bad)
        assert error.value.path.startswith("selection.clients_file")


# ---- the store of a cluster ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "endpoints", "name"),
    [
        ("etcd://a:2379", ("a:2379",), "lifl"),
        ("etcd://a:1,b:2,[::1]:3/east", ("a:1", "b:2", "[::1]:3"), "east"),
    ],
)
def test_the_address_of_a_store(text: str, endpoints: tuple[str, ...], name: str) -> None:
    assert parse_store(text) == StoreUrl(endpoints, name)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("redis://a:1", "is no store"),
        ("etcd://", "is not HOST:PORT"),
        ("etcd://a:0", "no member of etcd listens on port 0"),
        ("etcd://a:1,a:1", "name each once"),
        ("etcd://" + ",".join(f"a:{port}" for port in range(1, STORE_ENDPOINTS_MAX + 2)), "at most"),
        ("etcd://a:1/", "is no name for a cluster"),
        ("etcd://a:1/a/b", "is no name for a cluster"),
        ("etcd://a:1/" + "x" * (STORE_NAME_CHARS_MAX + 1), "is no name for a cluster"),
    ],
)
def test_one_that_is_none_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_store(text)


def test_the_limits_of_a_store_s_address_themselves_are_allowed() -> None:
    parse_store("etcd://" + ",".join(f"a:{port}" for port in range(1, STORE_ENDPOINTS_MAX + 1)))
    parse_store("etcd://a:1/" + "x" * STORE_NAME_CHARS_MAX)


@pytest.mark.parametrize(
    ("table", "key", "told"),
    [
        ({"store_ca": "/ca"}, "store_ca", "say which one with store"),
        ({"store": "etcd://127.0.0.1:1", "store_ca": "/ca"}, "store_cert", "is missing"),
        ({"store": "etcd://10.0.0.1:1"}, "store_ca", "is reached over a network"),
        ({"store": "etcd://127.0.0.1:1", "control": "0.0.0.0:1", "insecure": True}, "control", "reach this one"),
        ({"store": "nothing"}, "store", "is no store"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused_by_its_key(table: dict[str, Any], key: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as refused:
        parse_node(table)
    assert refused.value.path == key


def test_who_coordinates_is_open_with_a_store() -> None:
    assert coordinates(parse_node({}))
    assert not coordinates(parse_node({"join": "127.0.0.1:1"}))
    assert not coordinates(parse_node({"store": "etcd://127.0.0.1:1"}))


@pytest.mark.parametrize(
    ("trainable", "said"),
    [
        ([""], "job.trainable[0]: expected str of length >= 1 (given: '')"),
        (["a", 1], "job.trainable[1]: expected str, got int (given: 1)"),
        ([["x"]], "job.trainable[0]: expected str, got array (given: ['x'])"),
    ],
)
def test_what_is_wrong_in_a_list_is_shown(trainable: list[object], said: str) -> None:
    table = {
        "job": {"name": "a", "rounds": 1, "trainable": trainable},
        "model": {"path": "m"},
        "selection": {"clients_per_round": 1},
    }
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse_job(table, ())
