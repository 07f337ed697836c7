"""How long a person waits for their first cell on a hub, beside the same hub without PyTorch.

From the moment that the hub is asked for a server to the output of the first cell. Ours is
`import torch` in the kernel that came with the server, with the settings that the page for admins
recommends for one machine: a layer, and `wait=60`. The peer's is `print` in a kernel of a hub that
knows nothing of us. The hub, its proxy, its users and their servers are real.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measuring import BenchmarkError, Comparison, Goal, Series, take_turns
from benchmarks.stage import Stage, run_program, serve_torch
from tests.hub.campus import Campus, CampusMissingError, UnixUser, make_campus
from tests.hub.hub import Hub, HubMissingError, install_proxy
from tests.kernel_wheels import pack_kernel_wheels
from tests.kernels import Kernel
from tests.standin import StandIn

__all__ = ["measure"]

_MOST_RUNS = 5
"""A round takes four servers, half a minute."""
_GOAL = Goal(kind="ratio", limit=1.2)
_LINES = """
from torchenv_magic.hub import configure

configure(c, wait=60, form=False, layers=({layers!r},))
"""


def measure(stage: Stage) -> Iterator[Comparison]:
    """Start servers of new users and start them again; needs root, which can add users."""
    directory = stage.directory / "hub-login"
    directory.mkdir()
    runs = min(stage.runs, _MOST_RUNS)
    with ExitStack() as stack:
        standin = stack.enter_context(StandIn())
        torch = serve_torch(standin, directory)
        try:
            campus = stack.enter_context(
                make_campus(
                    standin=standin,
                    wheels=pack_kernel_wheels(directory),
                    wheel=stage.project_wheel,
                    cache=directory / "cache",
                    proxy=install_proxy(directory / "proxy"),
                )
            )
            layers = _build_layer(campus, torch.requirement)
            users = stack.enter_context(campus.users(2 * (runs + 1)))
        except (CampusMissingError, HubMissingError) as error:
            raise BenchmarkError(f"hub_login: {error}") from None
        ours = _start_hub(stack, campus, directory / "ours", _LINES.format(layers=str(layers)))
        bare = _start_hub(stack, campus, directory / "bare", "")
        waiting = iter(users)
        pairs = take_turns(
            "hub_login",
            runs,
            lambda: _Person(ours, next(waiting)).come_twice("torchenv", _IMPORT),
            lambda: _Person(bare, next(waiting)).come_twice("python3", _PRINT),
        )
        yield from _comparisons(pairs, str(torch))


def _comparisons(pairs: Sequence[tuple[_Seconds, _Seconds]], torch: str) -> Iterator[Comparison]:
    for title, name in (("a user's first start", "first"), ("a later start", "later")):
        yield Comparison(
            title=f"hub_login: {title} ({torch})",
            ours=Series(
                name="from login to `import torch`, by a layer",
                seconds=tuple(getattr(ours, name) for ours, _ in pairs),
            ),
            peer=Series(
                name="from login to `print`, no PyTorch",
                seconds=tuple(getattr(bare, name) for _, bare in pairs),
            ),
            goal=_GOAL,
        )


_IMPORT = "import torch\nprint(torch.__version__)"
_PRINT = "print('2.0')"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seconds:
    first: float
    later: float


@dataclass(frozen=True, slots=True)
class _Person:
    """One user of one hub, who has never been there."""

    hub: Hub
    user: UnixUser

    def come_twice(self, kernel: str, code: str) -> _Seconds:
        self.hub.ask("POST", f"users/{self.user.name}")
        return _Seconds(first=self._come(kernel, code), later=self._come(kernel, code))

    def _come(self, kernel: str, code: str) -> float:
        server = f"users/{self.user.name}/server"
        began = time.perf_counter()
        self.hub.ask("POST", server)
        url = self.hub.wait_until_ready(self.user.name)
        made = self.hub.ask_at(url, "POST", "api/kernels", {"name": kernel})
        with Kernel.attach(self.user.kernel_connection(made["id"])) as running:
            text = running.printed(running.send(code))
        seconds = time.perf_counter() - began
        if "2." not in text:
            raise BenchmarkError(f"hub_login: the first cell said {text!r}")
        self.hub.ask("DELETE", server)
        return seconds


def _build_layer(campus: Campus, requirement: str) -> Path:
    """Build a layer as root does it once for all users."""
    layers = campus.directory / "layers"
    command = [str(campus.server / "bin" / "torchenv"), "layer", "build", str(layers), "cpu"]
    run_program(
        [*command, requirement, "--find-links", str(campus.wheels)],
        {**campus.variables, "HOME": str(campus.directory), "PATH": "/usr/bin:/bin"},
    )
    return layers


def _start_hub(stack: ExitStack, campus: Campus, directory: Path, lines: str) -> Hub:
    directory.mkdir()
    hub = campus.hub(directory, lines)
    stack.callback(hub.stop)
    hub.start()
    return hub
