"""The page in a real browser: what is drawn, what clicks and keys do, what the console says; axe-core judges it.

Behind the page's door stands a stage (`page_stage.py`), which plays a node of any size.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from chromium import Browser, Page, found
from fleet import OneHot, submit
from http_clients import enrolled
from lifl_cli.rounds import flat, row_of
from nodes import Node, run_lifl
from page_answers import Credentials
from page_stage import Play, Stage
from skips import AXE

from lifl.core.protocol import cli as om

needs_browser = pytest.mark.skipif(found() is None, reason="there is no Chromium")
needs_axe = pytest.mark.skipif(not AXE.exists(), reason="make test-integrations installs axe-core")
pytestmark = needs_browser
HOSTILE = "<img src=x onerror=\"document.title='owned'\"> & \u202e\u0000 'é' " + "long" * 2500


VIEWS = (
    *("", "nodes", "log", "jobs/mri-segmentation", "jobs/mri-segmentation/rounds", "jobs/mri-segmentation/clients"),
    *("jobs/mri-segmentation/config", "jobs/ecg-arrhythmia", "submit", "audit", "access"),
)
FILES_BYTES_MAX, ELEMENTS_MAX = 256 << 10, 8000
"""Of the page, whatever the size of the cluster: beyond, it is slow on a phone."""
LOADED = "!document.body.innerText.includes('Loading') && !document.body.innerText.includes('Waiting for')"


class Staged:
    """A stage in a thread of its own."""

    def __init__(self, stage: Stage, loop: asyncio.AbstractEventLoop) -> None:
        self.stage = stage
        self.play = stage.play
        self._loop = loop

    def link(self) -> str:
        return self._call(self.stage.link)

    def asked(self, kind: type) -> list[Any]:
        return [each for each in self.stage.asked if isinstance(each, kind)]

    def _call(self, what: Callable[[], str]) -> str:
        async def call() -> str:
            return what()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(60.0)


@contextmanager
def staged(play: Play, role: str = "operator") -> Iterator[Staged]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def begin() -> Stage:
        stage = Stage(play, role)
        await stage.ready
        return stage

    async def end(stage: Stage) -> None:
        stage.close()

    stage = asyncio.run_coroutine_threadsafe(begin(), loop).result(60.0)
    try:
        yield Staged(stage, loop)
    finally:
        asyncio.run_coroutine_threadsafe(end(stage), loop).result(60.0)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as found_:
        yield found_


def shown(page: Page, url: str) -> None:
    page.go(url)
    page.until("document.documentElement?.dataset.ready === 'true' && document.querySelector('.figures')")


def at(page: Page, view: str, wanted: str) -> None:
    """Go to a view, and wait for an element of it."""
    page.run(f"location.hash = '#/{view}'")
    page.until(f"document.querySelector({wanted!r})")


def test_a_visit_from_its_link_to_its_end(browser: Browser) -> None:
    """Clicks, keys, refusals; whatever a node says is text."""
    play = Play(nodes=1, clients=24, frozen=0.6)
    play.hostile = HOSTILE
    with staged(play) as stage:
        page = browser.page(1440, 900)
        link = stage.link()
        shown(page, link)
        assert page.run("location.hash + document.cookie") == "", "the link is gone, and no script reads the cookie"
        assert HOSTILE.split("\u202e", maxsplit=1)[0] in page.text() and page.run("document.title") == "LIFL"

        page.click("a[href='#/jobs/mri-segmentation']")
        page.until("document.querySelectorAll('.tree .task').length === 13")
        assert page.run("document.querySelectorAll('.task.sealed').length") == 6
        assert page.run("document.querySelector('.canvas svg').getAttribute('aria-label')").startswith(
            "Round 201: 10 leaves"
        )
        assert page.run("document.documentElement.scrollWidth") == 1440, "no name makes the page wider"
        page.click("button.round")
        page.until("document.querySelector('dialog').open && document.querySelector('dialog .tree')")
        page.key("Escape", 27)
        page.until("!document.querySelector('dialog').open")

        page.click("a[href$='/clients']")
        page.until("document.querySelectorAll('tbody tr').length === 24")
        page.run("document.querySelector('[data-filter=client]').focus()")
        page.ask("Input.insertText", text="hospital-00007")
        page.until("document.querySelectorAll('tbody tr').length === 1")
        assert page.run("document.activeElement.dataset.filter") == "client", "what is drawn anew keeps the focus"
        at(page, "log", ".log li")
        page.click("[data-do=theme]")
        page.until("document.documentElement.dataset.theme === 'dark'")

        at(page, "jobs/mri-segmentation", "[data-do=cancel]")
        page.click("[data-do=cancel]")
        page.until("document.querySelector('dialog').open")
        assert not stage.asked(om.CancelJob), "it asks first"
        page.run("document.querySelector('[data-do=agree]').focus()")
        page.key("Enter", 13)
        page.until("document.querySelector('.top .badge').textContent === 'cancelled'")
        assert stage.asked(om.CancelJob) == [om.CancelJob("mri-segmentation")]

        page.click("[data-do=leave]")
        page.until("document.body.innerText.includes('This page needs a link')")
        assert page.faults() == []
        page.go(link)
        page.until("document.body.innerText.includes('used up')")


OVERLAPPING = """[...document.querySelectorAll('.tree .task')].filter(task => {
  const [name, has] = [...task.querySelectorAll('text')].map(each => each.getBoundingClientRect());
  return name.right + 2 > has.left;
}).map(task => task.textContent)"""


def test_a_reader_has_no_buttons_and_a_node_that_is_gone_is_told(browser: Browser) -> None:
    with staged(Play(nodes=3, clients=12, frozen=0.5), "reader") as stage:
        page = browser.page(390, 844, dark=True)
        shown(page, stage.link())
        assert page.run("document.querySelectorAll('[data-do=drain], [data-do=cancel], [href=\"#/log\"]').length") == 0
        at(page, "jobs/mri-segmentation", ".tree .task")
        acts = "[data-do=cancel], [data-do=pause], [data-do=model], [href='#/submit'], [href='#/audit']"
        assert page.run(f'document.querySelectorAll("{acts}").length') == 0
        assert page.run("document.documentElement.scrollWidth") == 390, "nothing is wider than the page"
        assert page.run(OVERLAPPING) == [], "what a task is called, and what it has, stand beside each other"
        page.run("location.hash = '#/%E0%A4%A'")  # by hand, and nothing that an address can say
        page.until("document.querySelector('.figures')")
        assert page.faults() == []
    page.until("document.querySelector('[role=alert]')")


JOB = """[job]
name = "mine"
rounds = 3

