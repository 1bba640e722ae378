"""What docs/limits.md says, out of the code: `make limits` writes it, tests/unit/test_limits.py holds that it is so.

Also how long a message can be when all of it is at its limits, and values at each limit and one beyond.
"""

from __future__ import annotations

import ast
import math
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
from lifl_cli.calibrate import UPDATE_BYTES_MAX, UPDATE_BYTES_MIN
from lifl_cli.main import SIZE_DIGITS_MAX, cli

from lifl.confine import signals
from lifl.core import fields, limits
from lifl.core.config.job import JobConfig
from lifl.core.config.node import NodeConfig
from lifl.core.protocol import cli as om
from lifl.core.protocol import client as cm
from lifl.core.protocol import cluster as p
from lifl.core.protocol import enrolment as e
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import http as hm
from lifl.core.protocol import journal as jm
from lifl.core.protocol import outbound as xm
from lifl.core.protocol import worker as wm
from lifl.core.protocol.commands import Contributions
from lifl.node.authority.authority_file import BYTES_MAX as AUTHORITY_BYTES_MAX
from lifl.node.daemon import DRAIN_S
from lifl.node.locks import CHILDREN_END_S
from lifl.node.log_file import LOG_BYTES_MAX, LOG_FILES_MAX
from lifl.node.recordings import RECORDINGS_MAX
from lifl.tls.token_file import BYTES_MAX as TOKEN_BYTES_MAX

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/limits.md"
CHANNELS: dict[str, tuple[Any, str]] = {
    "client → gateway": (cm.FromClient, "the connection ends with a Refusal `protocol`; no other notices"),
    "gateway → client": (cm.ToClient, "`RemoteFault`: the client closes the connection and connects anew"),
    "gateway → lifld": (gm.FromGateway, "the link ends; a new gateway is started"),
    "lifld → gateway": (gm.ToGateway, "the gateway ends and is started again"),
    "HTTP door → lifld": (hm.FromHttp, "the link ends; a new one is started"),
    "lifld → HTTP door": (hm.ToHttp, "the door ends and is started again"),
    "zygote → lifld": (wm.FromZygote, "the link ends; a new zygote is started"),
    "lifld → zygote": (wm.ToZygote, "the zygote ends and is started again"),
    "worker → lifld": (wm.FromWorker, "the worker ends; its tasks are started again"),
    "lifld → worker": (wm.ToWorker, "the worker ends; its tasks are started again"),
    "lifld → journal": (jm.ToJournal, "the journal ends and is started again: it is told anew what is owed"),
    "journal → lifld": (jm.FromJournal, "the link ends; a new journal is started, and told anew what is owed"),
    "lifld ⇄ outbound process": (xm.ToOutbound | xm.FromOutbound, "it ends, and is started again while models wait"),
    "command line → lifld": (om.FromCli, "that connection ends"),
    "lifld → command line": (om.ToCli, "the command says so, exit 1"),
    "first frame of a node": (p.PeerHello | p.Greeting, "PeerRefusal, and the connection ends"),
    "who wants a certificate → control port": (e.Asking, "PeerRefusal, and the connection ends"),
    "control port → who wants a certificate": (e.Answer, "the command says so, exit 1"),
    "coordinator → agent": (p.ToAgent, "the connection ends; the agent dials again"),
    "agent → coordinator": (p.ToCoordinator, "the connection ends; the agent dials again"),
}
TREE_BYTES_MAX = limits.COST_LINES_MAX * limits.TREE_LINE_BYTES_MAX
HELD: dict[str, tuple[int, str]] = {
    "tensors": (limits.SCHEMA_BYTES_MAX, "`lifl submit` refuses a longer schema (`schema-too-long`)"),
    "options": (limits.OPTIONS_BYTES_MAX, "`lifl submit` refuses longer ones (`bad-config`)"),
    "client_options": (limits.OPTIONS_BYTES_MAX, "`lifl submit` refuses longer ones (`bad-config`)"),
    "members": (limits.MEMBERS_PER_FRAME_MAX * limits.CONTRIBUTION_BYTES_MAX, "more go in pages"),
    "branches": (limits.MEMBERS_PER_FRAME_MAX * limits.CONTRIBUTION_BYTES_MAX, "more go in pages"),
    "message": (64 * 1024, "a message for a client, without tensors and options"),
    "tree": (limits.TREE_LINES_MAX * limits.TREE_LINE_BYTES_MAX, "tasks beyond are not shown"),
    "cost": (TREE_BYTES_MAX + 4096, f"tasks beyond {limits.COST_LINES_MAX} have no line"),
    "port": (4096, "made by lifld"),
    "status": (limits.PAGE_BYTES_MAX + 64 * 1024, "jobs beyond are not told"),
    "config": (limits.FRAME_BYTES_MAX - 64 * 1024, "the command refuses to send more"),
    "result": (limits.FRAME_BYTES_MAX - 64, "lifld answers with a Refusal instead"),
    "fields": (TREE_BYTES_MAX + limits.ROUND_METRICS_MAX * 160 + 256 * 1024, "a follower's connection ends"),
}
"""The fields whose bytes are not held by their type: the most that they are, and what holds that."""
FILES = [
    ("a job's TOML, a node's TOML", f"{limits.CONFIG_FILE_BYTES_MAX} bytes; the keys above", "refused by its path"),
    ("a model (safetensors), its header", f"{limits.MODEL_HEADER_BYTES_MAX} bytes", "refused, naming the file"),
    ("a model, its tensors", f"{limits.TENSORS_MAX}, {limits.DIMENSIONS_MAX} dimensions each", "refused by its name"),
    ("a model, a tensor's name", f"1 to {limits.TENSOR_NAME_CHARS_MAX} characters", "refused by its name"),
    ("a model, names and shapes in all", f"{limits.SCHEMA_BYTES_MAX} bytes", "refused: `schema-too-long`"),
    ("the models of all running jobs", f"{limits.SCHEMAS_BYTES_MAX} bytes", "refused: `too-many-tensors`"),
    ("`updates/*.journal`", "a page of four KiB a head, checksums", "what does not agree is left out, and said"),
    ("the state folder's path", f"{limits.STATE_DIR_BYTES_MAX} bytes", "refused; choose a shorter one"),
]
FILES += [
    ("a checkpoint", "the digest in its round's row", "set aside, and told: the job goes on from the newest good one"),
    ("`.lifl-job` of a checkpoint folder", "names one job", "another job's submission is refused: `folder-in-use`"),
    (
        "models that wait for a store elsewhere (`checkpoint.upload`)",
        f"{limits.UPLOADS_WAITING_MAX} of each job",
        "the oldest is not sent; `lifl status` counts it, the log names it",
    ),
    (
        "the database",
        "SQLite's own checks; each row is read by itself",
        "`lifl doctor --repair` sets it, or the row, aside",
    ),
    ("`lifld.log`", f"{LOG_FILES_MAX + 1} files of {LOG_BYTES_MAX} bytes", "the oldest goes"),
    (
        "`audit/audit-N.jsonl`",
        f"{limits.AUDIT_FILES_MAX} files of {limits.AUDIT_FILE_BYTES_MAX} bytes; each line names the one before",
        "the oldest goes; `lifl audit verify` names the first line that was changed",
    ),
    ("recordings", f"{RECORDINGS_MAX} files", "the oldest goes"),
    (
        "a user's rule, `module.py`",
        "loaded in a process of its own",
        "refused by `aggregation.rule`, with what it raised",
    ),
    (
        "an update that is a file (safetensors)",
        "the model's names, dtypes and shapes",
        "`Refused` by the tensor's name, or `bad-file`; nothing is sent",
    ),
    (
        "a list of clients (`selection.clients_file`)",
        f"{limits.CLIENTS_FILE_BYTES_MAX} bytes, {limits.CLIENTS_LISTED_MAX} lines",
        "refused by its key",
    ),
    ("a token's file", f"{TOKEN_BYTES_MAX} bytes, mode 0600", "refused with the command that closes it"),
    ("an identity folder", "mode 0700, its key 0600", "refused with the command that closes it"),
    ("`authority.pem`", f"{AUTHORITY_BYTES_MAX} bytes, mode 0600", "refused with the command that closes it"),
    (
        "`lifld.lock`",
        "64 bytes: a process and what it is at",
        "shown as it is; whether a node runs is said by its lock",
    ),
    (
        "`children.lock`",
        "nothing is read: a node's processes hold it",
        f"`lifl up` waits {CHILDREN_END_S:g} s for their end, then says how to find them",
    ),
]
CHILDREN = "gateway, HTTP door, zygote, workers, journal, outbound process"
SIGNALS = [
    (
        signals.ENDS,
        "lifld",
        f"what is all in commits (within {DRAIN_S:g} s), then the node ends; nothing when it was started with them "
        "ignored, as by nohup",
    ),
    (signals.ENDS, CHILDREN, "nothing: a terminal sends them to all of a node's processes, and lifld ends its own"),
    (signals.STRAY, "any", "nothing: they have no meaning here"),
    (signals.HARMLESS, "any", "nothing: a write that is not taken says so itself"),
    (signals.STOPS, CHILDREN, "killed by lifld when a round needs it, and started again"),
    (signals.STOPS, "lifld of a node that does not coordinate", "its part of the round is made elsewhere"),
    (signals.STOPS, "lifld of a node that coordinates", "its jobs stand still until SIGCONT"),
    (signals.KILLS, CHILDREN, "started again; what was accepted is kept ([failures](failures.md))"),
    (signals.KILLS, "lifld", "its other processes end with it; `lifl up` goes on with what was accepted"),
]
"""Which signals, which process, what follows."""
ENVIRONMENT = [
    ("`HOME`", "a folder, when no state folder is named", "one line that says so, and what to do"),
    ("`COLUMNS`, `LINES`", f"1 to {10**SIZE_DIGITS_MAX - 1}", "as if it were not set"),
    ("`NO_COLOR`, `TERM`", "as everywhere", "what is shown has no colours"),
    (
        "`HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`",
        f"`http://[USER:PASSWORD@]HOST:PORT`; it answers by {limits.PROXY_ANSWER_BYTES_MAX} bytes",
        "one line that names the variable; a proxy that refuses is told as a node that is not reached",
    ),
    ("`LIFL_IDENTITY`", "an identity folder, as above", "refused with the command that closes it"),
    ("`LIFL_TOKEN_FILE`", "a token's file, as above, with a bearer token", "refused with the command that closes it"),
    ("`LIFL_STATE`", f"a path of at most {limits.STATE_DIR_BYTES_MAX} bytes", "refused; choose a shorter one"),
    ("`LIFL_FAILPOINTS`", "for tests: points of the table in failpoints.py", "the process does not start"),
]


