"""`lifl init`: a job's file to begin with, from the model that it is to train."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from lifl.core.config.aggregation import AggregationSection
from lifl.core.errors import ConfigError, ResourceFault
from lifl.core.limits import NAME_CHARS_MAX
from lifl.core.planning.arena_need import round_bytes_min
from lifl.core.schema import Layout, TensorSpec
from lifl_cli.config_file import STANDARD_INPUT
from lifl_cli.options import json_option
from lifl_cli.output import did
from lifl_cli.render.figures import printable, size_text
from lifl_cli.state import absolute

CLIENTS = 2
CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model")
"""Where the model is in a file that has more, such as the state of an optimizer."""
TORCH_ENDINGS = (".pt", ".pth", ".bin", ".ckpt")
TEMPLATE = """\
# A training job for LIFL: lifl submit {file}
# The model has {count} tensors ({dtypes}), {size}; a round of it needs {arena} of the arena at the least.
# Keys that are commented out have the values that are shown; docs/config.md has all of them.

[job]
name = "{name}"          # by which clients take part: Client(..., job="{name}")
rounds = 10
# priority = 50              # where the arena has no room yet, the higher one begins first: 1 to 100
# durability = "memory"      # "disk": an accepted update survives the machine

[model]
path = {path}

[selection]
clients_per_round = {clients}        # with so many accepted updates a round commits
# over_provision = 1.0       # so many times more clients are asked
# quorum = {clients}                 # so many updates suffice at the deadline
deadline_s = 600.0           # from the round's opening; above the time that training takes
# clients = ["hospital-*"]   # who may take part; everybody, if it is left out

[aggregation]
rule = "fedavg"              # fedavgm, fedadam, fedyogi, ..., or a class of your own: "module:Class"
# exclude = ["*running_mean", "*running_var", "*num_batches_tracked"]   # averaged, but not stepped

[client.options]             # handed to the trainers with each round, as they are
# lr = 0.01
# epochs = 1
"""


@click.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "-o",
    "--output",
    default="job.toml",
    show_default=True,
    metavar="FILE",
    help="The file to write; - is standard output.",
)
@json_option
def init(model: str, output: str, as_json: bool) -> None:
    """Write a job's TOML file to begin with, from its model.

    MODEL is a safetensors file; or one of PyTorch's, of which a safetensors file is written beside the job's.
    """
    from lifl.node.machine import read_schema

    if not output:
        raise click.UsageError("-o names no file; - is standard output")
    path = absolute(model)
    target = None if output == STANDARD_INPUT else absolute(output)
    if target is not None and target.exists():
        raise ResourceFault(f"{target} is there already: name another file with -o")
    made = path.suffix.lower() in TORCH_ENDINGS
    if made:
        path = _from_torch(path, (target.parent if target is not None else absolute(".")) / f"{path.stem}.safetensors")
    try:
        text = job_text(path, target, read_schema(str(path)))
        if target is not None:
            _write(target, text)
    except BaseException:
        if made:
            path.unlink(missing_ok=True)
        raise
    if target is None and not as_json:
        click.echo(text, nl=False)
        return
    files = f"{output} and {path}" if made else output
    told = {"file": str(target) if target is not None else None, "model": str(path)}
    told |= {"text": text} if target is None else {}
    did(
        f"{printable(files)}: look at it, then `lifl submit {printable(output)}`", json.dumps(told) if as_json else None
    )


def _write(target: Path, text: str) -> None:
    """Write a new file.  Raise `ResourceFault`."""
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ResourceFault(f"{target} cannot be written: {error.strerror}") from error


def job_text(model: Path, target: Path | None, tensors: Sequence[TensorSpec]) -> str:
    """Return the text of a job's file at `target` (None: nowhere), for a model's file with these tensors."""
    layout = Layout(tuple(tensors))
    inside = target is not None and model.is_relative_to(target.parent)
    path = str(model.relative_to(target.parent)) if target is not None and inside else str(model)
    dtypes = Counter(tensor.dtype for tensor in layout.tensors)
    return TEMPLATE.format(
        file=printable(target.name) if target is not None else "-",
        name=name_of(model.stem),
        path=_quoted(path),
        count=len(layout.tensors),
        dtypes=", ".join(f"{count} {dtype}" for dtype, count in dtypes.most_common()),
        size=size_text(layout.data_bytes),
        arena=size_text(round_bytes_min(layout, AggregationSection(), CLIENTS, 0)),
        clients=CLIENTS,
    )


def name_of(stem: str) -> str:
    """Return a job's name like that of a file."""
    name = re.sub(r"[^A-Za-z0-9._:-]+", "-", stem).strip(".:-_")
    return name[:NAME_CHARS_MAX] or "job"