[model]
path = "model.safetensors"

[selection]
clients_per_round = 2
quorum = 5
"""


def chosen(page: Page, kind: str, path: Path) -> None:
    """Choose a file, as in the dialog of the system."""
    found = page.ask("Runtime.evaluate", expression=f"document.querySelector('[data-file={kind}]')")
    page.ask("DOM.setFileInputFiles", objectId=found["result"]["objectId"], files=[str(path)])


def typed(page: Page, selector: str, text: str) -> None:
    page.run(f"document.querySelector({selector!r}).focus(); document.activeElement.select?.()")
    page.ask("Input.insertText", text=text)


def test_a_job_is_submitted_by_its_file_and_what_is_refused_is_marked(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "model.safetensors").write_bytes(b"m" * 2_500_000)
    with staged(Play(nodes=1, clients=4, frozen=0.5)) as stage:
        page = browser.page(1440, 900)
        shown(page, stage.link())
        page.click("a[href='#/submit']")
        page.until("document.querySelector('.editor')")
        chosen(page, "job", tmp_path / "job.toml")
        page.until(f"document.querySelector('[data-draft=text]').value === {JOB!r}")
        page.click("[data-do=submit-go]")
        page.until("document.querySelector('#refusal code')?.textContent === 'selection.quorum'")
        marked = "(e => e.value.slice(e.selectionStart, e.selectionEnd))(document.querySelector('[data-draft=text]'))"
        page.until(f"{marked} === 'quorum = 5'")
        typed(page, "[data-draft=overrides]", "selection.quorum=2\nselection.deadline_s=-1")
        page.click("[data-do=submit-go]")
        page.until(f"{marked.replace('=text', '=overrides')} === 'selection.deadline_s=-1'")
        typed(page, "[data-draft=overrides]", "selection.quorum=2")
        page.click("[data-do=submit-go]")
        page.until("document.querySelector('#refusal code')?.textContent === 'model.path'")
        assert not stage.asked(om.SubmitJob) and not stage.asked(om.PutModel)
        chosen(page, "model", tmp_path / "model.safetensors")
        page.until("document.querySelector('.chosen')")
        page.click("[data-do=submit-go]")
        page.until("location.hash === '#/jobs/mine'")
        assert page.run("document.getElementById('said').textContent") == "Job mine is submitted."
        (asked,) = stage.asked(om.SubmitJob)
        assert (asked.config["selection"]["quorum"], asked.config["model"]["path"]) == (
            2,
            "/var/lib/lifl/models/uploaded.safetensors",
        )
        pieces = stage.asked(om.PutModel)
        assert b"".join(each.data for each in pieces) == b"m" * 2_500_000 and len(pieces) == 3
        assert all("422" in fault for fault in page.faults())


def test_keys_are_changed_a_model_is_fetched_and_the_audit_log_read(browser: Browser, tmp_path: Path) -> None:
    play = Play(nodes=1, clients=4, frozen=0.5)
    play.hostile = HOSTILE
    with staged(play) as stage:
        page = browser.page(1440, 900)
        page.ask("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        shown(page, stage.link())
        at(page, "jobs/mri-segmentation/config", "[data-key='client.options.lr'] button")
        page.click("[data-key='client.options.lr'] button")
        page.until("document.querySelector('dialog [name=value]').value === '0.05'")
        typed(page, "dialog [name=value]", "0.01")
        page.key("Enter", 13)
        page.until("!document.querySelector('dialog').open")
        assert stage.asked(om.EditJob) == [om.EditJob("mri-segmentation", ("client.options.lr=0.01",))]
        page.click("main [data-do=edit]")
        page.until("document.querySelector('dialog').open")
        typed(page, "dialog [name=key]", "aggregation.rule")
        page.click("dialog [data-do=agree]")
        page.until("document.querySelector('dialog [role=alert]').innerText === 'cannot be changed any more'")
        page.key("Escape", 27)

        page.click("[data-do=model]")
        page.until("document.querySelector('dialog select').value === '200'")
        assert "round 197, the best: accuracy 0.941" in page.run("document.querySelector('dialog select').innerText")
        page.click("dialog [data-do=agree]")
        page.until("!document.querySelector('dialog').open")
        assert page.run("document.getElementById('said').textContent").endswith("after round 200 is downloaded.")
        found = tmp_path / "mri-segmentation-round-200.safetensors"
        page.until_that(lambda: found.exists() and found.stat().st_size == play.model_bytes)

        at(page, "audit", ".log li")
        assert page.run("document.querySelectorAll('.log li').length") == 200
        assert "Lines 1 to 523 are whole" in page.text() and page.run("document.title") == "LIFL"
        page.click("[data-before]")
        page.until("document.body.innerText.includes('lines 124 to 323')")
        page.click("main [data-do=audit]")
        page.until("document.body.innerText.includes('lines 324 to 523')")
        assert all("422" in fault for fault in page.faults())


def opened(page: Page, selector: str, wanted: str) -> None:
    """Click what opens a dialog, and wait for an element of it."""
    page.click(selector)
    page.until(f"document.querySelector('dialog').open && document.querySelector('dialog {wanted}')")


def test_somebody_is_let_in_and_out(browser: Browser, tmp_path: Path) -> None:
    play = Play(nodes=1, clients=4, frozen=0.5)
    play.hostile = HOSTILE
    play.credentials = Credentials(HOSTILE)
    with staged(play) as stage:
        page = browser.page(1440, 900)
        page.ask("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        shown(page, stage.link())
        at(page, "access", "[data-do=cert-revoke]")
        page.until("document.body.innerText.includes('page 1 of 2')")
        opened(page, "[data-do=token-make]", "[name=pattern]")
        typed(page, "dialog [name=uses]", "0")
        page.key("Enter", 13)
        assert page.run("document.activeElement.name") == "uses" and not stage.asked(om.CreateToken), (
            "the browser says no"
        )
        typed(page, "dialog [name=uses]", "3")
        typed(page, "dialog [name=jobs]", " mri-segmentation, other ")
        page.key("Enter", 13)
        page.until("document.querySelector('#token-line')")
        wanted = om.CreateToken("client", "*", ("mri-segmentation", "other"), 3, 900.0)
        assert stage.asked(om.CreateToken) == [wanted]
        line = page.run("document.querySelector('#token-line').value")
        page.click("[data-do=token-save]")
        saved = tmp_path / "lifl-d4e5f6a7.token"
        page.until_that(lambda: saved.exists() and saved.read_text() == line + "\n")
        page.key("Escape", 27)
        opened(page, "[data-do=token-make]", "[name=kind]")
        page.run("document.querySelector('dialog [name=kind]').focus()")
        page.ask("Input.insertText", text="")
        page.key("ArrowDown", 40)
        page.until("document.querySelector('dialog [name=uses]').closest('[hidden]')")
        page.click("dialog [data-do=agree]")
        assert page.run("document.activeElement.name") == "pattern" and not stage.asked(om.CreateBearer)
        typed(page, "dialog [name=pattern]", "tom")
        page.click("dialog [data-do=agree]")
        page.until("document.querySelector('dialog [role=alert]').innerText.includes('one job')")
        typed(page, "dialog [name=jobs]", "mine")
        page.click("dialog [data-do=agree]")
        page.until("document.querySelector('#token-line')")
        assert stage.asked(om.CreateBearer) == [om.CreateBearer("client", "tom", "mine", 900.0)]
        page.key("Escape", 27)

        opened(page, "[data-do=token-revoke]", "[data-do=agree]")
        page.click("dialog [data-do=agree]")
        page.until("document.querySelectorAll('[data-do=token-revoke]').length === 1")
        opened(page, "[data-do=cert-revoke]", "select")
        assert not stage.asked(om.RevokeCertificate), "it asks first"
        page.click("dialog [data-do=agree]")
        page.until("document.body.innerText.includes('69 of 70 valid')")
        opened(page, "[data-do=cert-renew]", "[data-do=agree]")
        page.click("dialog [data-do=agree]")
        page.until("!document.querySelector('dialog').open")
        assert len(stage.asked(om.RenewCertificate)) == 1
        opened(page, "[data-do=cert-rotate]", "[data-do=agree]")
        assert not stage.asked(om.RotateAuthority), "it asks first"
        page.click("dialog [data-do=agree]")
        page.until(f"document.querySelector('dialog code')?.innerText === '{'ab' * 32}'")
        page.key("Escape", 27)
        assert page.run("document.title") == "LIFL" and page.faults() == []
        assert page.run("document.documentElement.scrollWidth") == 1440


def rows_of(play: Play, job: str, number: int) -> list[dict[str, Any]]:
    """A round as `lifl history` has it."""
    return [row_of(line) for line in play.answer(om.JobStatus(job, round=number, trees=False))["rounds"]]


def in_js(value: object) -> str:
    """How a number is written there."""
    return "" if value is None else str(value).removesuffix(".0")


def test_a_plan_and_a_trace_are_shown(browser: Browser, tmp_path: Path) -> None:
    play = Play(nodes=2, clients=24, frozen=0.5)
    play.hostile = HOSTILE
    with staged(play) as stage:
        page = browser.page(390, 844)
        page.ask("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        shown(page, stage.link())
        at(page, "access", ".empty")
        assert "no certificates" in page.text()
        at(page, "submit", ".editor")
        typed(page, "[data-draft=text]", JOB.replace("model.safetensors", "/m").replace("quorum = 5\n", ""))
        opened(page, "[data-do=submit-plan]", ".figures")
        assert page.run("document.querySelector('dialog tbody tr td:nth-child(3)').innerText") == "2"
        assert not stage.asked(om.SubmitJob) and len(stage.asked(om.PlanJob)) == 1
        page.key("Escape", 27)
        at(page, "jobs/mri-segmentation/rounds", "button[data-do=receipt]")
        opened(page, "button[data-do=history]", "[data-do=agree]")
        page.click("dialog [data-do=agree]")
        table = tmp_path / "mri-segmentation.csv"
        page.until_that(lambda: table.exists() and table.read_text().count("\n") == 201)
        page.until("!document.querySelector('dialog').open")
        first, *_, last = csv.DictReader(io.StringIO(table.read_text()))
        (line,) = rows_of(play, "mri-segmentation", 200)
        assert (first["round"], last) == ("1", {name: in_js(value) for name, value in flat(line).items()})
        opened(page, "button[data-do=receipt]", "[data-do=trace]")
        page.click("dialog [data-do=trace]")
        page.until("document.querySelectorAll('dialog .trace .bar').length > 24")
        page.click("dialog [data-do=trace-save]")
        saved = tmp_path / "mri-segmentation-round-200.trace.json"
        page.until_that(lambda: saved.exists() and saved.stat().st_size > 0)
        assert {event["ph"] for event in json.loads(saved.read_text())["traceEvents"]} == {"M", "X"}
        page.key("Escape", 27)
        opened(page, "button[data-do=receipt]", "[data-do=planned]")
        page.click("dialog [data-do=planned]")
        page.until("document.querySelector('dialog').innerText.includes('its row is damaged')")
        assert page.run("document.documentElement.scrollWidth") == 390
        assert all("404" in fault for fault in page.faults()), "that the node has no certificates"


def test_where_a_key_stands_in_a_file(browser: Browser) -> None:
    with staged(Play(nodes=1, clients=4, frozen=0.5)) as stage:
        page = browser.page(1440, 900)
        shown(page, stage.link())
        text = "[job]\nname = 1\n[[client.by_label]]\noptions = {lr = 2}\n[checkpoint]\nkeep = {last = 3}\na.b = 4\n"
        for field, line in (
            ("job.name", "name = 1"),
            ("client.by_label[0].options.lr", "options = {lr = 2}"),
            ("checkpoint.keep.last", "keep = {last = 3}"),
            ("checkpoint.a.b", "a.b = 4"),
            ("checkpoint.folder", "[checkpoint]"),
            ("model", None),
            ("", None),
        ):
            script = f"import('/page/submit.js').then(m => m.placeOf({field!r}, {text!r}))"
            place = page.run(script)
            assert (place and text[place["from"] : place["to"]]) == line, field


def test_the_page_of_a_node_elsewhere_is_believed_by_its_authority(
    browser: Browser, start_node: Callable[..., Node], tmp_path: Path
) -> None:
    everywhere = ("--listen", "0.0.0.0:0", "--control", "0.0.0.0:0", "--web", "0.0.0.0:0", "--redirector", "unix")
    node = start_node(*everywhere)
    anna = enrolled(node, tmp_path, "operator", "anna")
    submit(node, "mine", OneHot(2).model(), selection__clients_per_round=2)
    control = node.info["control"].replace("0.0.0.0", "127.0.0.1")
    done = run_lifl("--node", control, "--identity", str(anna), "web", "--json")
    page = browser.page(1440, 900)
    page.go(json.loads(done.stdout)["link"])
    page.until("document.body?.innerText.includes('NET::ERR_CERT_AUTHORITY_INVALID')")  # it was not told ca.pem
    page.ask("Security.setIgnoreCertificateErrors", ignore=True)
    shown(page, json.loads(done.stdout)["link"])
    assert page.run("isSecureContext && location.protocol") == "https:"
    at(page, "jobs/mine", "[data-do=cancel]")
    page.click("[data-do=cancel]")
    page.click("dialog [data-do=agree]")
    page.until("document.querySelector('.top .badge')?.textContent === 'cancelled'")
    node.lifl("cert", "revoke", "operator/anna")
    page.until("document.body.innerText.includes('The visit is over')")
    assert page.faults() == []


def test_of_a_hundred_nodes_and_ten_thousand_clients_no_more_is_drawn_than_can_be_seen(browser: Browser) -> None:
    """What it takes to be painted within a second, which `bench/web_page.py` measures."""
    play = Play(nodes=100, clients=10_000)
    play.credentials = Credentials()
    with staged(play) as stage:
        page = browser.page(1440, 900)
        shown(page, stage.link())
        files = "performance.getEntriesByType('resource').filter(each => each.initiatorType !== 'fetch')"
        assert page.run(f"{files}.reduce((sum, each) => sum + each.decodedBodySize, 0)") < FILES_BYTES_MAX
        for view in VIEWS:
            at(page, view, "main h1")
            page.until(LOADED)
            assert page.run("document.querySelectorAll('*').length") < ELEMENTS_MAX, view
        at(page, "jobs/mri-segmentation", ".wall .card")
        assert page.run("document.querySelectorAll('.wall .card').length") == 100
        at(page, "jobs/mri-segmentation/clients", ".pages")
        page.until("document.body.innerText.includes('page 1 of 200')")
        at(page, "nodes", "[data-do=drain]")
        page.size(390, 844)
        page.until("document.documentElement.scrollWidth === 390")  # only its tables are wider
        assert page.faults() == []


CONTROLS = """[...document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex="0"]')]
  .filter(each => each.checkVisibility({visibilityProperty: true}) && !each.disabled && each.type !== 'file')"""
FOLLOW = """addEventListener('focusin', ({target}) => {
  const {outlineStyle, outlineWidth, boxShadow} = getComputedStyle(target);
  reached.add(target);
  const isSeen = (outlineStyle !== 'none' && parseFloat(outlineWidth)) || boxShadow !== 'none';
  if (target.tabIndex >= 0 && !isSeen) unseen.push(target.outerHTML);
}), 0"""


def test_each_control_is_reached_by_keys_alone_and_shows_that_it_is(browser: Browser) -> None:
    play = Play(nodes=2, clients=4, rounds=3, frozen=0.6)
    play.credentials = Credentials(certificates=4)
    with staged(play) as stage:
        page = browser.page(1440, 900)
        shown(page, stage.link())
        page.run("window.reached = new Set(), window.unseen = [], 0")
        page.run(FOLLOW)
        for view in VIEWS:
            at(page, view, "main h1")
            page.until(LOADED)
            page.run(f"reached.clear(), document.activeElement.blur(), {CONTROLS}[0].focus()")
            left = f"{CONTROLS}.filter(each => !reached.has(each)).map(each => each.outerHTML.slice(0, 200))"
            # It may begin anew by way of the browser's own, and what is loaded meanwhile may have controls, too.
            for _ in range(2 * page.run(f"{CONTROLS}.length") + 20):
                page.key("Tab", 9)
                if not page.run(f"{left}.length"):
                    break
            assert page.run(left) == [], view
        assert page.run("unseen") == []


@needs_axe
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_axe_finds_nothing(browser: Browser, dark: bool, width: int) -> None:
    play = Play(nodes=2, clients=24, frozen=0.6)
    play.credentials = Credentials()
    with staged(play) as stage:
        page = browser.page(width, 900, dark)
        shown(page, stage.link())
        page.run(AXE.read_text() + ";0")
        for view in VIEWS:
            at(page, view, "main h1")
            page.until(LOADED)
            assert judged(page) == [], view
        at(page, "jobs/mri-segmentation", "button.round")
        page.until("document.querySelector('.tree .task')")
        page.click("button.round")
        page.until("document.querySelector('dialog').open")
        assert judged(page) == [], "the dialog"
        page.key("Escape", 27)
        for what in ("model", "cancel"):
            page.click(f"[data-do={what}]")
            page.until("document.querySelector('dialog').open")
            assert judged(page) == [], what
            page.key("Escape", 27)
            page.until("!document.querySelector('dialog').open")


def judged(page: Page) -> list[str]:
    """What axe-core finds wrong."""
    script = (
        "axe.run(document, {resultTypes: ['violations']}).then(found => found.violations.map(each =>"
        " `${each.id}: ${each.nodes.map(node => `${node.target} ${node.failureSummary}`).join('; ')}`))"
    )
    said: list[str] = page.run(script)
    return said
