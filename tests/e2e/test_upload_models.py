"""`checkpoint.upload`: committed models go elsewhere, by fsspec, after their rounds; also when the store was away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fleet import OneHot, Watch, fleet, submit, until
from nodes import Node

from lifl.node.outbound.main import SENT

N, ROUNDS = 2, 3


def upload(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = node.json("status", "j")["job"]["upload"]
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_a_store_that_is_away_holds_no_round_and_gets_all_when_it_is_back(
    start_node: Callable[..., Node], tmp_path: Path
) -> None:
    node, oracle = start_node("--redirector", "unix"), OneHot(N)
    store, wanted = tmp_path / "store", [f"round-{number:05d}.safetensors" for number in range(ROUNDS + 1)]
    store.write_text("in the way")
    submit(
        node,
        "j",
        oracle.model(),
        job__rounds=ROUNDS,
        checkpoint__upload=f"file://{store}",
        checkpoint__keep={"last": 1},
    )
    with fleet(node.address, "j", N, oracle.update) as team:
        team.join()
    assert Watch(node, "j").over()["status"] == "finished"
    until("why it waits is said", lambda: upload(node)["fault"])
    shown = upload(node)
    assert (shown["waiting"], shown["sent"]) == ([*range(ROUNDS + 1)], -1)
    assert str(store) in shown["fault"]
    assert f"upload to file://{store}: none was sent yet, 0-{ROUNDS} wait" in node.lifl("status", "j")
    assert f"0-{ROUNDS} wait" in node.lifl("top", "--once")
    folder = node.state_dir / "jobs" / "j"
    assert set(wanted) <= set(names(folder)), "what waits stays"
    store.unlink()
    until("all is sent", lambda: upload(node)["waiting"] == [])
    assert names(store / "j") == wanted
    assert (store / "j" / wanted[-1]).read_bytes() == (folder / wanted[-1]).read_bytes()
    until("what has waited goes", lambda: [name for name in names(folder) if name in wanted] == wanted[-1:])
    # A life that ended before it had sent the last one: the next one does, though the job is over.
    node.kill()
    (store / "j" / wanted[-1]).unlink()
    (folder / SENT).write_text(str(ROUNDS - 1))
    node.up()
    until("the last one is sent again", lambda: names(store / "j") == wanted)
