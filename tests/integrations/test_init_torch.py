"""`lifl init` of PyTorch's own files: whole checkpoints, tied weights, all dtypes; and no code in a file is run."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from lifl_cli.init import init

from lifl.core.config.job import parse_job
from lifl.core.errors import LiflError

torch = pytest.importorskip("torch", reason="NOT TESTED: make test-integrations installs torch")


def made(folder: Path, found: Any) -> dict[str, Any]:
    """What the job's model has, made of a file with this in it."""
    from safetensors.torch import load_file

    (folder / "job").mkdir(parents=True)
    torch.save(found, folder / "model.pt")
    target = folder / "job" / "job.toml"
    done = CliRunner().invoke(init, [str(folder / "model.pt"), "-o", str(target)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    config = parse_job(tomllib.loads(target.read_text()))
    tensors: dict[str, Any] = load_file(target.parent / str(config.model.path))
    return tensors


@pytest.mark.parametrize("key", ["", "model", "state_dict", "model_state_dict"])
def test_the_model_of_a_file_or_of_a_whole_checkpoint(tmp_path: Path, key: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    whole = {key: model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    found = made(tmp_path, whole if key else model.state_dict())
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


def test_tied_weights_stand_once_and_what_shares_storage_is_whole(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    tied = {"embedding": base, "head": base, "half": base[:6].view(2, 3), "turned": base.view(3, 4).t()}
    found = made(tmp_path, tied | {"spread": base[:3].expand(5, 3), "minus": torch._neg_view(base)})
    assert list(found) == sorted(["embedding", "half", "turned", "spread", "minus"])
    assert found["turned"].tolist() == base.view(3, 4).t().tolist()
    assert (found["spread"].shape, found["minus"].tolist()) == ((5, 3), (-base).tolist())


def test_each_dtype_is_kept(tmp_path: Path) -> None:
    dtypes = [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn]
    found = made(tmp_path, {str(dtype): torch.zeros(2).to(dtype) for dtype in dtypes} | {"scalar": torch.tensor(3)})
    assert all(found[str(dtype)].dtype == dtype for dtype in dtypes)
    assert found["scalar"].shape == ()


class Code:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("it-was-run",)


def wrong() -> dict[str, tuple[Any, str]]:
    return {
        "code": ({"w": Code()}, "is not read"),
        "module": (torch.nn.Linear(2, 2), "Linear, and no code of a file is run"),
        "list": ([torch.zeros(2)], "but a list"),
        "nothing": ({}, "but an empty one"),
        "number": ({"w": torch.zeros(2), "epoch": 5}, "'epoch' is of type int"),
        "sparse": ({"w": torch.eye(3).to_sparse()}, "'w' of .* is sparse"),
        "meta": ({"w": torch.empty(3, device="meta")}, "is without data"),
        "complex": ({"w": torch.zeros(2, dtype=torch.complex64)}, "is complex"),
        "name": ({"": torch.zeros(2)}, "name has 1 to 256"),
    }


@pytest.mark.parametrize("kind", wrong())
def test_what_has_no_model_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found, said = wrong()[kind]
    torch.save(found, "model.pt")
    with pytest.raises(LiflError, match=said):
        CliRunner().invoke(init, ["model.pt"], catch_exceptions=False)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("content", [b"", b"\x80\x02garbage", b"PK\x03\x04"])
def test_a_file_that_is_cut_or_none_of_pytorchs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.pt").write_bytes(content)
    with pytest.raises(LiflError, match="or not whole"):
        CliRunner().invoke(init, ["model.pt"], catch_exceptions=False)
