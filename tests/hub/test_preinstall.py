"""PyTorch comes with the server of a real hub: its real users, its real proxy, a real browser."""

from __future__ import annotations

import contextlib
import http.cookiejar
import json
import re
import shutil
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Page

from tests.browser.front_end import Browser
from tests.hub.campus import Campus, UnixUser
from tests.hub.hub import Hub
from tests.kernels import Kernel
from torchenv_magic.hub import OPTION
from torchenv_magic.preinstall.record import Record, read_record

pytest_plugins = ["tests.hub.fixtures", "tests.kernel_wheels"]
pytestmark = [pytest.mark.hub]

AXE = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
SECONDS = 90.0
HUB_SECONDS = 30
"""What JupyterHub gives a server to answer, where nobody has set anything."""
LINES = """
from torchenv_magic.hub import configure


def limit(spawner):
    # As a hub that has left its time-outs as they are.
    if "defaults" in (group.name for group in spawner.user.groups):
        spawner.http_timeout = {seconds}


c.Spawner.pre_spawn_hook = limit
c.Spawner.environment["TORCHENV_FIND_LINKS"] = lambda spawner: (
    {wheels!r} + (":" + {real!r} if spawner.user.name == {named!r} else "")
)
c.JupyterHub.cleanup_servers = False
c.JupyterHub.load_groups = {{"defaults": {{"users": {names!r}}}}}
configure(c, variants=("auto", "cpu", "cu126"), wait=60)


def be_patient(spawner):
    # How long the install is waited for is settled by now; how long Jupyter takes is the machine's.
    spawner.http_timeout = 120
    return "1"


c.Spawner.environment["TEST_PATIENCE"] = be_patient
"""
IMPORT = "import torch; print(torch.__version__)"


@pytest.fixture(scope="module")
def users(campus: Campus) -> Iterator[list[UnixUser]]:
    with campus.users(10) as users:
        yield users


@pytest.fixture(scope="module")
def hub(
    tmp_path_factory: pytest.TempPathFactory, campus: Campus, users: list[UnixUser]
) -> Iterator[Hub]:
    """Give a hub of the ten.

    For three of them its time-outs are JupyterHub's own, and one has the real wheel in reach.
    """
    lines = LINES.format(
        seconds=HUB_SECONDS,
        wheels=str(campus.wheels),
        real=str(campus.directory / "real"),
        named=users[9].name,
        names=[user.name for user in users[4:7]],
    )
    hub = campus.hub(tmp_path_factory.mktemp("hub"), lines)
    hub.start()
    for user in users:
        hub.ask("POST", f"users/{user.name}", accept=409)
    yield hub
    hub.stop()


@pytest.fixture(autouse=True)
def _whole_standin(campus: Campus) -> Iterator[None]:
    yield
    campus.standin.reset()


# ------------------------------------------------------------------------------------ one person


@pytest.mark.browser
def test_a_person_picks_a_build_watches_it_come_and_imports_torch_in_the_first_cell(
    hub: Hub, users: list[UnixUser], campus: Campus, browser: Browser, tmp_path: Path
) -> None:
    person = users[0]
    campus.standin.rate = 250_000  # the page has something to show

    def visit() -> None:
        context = browser.new_context(1)
        page = context.new_page()
        try:
            _log_in(page, hub, person)
            _pick(page, tmp_path)
            _watch(page, tmp_path)
            campus.standin.rate = None
            _work(page, person, tmp_path)
        except BaseException:
            page.screenshot(path=tmp_path / "failure.png")
            raise
        finally:
            context.close()

    browser.perform(visit)
    record = _record_of(person)
    assert (record.status, record.backend) == ("done", "cpu")


def _log_in(page: Page, hub: Hub, person: UnixUser) -> None:
    page.goto(f"{hub.url}hub/spawn")
    page.fill("#username_input", person.name)
    page.fill("#password_input", "any")
    page.click("#login_submit")


def _pick(page: Page, pictures: Path) -> None:
    """Choose by keyboard alone, on a page that axe finds no fault with."""
    automatic = page.get_by_role("radio", name="Automatic (recommended)")
    automatic.wait_for()
    for width in (1100, 420):
        page.set_viewport_size({"width": width, "height": 800})
        page.screenshot(path=pictures / f"form-{width}.png")
    assert automatic.is_checked()
    page.evaluate(AXE)
    found = page.evaluate("async () => (await axe.run('fieldset')).violations.map(v => v.id)")
    assert found == []
    automatic.focus()
    page.keyboard.press("ArrowDown")
    assert page.get_by_role("radio", name="CPU only").is_checked()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")


