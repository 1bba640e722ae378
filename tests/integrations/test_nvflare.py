"""Jobs of NVFlare as it documents them, run by its simulator and by a project that it provisions: before and after."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import guides
import numpy as np
import psutil
import pytest
from etcd_servers import free_port

nvflare = pytest.importorskip("nvflare", reason="NOT TESTED: make test-integrations installs nvflare")
yaml = pytest.importorskip("yaml", reason="NOT TESTED: make test-integrations installs nvflare")

JOBS = Path(__file__).parent / "nvflare_jobs"
ROOT = Path(__file__).parents[2]
RUN_S = 600.0
NOT_THERE = "Failed to create connection to the child process"
"""NVFlare's simulator gives up a client whose process is not there within 60 s, which nothing can change, and ends the
job without a fault: beside other work on the machine that happens.  Such a run says nothing of LIFL, and is made again.
"""
TRIES = 3
LINE = 'train_script="hello_client.py",'
MEAN = re.compile(r"LIFL: the mean of (\d+) updates, of weight (\S+)")


def said_by(command: list[str], folder: Path, env: dict[str, str]) -> tuple[bool, str]:
    """Run a command to its end, or until a client is not there: the others would wait for it.

    Return whether it failed, and what it said.
    """
    lines = []
    with subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        late = threading.Timer(RUN_S, killed, [process.pid])
        late.start()
        try:
            for line in process.stdout:
                lines.append(line)
                if NOT_THERE in line:
                    killed(process.pid)
        except BaseException:
            killed(process.pid)
            raise
        finally:
            late.cancel()
    return process.returncode != 0, "".join(lines)


def killed(pid: int) -> None:
    """Kill a process with all that descends from it: NVFlare gives its simulator a session of its own."""
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(pid).children(recursive=True)
        for each in [psutil.Process(pid), *family]:
            with suppress(psutil.NoSuchProcess):
                each.kill()


class Run:
    """A job's run that has ended: what it said, and what it left."""

    def __init__(self, program: Path, arguments: list[str], name: str, workspace: Path) -> None:
        # NVFlare puts its jobs' own folder before everything else: see `lifl/integrations/nvflare/__init__.py`.
        env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "NVFLARE_POC_WORKSPACE": str(workspace / "poc")}
        workspace.mkdir(exist_ok=True)
        env["HOME"] = str(workspace)  # NVFlare writes there, too
        command = [sys.executable, str(program), str(workspace), *arguments]
        for _ in range(TRIES):
            shutil.rmtree(workspace / name, ignore_errors=True)
            self.failed, self.text = said_by(command, program.parent, env)
            if NOT_THERE not in self.text:
                break
        self.server = workspace / name / "server/simulate_job"

    @property
    def means(self) -> list[tuple[int, float]]:
        """Of each round that LIFL aggregated, the number of updates and their weight."""
        return [(int(count), float(weight)) for count, weight in MEAN.findall(self.text)]

    def model(self, name: str = "model.npz") -> dict[str, Any]:
        """The last model."""
        assert not self.failed, self.text[-4000:]
        found = np.load(self.server / name)
        return dict(found) if name.endswith("z") else {"": found}

    def metrics(self) -> list[dict[str, Any]]:
        """What NVFlare wrote of each round's metrics, the sites in the order of their names."""
        lines = (self.server / "metrics/round_metrics.jsonl").read_text().splitlines()
        rounds = [json.loads(line) for line in lines]
        return [each | {"sites": sorted(each["sites"], key=lambda site: site["name"])} for each in rounds]


def hello(folder: Path, *more: str, behind: str = "") -> Run:
    """Runs the first example, with lines added to its recipe's arguments and behind it."""
    text = (JOBS / "hello_job.py").read_text()
    assert text.count(LINE) == 1
    changed = text.replace(LINE, "\n        ".join([LINE, *more])).replace("    run = ", f"    {behind}\n    run = ")
    imports = "from lifl.integrations.nvflare import LiflAggregator, send_by_lifl\n\n\ndef main"
    folder.mkdir()
    (folder / "hello_job.py").write_text(changed.replace("\ndef main", imports) if more else text)
    (folder / "hello_client.py").write_text((JOBS / "hello_client.py").read_text())
    return Run(folder / "hello_job.py", [], "hello-numpy", folder)


def many(folder: Path, way: str, special: str) -> Run:
    """Runs the job of many tensors."""
    return Run(JOBS / "many_job.py", [way, special], "many", folder)


def same_models(stock: dict[str, Any], ours: dict[str, Any], kind: str = "FULL") -> None:
    """They are to float tolerance; but half precision is exactly right, which NVFlare's own sums in it are not."""
    assert list(stock) == list(ours)
    for name, array in stock.items():
        assert (array.dtype, array.shape) == (ours[name].dtype, ours[name].shape), name
        if array.dtype == np.float16:
            assert np.array_equal(ours[name], right_half(kind)), name
        else:
            np.testing.assert_allclose(ours[name], array, rtol=1e-5, atol=1e-6)