# ---- types -----------------------------------------------------------------------------------------------------------


def metas(kind: Any) -> tuple[Any, dict[str, Any]]:
    """A type without its limits, and these."""
    found: dict[str, Any] = {}
    while typing.get_origin(kind) is typing.Annotated:
        kind, *annotations = typing.get_args(kind)
        for each in annotations:
            if isinstance(each, msgspec.Meta):
                names = ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern")
                found |= {name: getattr(each, name) for name in names if getattr(each, name) is not None}
    return kind, found


def hints(kind: type) -> dict[str, Any]:
    found = typing.get_type_hints(kind, include_extras=True)
    names = zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True)  # type: ignore[attr-defined]
    return {told: found[name] for name, told in names}


def is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def is_held(kind: Any, name: str) -> bool:
    """Whether `HELD` says how long a field is: some names are those of numbers, too."""
    return name in HELD and (kind is msgspec.Raw or typing.get_origin(kind) in (tuple, dict))


def packed_max(kind: Any, name: str = "") -> float:
    """The most bytes that a value of this type takes; infinity when nothing holds it."""
    kind, held = metas(kind)
    if is_held(kind, name):
        return HELD[name][0]
    length = held.get("max_length", math.inf)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is str:
        return 5 + length * (1 if held.get("pattern", "[^").count("[^") == 0 else 4)
    if kind is bytes:
        return 5 + length
    if kind in (int, float):
        return 9
    if kind in (bool, type(None)):
        return 1
    if kind is msgspec.UnsetType:
        return 0
    if origin in (types.UnionType, typing.Union):
        return max(packed_max(argument) for argument in arguments)
    if origin is typing.Literal:
        return 5 + max(len(str(argument)) for argument in arguments)
    if origin is tuple and ... not in arguments:
        return 5 + sum(map(packed_max, arguments))
    if origin is tuple:
        return 5 + length * packed_max(arguments[0])
    if origin is dict:
        return 5 + length * sum(map(packed_max, arguments))
    if is_struct(kind):
        return 32 + sum(5 + len(each) + packed_max(hint, each) for each, hint in hints(kind).items())
    return math.inf