def _watch(page: Page, pictures: Path) -> None:
    page.wait_for_url("**/hub/spawn-pending/**")
    page.wait_for_function(
        "() => /torch/i.test(document.getElementById('progress-message').textContent)"
        " && Number(document.getElementById('progress-bar').getAttribute('aria-valuenow')) > 50"
    )
    page.locator("summary").click()
    for width in (1100, 420):
        page.set_viewport_size({"width": width, "height": 800})
        page.screenshot(path=pictures / f"pending-{width}.png")


def _work(page: Page, person: UnixUser, pictures: Path) -> None:
    page.set_viewport_size({"width": 1100, "height": 800})
    page.wait_for_url(f"**/user/{person.name}/lab**", timeout=SECONDS * 1000)
    page.locator('.jp-LauncherCard[title="PyTorch (torchenv)"]').first.click()
    # What is run before the page is connected to the kernel is run by nobody.
    page.get_by_text("PyTorch (torchenv) | Idle").wait_for(timeout=SECONDS * 1000)
    cell = page.locator(".jp-Notebook .jp-Cell .cm-content").first
    cell.click()
    cell.fill(IMPORT)
    page.keyboard.press("Shift+Enter")
    output = page.locator(".jp-OutputArea-output").first
    output.wait_for(timeout=SECONDS * 1000)
    page.screenshot(path=pictures / "lab.png")
    assert re.fullmatch(r"2\.\d+\.\d+\+cpu", output.inner_text().strip())


# ------------------------------------------------------------------------------- what they choose

REFUSED = ["cpu\nLD_PRELOAD=x", "<img src=x onerror=alert(1)>", "x" * 5000]
REFUSED_AS_DATA = [*REFUSED, "$(id)", "", 5, None, ["cpu"], {"a": 1}]
TOLD = "What was asked for is no build of PyTorch: choose one of auto, cpu, cu126"


def test_what_is_no_build_is_refused_whichever_way_it_comes_and_not_remembered(
    hub: Hub, users: list[UnixUser]
) -> None:
    person = users[4]
    server = f"users/{person.name}/server"
    ask = _session(hub, person)
    for value in REFUSED_AS_DATA:
        status, answer = _status(hub, "POST", server, {"user_options": {OPTION: value}})
        assert (status, json.loads(answer)["message"]) == (400, TOLD), value
        _status(hub, "PATCH", server, {"user_options": {OPTION: value}})
        status, answer = _status(hub, "POST", server, None)
        assert (status, json.loads(answer)["message"]) == (400, TOLD), value
        assert _remembered(hub, person) == {}
    for text in REFUSED:
        for several in ([text], ["cpu", text]):
            query = urllib.parse.urlencode([(f"opt-{OPTION}", each) for each in several])
            status, page = ask(f"hub/spawn?{query}", None)
            assert (status, TOLD in page, "<img src=x" in page) == (400, True, False), several
            body = urllib.parse.urlencode([(OPTION, each) for each in several])
            status, page = ask("hub/spawn", body)
            assert (status, TOLD in page, "<img src=x" in page) == (400, True, False), several
    assert not person.processes()


# ---------------------------------------------------------------------------- several at one time


def test_with_the_recommended_settings_three_at_once_have_torch_at_their_first_cell(
    hub: Hub, users: list[UnixUser]
) -> None:
    """One of them has chosen what is no longer offered, which is told and stops nobody."""
    three = users[1:4]
    withdrawn = three[0]
    server = f"users/{withdrawn.name}/server"
    hub.ask("PATCH", server, {"user_options": {OPTION: "rocm7.2"}})
    with _answering(hub):
        addresses = _start_all(hub, three)
    for person in three:
        record = _record_of(person)
        assert record.status == "done", record
        assert ("offers no build rocm7.2 of PyTorch" in record.notice) == (person is withdrawn)
        _assert_first_cell(hub, addresses[person.name], person)
    assert f"{withdrawn.name}: This hub offers no build rocm7.2 of PyTorch" in hub.log()


def test_with_the_time_outs_of_jupyterhub_three_at_once_get_their_servers_and_torch_meanwhile(
    hub: Hub, users: list[UnixUser]
) -> None:
    three = users[4:7]
    with _answering(hub):
        addresses = _start_all(hub, three)
    for person in three:
        assert _wait_told(person) < HUB_SECONDS
        _wait_until_done(person)
        (python,) = person.home.glob(".local/share/torchenv/environments/*/bin/python")
        assert person.run(python, "-c", IMPORT).stdout.strip().endswith("+cpu")
    # What a kernel makes of it, the three above have shown.
    _assert_first_cell(hub, addresses[three[0].name], three[0])