def right_half(kind: str) -> Any:
    """The job's tensor in half precision after its two rounds, each mean rounded once."""
    sys.path.insert(0, str(JOBS))
    try:
        from many_parts import first_model
    finally:
        sys.path.remove(str(JOBS))
    model = first_model()["half"]
    for _ in range(2):
        steps = [np.float16((number + 1) / 7) for number in (1, 2, 3)]
        updates = [np.full(model.shape, step) if kind == "DIFF" else model + step for step in steps]
        mean = np.average(np.asarray(updates, np.float64), axis=0, weights=[25, 20, 30]).astype(np.float16)
        model = model + mean if kind == "DIFF" else mean
    return model


def same_metrics(one: Run, other: Run) -> None:
    """NVFlare's own files of them say the same."""
    for first, second in zip(one.metrics(), other.metrics(), strict=True):
        averages = [{each["name"]: each["value"] for each in of["aggregated_metrics"]} for of in (first, second)]
        assert averages[0] == pytest.approx(averages[1])
        assert first | {"aggregated_metrics": 0} == second | {"aggregated_metrics": 0}


def test_one_line_of_the_first_example_is_changed_and_its_result_is_the_same(tmp_path: Path) -> None:
    before = hello(tmp_path / "before")
    after = hello(tmp_path / "after", "aggregator=LiflAggregator(),")
    by_lifl = hello(tmp_path / "by-lifl", "aggregator=LiflAggregator(),", behind="send_by_lifl(recipe)")
    expected = before.model("models/server.npy")[""]
    for run in (after, by_lifl):
        np.testing.assert_array_equal(run.model("models/server.npy")[""], expected)
        assert run.means == [(2, 4.0)] * 2
        same_metrics(before, run)
    assert "own message" not in by_lifl.text


def test_weights_metrics_exclusions_and_every_kind_of_tensor_are_as_nvflare_has_them(tmp_path: Path) -> None:
    stock = many(tmp_path / "stock", "stock", "FULL,unmeasured")
    aggregator = many(tmp_path / "aggregator", "aggregator", "FULL,unmeasured")
    # One of the three does not reach the gateway: it asks for the model, and its update rides in its message.
    cut = many(tmp_path / "cut", "filters", "FULL,unmeasured,cut")
    expected = stock.model()
    assert "skip.this" not in expected
    for run in (aggregator, cut):
        same_models(expected, run.model())
        assert run.means == [(3, 75.0)] * 2
        assert all(not each["aggregated_metrics"] for each in run.metrics())
        same_metrics(stock, run)
    assert cut.text.count("client site-2 cannot fetch the model") == 1, "not once, or not in NVFlare's own message"


def test_differences_are_added_to_the_model(tmp_path: Path) -> None:
    stock, by_lifl = (many(tmp_path / way, way, "DIFF") for way in ("stock", "filters"))
    same_models(stock.model(), by_lifl.model(), "DIFF")
    same_metrics(stock, by_lifl)
    assert by_lifl.means == [(3, 75.0)] * 2


def test_updates_that_are_not_laid_out_as_the_model_ride_in_the_messages(tmp_path: Path) -> None:
    stock, by_lifl = (many(tmp_path / way, way, "FULL,part") for way in ("stock", "filters"))
    same_models(stock.model(), by_lifl.model())
    assert "half" not in by_lifl.model()
    assert by_lifl.text.count("not laid out as the model") == 3, "each client says it once"


@pytest.mark.parametrize("way", ["aggregator", "filters"])
def test_an_update_that_cannot_count_is_refused_by_its_name_and_the_others_count(way: str, tmp_path: Path) -> None:
    run = many(tmp_path / way, way, "FULL,nan")
    assert run.means == [(2, 55.0)] * 2, run.text[-4000:]
    assert "element 0 of tensor 'wide'" in run.text
    assert np.isfinite(run.model()["wide"]).all()
    if way == "filters":
        assert "cannot count: element 0 of tensor 'wide'" in run.text, "the client is not told"


def test_a_run_whose_clients_nvflare_does_not_wait_for_is_made_again(tmp_path: Path) -> None:
    program = tmp_path / "job.py"
    program.write_text(
        "import os, sys, time\n"
        "if os.path.exists(sys.argv[2]):\n"
        "    print('LIFL: the mean of 1 updates, of weight 2')\n"
        "else:\n"
        "    open(sys.argv[2], 'w').close()\n"
        f"    print('ERROR - RuntimeError: {NOT_THERE} in', flush=True)\n"
        "    time.sleep(600)\n"
    )
    assert Run(program, [str(tmp_path / "once")], "job", tmp_path / "w").means == [(1, 2.0)]


