"""A node whose machine is lost goes on from its backup, and its clients with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fleet import OneHot, Watch, fleet, submit
from nodes import Node, run_lifl

N = 3


@pytest.mark.parametrize("later", [False, True], ids=["made at the last commit", "made a round before"])
def test_a_lost_node_goes_on_from_its_backup(start_node: Callable[..., Node], tmp_path: Path, later: bool) -> None:
    """`later`: a round was committed that the backup does not know; it is run again, with clients that know it."""
    node, oracle = start_node("--redirector", "unix"), OneHot(N)
    archive = tmp_path / "b.tar"
    submit(node, "j", oracle.model(), job__rounds=5)
    watch = Watch(node, "j")
    with fleet(node.address, "j", N, oracle.update, held=[(0, 3), (0, 4)]) as team:
        watch.wait("round.committed", 2)
        made = node.json("backup", str(archive))
        assert made["left_out"] == [] and made["files"] >= 6
        assert node.is_up()
        if later:
            team.release_round(3)
            watch.wait("round.committed", 3)
        assert "lifl down" in run_lifl("restore", str(archive), "--state", str(node.state_dir)).stderr
        node.kill()
        node.remove_arena()
        shutil.rmtree(node.state_dir)
        node.lifl("restore", str(archive))
        node.up("--listen", node.address)
        assert node.info["adopted"]["jobs"] == 1
        again = Watch(node, "j")
        team.release()
        assert again.over()["status"] == "finished"
        team.join()
        assert len(oracle.check(node, "j")) == 5