@pytest.mark.real_wheel
def test_the_real_pytorch_is_there_at_the_first_cell_and_computes(
    hub: Hub, users: list[UnixUser], campus: Campus, real_wheel: Path
) -> None:
    person = users[9]
    (campus.directory / "real").mkdir()
    shutil.copy(real_wheel, campus.directory / "real")
    hub.ask("POST", f"users/{person.name}/server")
    address = hub.wait_until_ready(person.name, timeout=120)
    assert _record_of(person).status == "done"
    with _kernel(hub, address, person) as kernel:
        computed = kernel.printed(kernel.send("import torch; print((torch.ones(3) * 2).sum())"))
    # It may warn above that there is no NumPy.
    assert computed.splitlines()[-1] == "tensor(6.)"


# ----------------------------------------------------------------------------- in the middle of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Middle:
    """What became of two whose servers were still waiting for their PyTorch."""

    stopped: UnixUser
    waiting: UnixUser
    posted: list[int]
    """How the hub answered to news of the one that was stopped, from it and from others."""
    deleted: int
    seconds: float
    pending: str | None
    """What the hub was doing for the other one when it was killed."""
    address: str
    """Of the other one's server, from the hub that came after."""


@pytest.fixture(scope="module")
def middle(hub: Hub, users: list[UnixUser], campus: Campus) -> Middle:
    """Stop one server while it waits for its install, then kill the hub while another does."""
    stopped, waiting = users[7:9]
    server = f"users/{stopped.name}/server"
    campus.standin.rate = 100_000
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(_ask_for_server, hub, person) for person in (stopped, waiting)]
        _wait_for(lambda: _is_installing(stopped) and _is_installing(waiting))
        _wait_for(campus.standin.downloads)
        token = _token_of_server(stopped)
        posted = [
            _post_news(hub, token, {"message": "<b>x</b>", "fraction": 0.5}),
            _post_news(hub, token, {"message": 5}),
            _post_news(hub, token, {"message": "x" * 5000}),
            _post_news(hub, "x" * 32, {"message": "x"}),
            _post_news(hub, "", {"message": "x"}),
        ]
        before = time.monotonic()
        deleted, _ = _status(hub, "DELETE", server, None)
        seconds = time.monotonic() - before
        posted.append(_post_news(hub, token, {"message": "x"}))
        assert _record_of(waiting).status == "running"
        pending = hub.ask("GET", f"users/{waiting.name}")["servers"][""]["pending"]
        hub.kill()
        for each in asked:
            each.result()
    hub.start_again()
    campus.standin.rate = None
    return Middle(
        stopped=stopped,
        waiting=waiting,
        posted=posted,
        deleted=deleted,
        seconds=seconds,
        pending=pending,
        address=hub.wait_until_ready(waiting.name),
    )


def _ask_for_server(hub: Hub, person: UnixUser) -> None:
    # The hub is killed before it has answered.
    with contextlib.suppress(OSError):
        _status(hub, "POST", f"users/{person.name}/server", None)


def test_a_hub_that_ends_while_a_server_waits_leaves_server_and_install_alive(
    hub: Hub, middle: Middle
) -> None:
    assert middle.pending == "spawn"
    assert _record_of(middle.waiting).status == "done"
    _assert_first_cell(hub, middle.address, middle.waiting)


def test_a_server_that_is_stopped_in_the_middle_goes_at_once_and_finds_its_torch_the_next_time(
    hub: Hub, middle: Middle
) -> None:
    assert middle.deleted == 204
    assert middle.seconds < 30
    _wait_until_done(middle.stopped)
    hub.ask("POST", f"users/{middle.stopped.name}/server")
    _assert_first_cell(hub, hub.wait_until_ready(middle.stopped.name), middle.stopped)


def test_what_belongs_to_a_person_s_server_is_told_by_that_server_alone(middle: Middle) -> None:
    *before, after = middle.posted
    assert before == [204, 400, 400, 403, 403]
    assert after in (403, 404)


# --- what all of them do --------------------------------------------------------------------------