def limit_text(kind: Any, name: str) -> str:
    """The limit of a field, in words."""
    base, held = metas(kind)
    origin, arguments = typing.get_origin(base), typing.get_args(base)
    if origin in (types.UnionType, typing.Union):
        left = [argument for argument in arguments if argument not in (type(None), msgspec.UnsetType)]
        return f"{limit_text(left[0], name)}; may be absent"
    words = []
    for low, high, unit in (("ge", "le", ""), ("gt", "lt", ""), ("min_length", "max_length", "")):
        if low in held and high in held:
            words.append(f"{held[low]} to {held[high]}{unit}")
        elif low in held:
            words.append(f"from {held[low]}" if low != "gt" else f"above {held[low]}")
        elif high in held:
            words.append(f"at most {held[high]}")
    if "gt" in held and "le" in held:
        words = [f"above {held['gt']}, at most {held['le']}"]
    if "pattern" in held:
        words.append(f"`{held['pattern']}`")
    if origin in (tuple, dict) and "max_length" in held:
        words.append("entries")
    elif base in (str, bytes) and "max_length" in held:
        words.append("characters" if base is str else "bytes")
    if is_held(base, name):
        words.append(f"{HELD[name][0]} bytes: {HELD[name][1]}")
    shown = {int: "an integer", float: "a number", bool: "true or false", str: "a text", bytes: "bytes"}
    if not words and origin is typing.Literal:
        words.append(", ".join(f"`{argument}`" for argument in arguments))
    return " ".join(words) or shown.get(base, "as its parts")