def test_what_cannot_be_is_refused_by_its_name(tmp_path: Path) -> None:
    alone = many(tmp_path / "alone", "alone", "FULL")
    assert alone.failed and "only a LiflAggregator takes what comes of them" in alone.text
    unfit = many(tmp_path / "unfit", "aggregator", "FULL,unfit")
    assert unfit.failed and "cannot aggregate this job's model: tensor 'words'" in unfit.text.replace("\\", "")
    assert "sent task assignment" not in unfit.text, "before the first round's first message"
    mixed = many(tmp_path / "mixed", "aggregator", "FULL,mixed")
    assert "params_type is" in mixed.text and mixed.means != [(3, 75.0)] * 2


def test_a_job_keeps_the_packages_that_it_leaves_out() -> None:
    from nvflare.job_config.api import FedJob
    from nvflare.job_config.defs import FilterType

    from lifl.integrations.nvflare import LiflFilter

    job = FedJob(name="packages", min_clients=1)
    job.set_app_packages(["mine"])
    for _ in range(2):
        job.to_server(LiflFilter(), filter_type=FilterType.TASK_DATA, tasks=["train"])
    assert job.job.app_packages == ["lifl", "mine"]


def test_a_client_that_could_not_fetch_the_model_is_sent_references_again_after_some_rounds() -> None:
    from nvflare.apis.event_type import EventType
    from nvflare.apis.fl_constant import ReservedKey
    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.shareable import Shareable

    from lifl.integrations.nvflare.aggregator import AGAIN_ROUNDS, LiflAggregator

    context, peer = FLContext(), FLContext()
    peer.set_prop(ReservedKey.IDENTITY_NAME, "site-1")
    context.set_peer_context(peer)
    aggregator, params = LiflAggregator(), {"w": np.ones(3, np.float32)}
    sent = []
    try:
        for number in range(AGAIN_ROUNDS + 2):
            aggregator.reset_stats()
            aggregator._prepare(params)
            if number == 1:
                reply = aggregator._give_model("", Shareable({"why": "x" * 10_000}), context)
                assert reply["DXO"]["data"] is params
            sent.append(aggregator.sent_to("site-1", params) is not None)
            assert aggregator.sent_to("site-3", {"w": params["w"] + 1}) is None, "past a filter that has changed it"
            assert aggregator.sent_to("site-2", params) is not None
    finally:
        aggregator.handle_event(EventType.END_RUN, context)
    assert sent == [True] + [False] * AGAIN_ROUNDS + [True]


def provisioned(port: int) -> str:
    """NVFlare's own example of a project, with three sites and a port that is free."""
    project = yaml.safe_load((Path(nvflare.__file__).parent / "lighter/dummy_project.yml").read_text())
    participants = [each for each in project["participants"] if each["type"] != "client"]
    next(each for each in participants if each["type"] == "server").update(name="server", fed_learn_port=port)
    participants += [{"name": f"site-{number}", "type": "client", "org": "nvidia"} for number in (1, 2, 3)]
    return str(yaml.safe_dump(project | {"participants": participants}))


def test_in_a_provisioned_project(tmp_path: Path) -> None:
    project = tmp_path / "project.yml"
    project.write_text(provisioned(free_port()))
    run = Run(JOBS / "many_job.py", ["filters", "FULL", str(project)], "many", tmp_path)
    assert not run.failed and "STATUS FINISHED:COMPLETED" in run.text, run.text[-4000:]
    place = re.findall(r"^RESULT (.*)$", run.text, re.MULTILINE)[0]
    (path,) = Path(place).rglob("model.npz")
    stock = many(tmp_path / "stock", "stock", "FULL")
    same_models(stock.model(), dict(np.load(path)))
    (log,) = (path for path in Path(place).rglob("log.txt"))
    assert MEAN.findall(log.read_text()) == [("3", "75")] * 2


def test_the_lines_of_the_page_are_run_as_they_stand(tmp_path: Path) -> None:
    recipe, behind = (block.text for block in guides.blocks(ROOT / "docs/nvflare.md") if block.language == "python")
    example = (JOBS / "hello_job.py").read_text()
    own = example.partition("NumpyFedAvgRecipe(")[2].partition("\n    )")[0]
    assert recipe.count("    ...,") == 1
    imports = [line for line in example.splitlines() if line.startswith(("import ", "from "))]
    run = "recipe.execute(SimEnv(num_clients=2, workspace_root=sys.argv[1]))"
    body = textwrap.indent("\n".join([recipe.replace("    ...,", own), behind, run]), "    ")
    (tmp_path / "job.py").write_text("\n".join([*imports, "if __name__ == '__main__':", body, ""]))
    (tmp_path / "hello_client.py").write_text((JOBS / "hello_client.py").read_text())
    assert Run(tmp_path / "job.py", [], "hello-numpy", tmp_path / "w").means == [(2, 4.0)] * 2