def _start_all(hub: Hub, people: list[UnixUser]) -> dict[str, str]:
    """Start a server for each at the same time; return their addresses."""

    def start(person: UnixUser) -> str:
        hub.ask("POST", f"users/{person.name}/server")
        return hub.wait_until_ready(person.name)

    with ThreadPoolExecutor() as pool:
        return dict(zip([each.name for each in people], pool.map(start, people), strict=True))


@contextlib.contextmanager
def _answering(hub: Hub) -> Iterator[None]:
    """Hold that the hub answers all the time, however busy the machine is."""
    slowest = 0.0
    ended = threading.Event()

    def ask() -> None:
        nonlocal slowest
        while not ended.wait(0.2):
            before = time.monotonic()
            hub.ask("GET", "")
            slowest = max(slowest, time.monotonic() - before)

    with ThreadPoolExecutor() as pool:
        asking = pool.submit(ask)
        try:
            yield
        finally:
            ended.set()
        asking.result()
    assert slowest < 20


@contextlib.contextmanager
def _kernel(hub: Hub, address: str, person: UnixUser) -> Iterator[Kernel]:
    """Start the kernel that came with PyTorch, as a front end does, and speak to it."""
    made = hub.ask_at(address, "POST", "api/kernels", {"name": "torchenv"})
    _wait_for(person.kernel_connection(made["id"]).exists)
    with Kernel.attach(person.kernel_connection(made["id"])) as kernel:
        yield kernel


def _assert_first_cell(hub: Hub, address: str, person: UnixUser) -> None:
    with _kernel(hub, address, person) as kernel:
        assert kernel.printed(kernel.send(IMPORT)).strip().endswith("+cpu")


def _is_installing(person: UnixUser) -> bool:
    try:
        return _record_of(person).status == "running"
    except AssertionError:  # it hasn't begun
        return False


def _record_of(person: UnixUser) -> Record:
    """Return how this person's last preinstall stands, wherever its server is by now."""
    folders = person.preinstalls()
    assert folders
    record = read_record(folders[-1])
    assert record is not None
    return record


def _variables(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def _wait_told(person: UnixUser) -> float:
    """Return how many seconds a server was told to wait for its install at most."""
    told = {_variables(each).get("TORCHENV_PREINSTALL_WAIT") for each in person.processes()}
    (seconds,) = told - {None}
    assert seconds
    return float(seconds)


def _token_of_server(person: UnixUser) -> str:
    tokens = {_variables(each).get("JUPYTERHUB_API_TOKEN") for each in person.processes()}
    (token,) = tokens - {None}
    assert token
    return token


def _remembered(hub: Hub, person: UnixUser) -> dict[str, Any]:
    model = hub.ask("GET", f"users/{person.name}?include_stopped_servers")
    options: dict[str, Any] = model["servers"][""]["user_options"]
    return options


def _post_news(hub: Hub, token: str, news: dict[str, Any]) -> int:
    return _open(
        _DIRECT, f"{hub.url}hub/api/torchenv/progress", "POST", json.dumps(news), token=token
    )[0]


def _status(hub: Hub, method: str, path: str, body: Any) -> tuple[int, str]:
    return _open(
        _DIRECT, f"{hub.url}hub/api/{path}", method, json.dumps(body or {}), token=hub.token
    )


def _session(hub: Hub, person: UnixUser) -> Callable[[str, str | None], tuple[int, str]]:
    """Log in as a browser does; return what asks for pages, by POST where there is a body."""
    cookies = http.cookiejar.CookieJar()
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(cookies)
    )

    def secret() -> str:
        return next(cookie.value or "" for cookie in cookies if cookie.name == "_xsrf")

    def ask(path: str, body: str | None) -> tuple[int, str]:
        if body is None:
            return _open(opener, f"{hub.url}{path}", "GET", None)
        return _open(opener, f"{hub.url}{path}?_xsrf={secret()}", "POST", body)

    ask("hub/login", None)
    ask("hub/login", f"username={person.name}&password=any")
    # The name of the cookie is the same, its value another one for who is logged in.
    ask("hub/home", None)
    return ask


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _open(
    opener: urllib.request.OpenerDirector,
    address: str,
    method: str,
    body: str | None,
    *,
    token: str | None = None,
) -> tuple[int, str]:
    request = urllib.request.Request(
        address, data=None if body is None else body.encode(), method=method
    )
    if token is not None:
        request.add_header("Authorization", f"token {token}")
    try:
        with opener.open(request, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def _wait_until_done(person: UnixUser) -> None:
    _wait_for(lambda: _record_of(person).status != "running")
    assert _record_of(person).status == "done", _record_of(person)


def _wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