# ---- values at a limit -----------------------------------------------------------------------------------------------


def small(kind: Any) -> Any:
    """A plain value that is within all limits of a type."""
    kind, held = metas(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is str:
        return "a" * held.get("min_length", 0)
    if kind is bytes:
        return b"a" * held.get("min_length", 0)
    if kind in (int, float):
        low = held.get("ge", held.get("gt", 0) + (1 if "gt" in held else 0))
        return kind(low)
    if kind is bool:
        return False
    if origin in (types.UnionType, typing.Union):
        return None if type(None) in arguments else small(arguments[0])
    if origin is typing.Literal:
        return arguments[0]
    if origin is tuple:
        return [small(argument) for argument in arguments] if ... not in arguments else []
    if is_struct(kind):
        return {name: small(hint) for name, hint in hints(kind).items()}
    return {}


def edges(kind: Any) -> Iterator[tuple[Any, bool]]:
    """Values at each limit of a type, and one beyond if the wire has it, each with whether it is taken."""
    kind, held = metas(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        for argument in arguments:
            if argument not in (type(None), msgspec.UnsetType):
                yield from edges(argument)
        return
    if kind in (str, bytes) or origin in (tuple, dict):
        for name, step in (("min_length", -1), ("max_length", 1)):
            if name in held:
                yield of_length(kind, held[name]), True
                if held[name] + step >= 0:
                    yield of_length(kind, held[name] + step), False
    if origin is tuple and ... in arguments:
        yield from (([value], taken) for value, taken in edges(arguments[0]))
    if origin is dict:
        yield from (({value: small_packed(arguments[1])}, taken) for value, taken in edges(arguments[0]))
        yield from (({"k": value}, taken) for value, taken in edges(arguments[1]))
    if is_struct(kind):
        yield from _edges_of_struct(kind)
    if kind in (int, float):
        for name, sign, inside in (("ge", -1, True), ("gt", -1, False), ("le", 1, True), ("lt", 1, False)):
            if name in held:
                yield kind(held[name]), inside
                beyond = held[name] + sign * (1 if kind is int else 1e-3 * max(1, abs(held[name])))
                if kind is float or -(2**63) <= beyond < 2**64:
                    yield kind(beyond), False


def _edges_of_struct(kind: type[msgspec.Struct]) -> Iterator[tuple[Any, bool]]:
    plain = {name: small_packed(hint) for name, hint in hints(kind).items()}
    for name, hint in hints(kind).items():
        for value, taken in edges(hint):
            whole = plain | {name: value}
            yield list(whole.values()) if kind.__struct_config__.array_like else whole, taken


def of_length(kind: Any, length: int) -> Any:
    """A plain value with so many characters, bytes or entries."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict:
        return {f"k{index}": small(arguments[1]) for index in range(length)}
    if origin is tuple:
        return [small_packed(arguments[0])] * length
    return "a" * length if kind is str else b"a" * length


def small_packed(kind: Any) -> Any:
    """The same as `small`, with array-like structs as lists."""
    base, _held = metas(kind)
    if is_struct(base) and base.__struct_config__.array_like:
        return [small(hint) for hint in hints(base).values()]
    return small(kind)


def messages() -> Iterator[tuple[str, type]]:
    """Every message, with the channel that it travels by."""
    for channel, (kinds, _gets) in CHANNELS.items():
        for kind in sorted(typing.get_args(kinds), key=lambda kind: kind.__name__):
            yield channel, kind


# ---- the page --------------------------------------------------------------------------------------------------------


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def section_of(hint: Any) -> Any:
    """The type of a key, without its limits; of a section that may be absent the section."""
    base, _held = metas(hint)
    return next((each for each in typing.get_args(base) if is_struct(each)), base)


def of_config(kind: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, hint in hints(kind).items():
        base = section_of(hint)
        if is_struct(base):
            yield from of_config(base, f"{prefix}{name}.")
        else:
            yield f"`{prefix}{name}`", limit_text(hint, name)


ARGUMENT_FIELDS: dict[str, tuple[type[msgspec.Struct], str]] = {
    "status JOB": (om.JobStatus, "job"),
    "cancel JOB": (om.CancelJob, "job"),
    "history JOB": (om.JobStatus, "job"),
    "plot JOB": (om.JobStatus, "job"),
    "export JOB": (om.JobStatus, "job"),
    "trace JOB": (om.JobStatus, "job"),
    "verify JOB": (om.UpdatesOfRound, "job"),
    "pause JOB": (om.PauseJob, "job"),
    "resume JOB": (om.ResumeJob, "job"),
    "edit JOB": (om.EditJob, "job"),
    "rm JOB": (om.RemoveJob, "job"),
    "model get JOB": (om.ReadModel, "job"),
    "plan --round": (om.PlansOfRound, "job"),
    "drain NODE": (om.DrainNode, "node"),
    "token create --name": (om.CreateToken, "pattern"),
    "token create --job": (om.CreateToken, "jobs"),
    "token revoke NUMBER": (om.RevokeToken, "number"),
    "cert revoke WHICH": (om.RevokeCertificate, "which"),
}
"""Texts of the command line that become the field of a request, and have its limit."""
ARGUMENT_TEXTS = {
    "up --web": "HOST:PORT, as the key `http`",
    "up --label": f"NAME=VALUE, as the key `labels`; at most {limits.LABELS_MAX} of them",
    "--node": "HOST:PORT",
    "--identity": "a path: an identity folder, as below",
    "--state": f"a path of at most {limits.STATE_DIR_BYTES_MAX} bytes",
    "submit --set": "SECTION.KEY=VALUE, as the key",
    "plan --set": "SECTION.KEY=VALUE, as the key",
    "plot [METRIC]...": "the name of a metric that a round has",
    "export --address": "a URL, or a path, as the key `metrics.address`",
    "trace --otlp": "a URL",
    "edit --set": f"SECTION.KEY=VALUE, as the key; at most {limits.EDITS_MAX} of them",
    "resume --rounds": f"N or +N, 1 to {limits.ROUNDS_MAX}",
    "init MODEL": "a path",
    "init -o": "a path, or `-`",
    "plan --node": "NAME:CAPACITY:ARENA[:LABEL=VALUE,...], as a node's `capacity`, `arena_bytes` and `labels`",
    "calibrate --update-bytes": f"{UPDATE_BYTES_MIN} to {UPDATE_BYTES_MAX} bytes, or a size such as 16MiB",
    "token create --ttl": f"a duration, such as 90s, 15m, 2h or 1d; above 0, at most {limits.TOKEN_TTL_S_MAX:g} s",
    "enroll HOST:PORT": "HOST:PORT",
    "explain CODE": "a code of a refusal; the nearest is told otherwise",
    "support-bundle -o": "a path that is not there yet",
    "enroll --token-file": "a path, or `-`: a token, as below",
    "enroll --name": f"none, or {fields.NAME_RULE}",
    "enroll --identity": "a path: an identity folder, as below",
    "cert renew [HOST:PORT|DIR]": "HOST:PORT, or the path of an identity folder",
    "store migrate SOURCE": "`sqlite`, or as the key `store`",
    "store migrate TARGET": "`sqlite`, or as the key `store`",
    "model info JOB|FILE": "a path, or as `model get JOB`; with @ROUND behind it as --round",
    "model diff A": "a path, or as `model get JOB`; with @ROUND behind it as --round",
    "model diff B": "a path, or as `model get JOB`; with @ROUND behind it as --round",
    "backup FILE": "a path",
    "restore FILE": "a path: a backup, as below",
    "simulate --trainer": f"MODULE:FUNCTION, at most {limits.RULE_CHARS_MAX} characters",
    "simulate --evaluator": f"MODULE:FUNCTION, at most {limits.RULE_CHARS_MAX} characters",
    "simulate --properties": f"MODULE:FUNCTION, at most {limits.RULE_CHARS_MAX} characters",
    "simulate --set": "SECTION.KEY=VALUE, as the key",
}
"""The limits of the others."""


def parameters() -> Iterator[tuple[str, click.Command, click.Parameter]]:
    """Every argument of every command: what both are called, the command, and the argument."""
    context = click.Context(cli)
    for name in ("", *cli.list_commands(context)):
        command = cli.get_command(context, name) if name else cli
        assert command is not None
        inner = getattr(command, "commands", None) if name else None
        for title, each in [(f"{name} {n}", c) for n, c in inner.items()] if inner else [(name, command)]:
            for parameter in each.params:
                shown = parameter.opts[0] if parameter.param_type_name == "option" else parameter.human_readable_name
                yield f"{title} {shown}".strip(), each, parameter


def commands() -> Iterator[tuple[str, str]]:
    keys = {name.replace("_", "-"): limit_text(hint, name) for name, hint in hints(NodeConfig).items()}
    for words, _command, parameter in parameters():
        key = keys.get(words.removeprefix("up --")) if words.startswith("up ") else None
        yield f"`lifl {words}`", f"as the key: {key}" if key else of_click(words, parameter)


def of_text(words: str) -> str:
    """The limit of a text; each has one that is written down above."""
    if words in ARGUMENT_FIELDS:
        kind, name = ARGUMENT_FIELDS[words]
        return limit_text(hints(kind)[name], name)
    return ARGUMENT_TEXTS["--state" if words.endswith(" --state") else words]


def of_click(words: str, parameter: click.Parameter) -> str:
    kind = parameter.type
    if isinstance(kind, click.IntRange | click.FloatRange):
        return f"{kind.min if kind.min is not None else ''} to {kind.max if kind.max is not None else ''}".strip()
    if isinstance(kind, click.Choice):
        return ", ".join(f"`{choice}`" for choice in kind.choices)
    if getattr(parameter, "is_flag", False):
        return "a flag"
    if isinstance(kind, click.Tuple):
        return ", ".join(of_click(words, click.Option(["--part"], type=each)) for each in kind.types)
    if kind.name == "text":
        return of_text(words)
    return {"path": "a path", "file": "the path of a file", "directory": "the path of a folder"}.get(
        kind.name, kind.name
    )


def constants() -> Iterator[tuple[str, Any, str]]:
    body = ast.parse(Path(limits.__file__).read_text()).body
    for index, node in enumerate(body):
        if not isinstance(node, ast.Assign):
            continue
        after = body[index + 1] if index + 1 < len(body) else None
        said = ast.get_docstring(ast.Module([after], [])) if isinstance(after, ast.Expr) else None
        name = node.targets[0].id  # type: ignore[attr-defined]
        yield f"`{name}`", getattr(limits, name), " ".join((said or "").split())


def page() -> str:
    """The whole of docs/limits.md."""
    parts = [
        "# Limits\n\nWhat may come from outside, how much of it, and what a violation gets. `make limits` writes this "
        "page from the code;\nchange nothing here.\n",
        f"A frame of any channel has at most {limits.FRAME_BYTES_MAX} bytes. Nobody sends a longer one: what the "
        "message was about,\na job or a connection, ends with a line in the log, and `lifld` goes on.\n",
        "## Messages\n",
    ]
    for channel, (kinds, gets) in CHANNELS.items():
        rows: list[tuple[Any, ...]] = []
        for kind in sorted(typing.get_args(kinds), key=lambda kind: kind.__name__):
            longest = int(min(packed_max(kind), limits.FRAME_BYTES_MAX))
            rows.append((f"**{kind.__name__}**", "", f"{longest} bytes at most"))
            rows += [("", f"`{name}`", limit_text(hint, name)) for name, hint in hints(kind).items()]
        parts += [f"### {channel}\n\nA violation: {gets}.\n", table(("message", "field", "limit"), rows)]
    refused = "refused by its path, with the fix; exit 2"
    for title, config in (("A job's keys", JobConfig), ("A node's keys", NodeConfig)):
        parts += [f"## {title}\n\nA violation: {refused}.\n", table(("key", "limit"), list(of_config(config)))]
    parts += [
        "## Arguments of the command line\n\nA violation: refused with the usage, exit 2; of a text by the argument's "
        "name, with what it may be, exit 1.\n",
        table(("argument", "limit"), list(commands())),
        "## Files\n",
        table(("file", "limit", "a violation"), FILES),
        "## Environment\n",
        table(("variable", "limit", "a violation"), ENVIRONMENT),
        "## Signals\n",
        table(("signal", "to", "what it does"), [(signals.names(who), *rest) for who, *rest in SIGNALS]),
        "## All limits by name\n\nFrom `core/limits.py`.\n",
        table(("name", "value", "what for"), list(constants())),
    ]
    return "\n".join(parts)


assert metas(Contributions)[1] and metas(fields.Metrics)[1]

if __name__ == "__main__":
    PAGE.write_text(page())