def _quoted(text: str) -> str:
    """Return a text as TOML has it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'


def _from_torch(path: Path, target: Path) -> Path:
    """Write the tensors of a file of PyTorch's as a safetensors file beside the job's; nothing in the file is run.

    Raise `ConfigError` when it holds something else, `ResourceFault` when that cannot be done here.
    """
    if target.exists():
        raise ResourceFault(f"{target} is there already: `lifl init {target.name}` uses it, or move it away")
    try:
        import torch
        from safetensors.torch import save_file
    except ImportError as error:
        text = f"{path.name} is a file of PyTorch's, which is not installed here: `pip install torch`"
        raise ResourceFault(f"{text}, or save the model as safetensors where it is") from error
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < (2, 6):
        text = f"PyTorch {torch.__version__} may run code that is in a file of tensors: `pip install 'torch>=2.6'`"
        raise ResourceFault(text)
    try:
        with warnings.catch_warnings(action="ignore"):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ResourceFault(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        text = "it holds more than tensors, or is none of PyTorch's, or not whole; save model.state_dict()"
        code = re.search(r"(?:Unsupported global: GLOBAL|instance of class) `?([\w.]+)", str(error))
        text = f"{text} (it would need {code[1]}, and no code of a file is run)" if code else text
        raise ConfigError("", f"{path} is not read: {text}") from error
    tensors = _tensors_of(path, found)
    try:
        save_file(tensors, target, metadata={"format": "pt"})
    except BaseException as error:  # OSError, what safetensors raises in its place, or the user's Ctrl-C
        target.unlink(missing_ok=True)
        if not isinstance(error, Exception):
            raise
        raise ResourceFault(f"{target} cannot be written: {error}") from error
    return target


def _tensors_of(path: Path, found: Any) -> dict[str, Any]:
    """Return the tensors of what `torch.load` has found, whole; of tied ones the first.  Raise `ConfigError`."""
    import torch

    for key in CHECKPOINT_KEYS:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found:
        what = f"a {type(found).__name__}" if found or not isinstance(found, dict) else "an empty one"
        raise ConfigError("", f"{path} has no table of tensors, but {what}; save model.state_dict()")
    tensors: dict[str, Any] = {}
    places: dict[tuple[Any, ...], str] = {}
    for name, value in found.items():
        if not isinstance(value, torch.Tensor):
            text = f"{str(name)!r:.80} is of type {type(value).__name__}; save model.state_dict()"
            raise ConfigError("", f"{path} has no table of tensors: {text}")
        kinds = {"quantized": value.is_quantized, "without data": value.is_meta, "complex": value.is_complex()}
        kinds["sparse"] = value.layout is not torch.strided
        if kind := next((kind for kind, is_so in kinds.items() if is_so), ""):
            raise ConfigError("", f"tensor {str(name)!r:.80} of {path} is {kind}: it cannot be averaged")
        place = (value.data_ptr(), value.dtype, value.shape, value.stride(), value.is_neg())
        if value.numel() and places.setdefault(place, str(name)) != str(name):
            continue  # as `Round.state_dict` gives it all its names
        tensors[str(name)] = value.detach().resolve_neg().contiguous().clone()
    return tensors
