"""On how many machines each tool chooses a build that runs, and the best one.

The machines are those of `tests/fleet` that a process here can be put on. Each tool runs from its
command line, as a process in a mount namespace where the machine's files lie over the system's:
all of `/sys` and `/dev`, what `/proc` tells of drivers and kernel, libraries in `/usr`, and the
machine's programs as the whole PATH. A stand-in plays the PyTorch index; it serves, for each
backend, the torch releases that our catalog knows for Linux x86_64, and PyPI's beside them (and
torch 2.3.1 for ROCm 5.7, which is older than the catalog and what torchruntime has for one GPU).

What counts as a tool's answer, by rules that leave it every benefit:

- `torchenv select --json` with the machine's requirements: what it prints.
- uv: the torch that `uv pip compile --torch-backend=auto` resolves them to.
- light-the-torch: the torch that `ltt install` with pip's dry run would install.
- torchruntime: the torch that `torchruntime install` would install; pip, which it runs, is told by
  pip's variable that this is a dry run. The second install that it runs for ROCm and XPU, of
  triton, does not count.

Where a tool names no torch because no build meets the request, as pip and uv say it, that is an
answer too. `lspci`, which torchruntime asks, is a stand-in that prints the machine's PCI devices.
The two machines of the fleet where NVIDIA's library answers have an nvidia-smi as well, and it
answers here. `judgement.py` says what an answer is worth.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from benchmarks.judgement import OUTCOMES, Choice, Outcome, accelerators_of, judge, left_out
from benchmarks.measuring import BenchmarkError
from benchmarks.peers import make_peers, uv_of
from benchmarks.placing import Place, check_place, lay_out, run_on_machine
from benchmarks.stage import Stage, run_program
from tests.fleet import Machine, machines
from tests.standin import SIMPLE, StandIn, make_wheel
from tests.standin.wheels import machine_platform_tag
from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.catalog import Build, Catalog, GfxCode, load_catalog

__all__ = ["Answer", "Choices", "choice_of_json", "choice_of_text", "measure"]

# A driver that hangs hangs whoever asks it without a bound of their own.
_SECONDS = 30

_WORDS: Mapping[Outcome, str] = {
    "best": "best",
    "runs": "runs, not the best",
    "idle": "cpu, GPU idle",
    "misplaced": "GPU build, no usable GPU",
    "broken": "not for this GPU or driver",
    "failed": "error",
}

# pip: "Would install torch-2.9.1+cu129"; uv: "torch==2.13.0+cu129".
_NAMED = (r"^Would install .*?\btorch-(\S+)", r"^torch==(\S+)")
_NO_BUILD = ("No solution found", "No matching distribution found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one tool chose on one machine, and what that is worth."""

    tool: str
    machine: Machine
    choice: Choice
    outcome: Outcome

    def to_json(self) -> dict[str, Any]:
        expected = self.machine.expected
        torch = self.choice.torch
        return {
            "tool": self.tool,
            "machine": self.machine.name,
            "title": self.machine.data["title"],
            "requirements": self.machine.request.requirements,
            "expected": {"backend": expected["backend"], "torch": expected["torch"] or None},
            "torch": None if torch is None else str(torch),
            "outcome": self.outcome,
            "said": self.choice.said,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """Every answer: ours are those of the first tool."""

    tools: tuple[str, ...]
    answers: tuple[Answer, ...]
    left_out: Mapping[str, int]
    """How many machines were not put to the tools, for each reason."""

    @property
    def machine_count(self) -> int:
        return len({answer.machine.name for answer in self.answers})

    @property
    def met(self) -> bool:
        """Whether ours is the best build on every machine."""
        return self.count(self.tools[0])["best"] == self.machine_count

    @property
    def beaten(self) -> tuple[Answer, ...]:
        """The peers' answers that are worth more than ours on the same machine."""
        rank = {outcome: place for place, outcome in enumerate(OUTCOMES)}
        ours = {
            answer.machine.name: rank[answer.outcome]
            for answer in self.answers
            if answer.tool == self.tools[0]
        }
        return tuple(
            answer for answer in self.answers if rank[answer.outcome] < ours[answer.machine.name]
        )

    def count(self, tool: str) -> Counter[Outcome]:
        return Counter(answer.outcome for answer in self.answers if answer.tool == tool)

    def __str__(self) -> str:
        outcomes = OUTCOMES[2:]
        heads = ["runs", "best", *(_WORDS[outcome] for outcome in outcomes)]
        width = max(map(len, self.tools))
        lines = [
            f"choices: the build for each of {self.machine_count} machines (Linux x86_64)",
            f"  {'':<{width}}  {'  '.join(heads)}",
        ]
        for tool in self.tools:
            count = self.count(tool)
            numbers = [
                count["best"] + count["runs"],
                *(count[name] for name in ("best", *outcomes)),
            ]
            cells = [f"{number:>{len(head)}}" for number, head in zip(numbers, heads, strict=True)]
            lines.append(f"  {tool:<{width}}  {'  '.join(cells)}")
        lines.append(f"  goal: the best build on each machine: {'met' if self.met else 'MISSED'}")
        lines += [
            f"  {answer.machine.name}: {answer.tool} chose {answer.choice.torch}, "
            f"which is better than ours ({_WORDS[answer.outcome]})"
            for answer in self.beaten
        ]
        lines += [f"  left out: {number} × {reason}" for reason, number in self.left_out.items()]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return every single answer."""
        return {
            "title": "choices",
            "machines": self.machine_count,
            "left_out": dict(self.left_out),
            "tools": {
                tool: {outcome: self.count(tool)[outcome] for outcome in OUTCOMES}
                for tool in self.tools
            },
            "met": self.met,
            "answers": [answer.to_json() for answer in self.answers],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tool:
    name: str
    command: tuple[str, ...]
    """What comes before the requirements."""
    input: bool = False
    """Whether the requirements are read from standard input, instead."""
    read: Callable[[str, str], Choice]
    """Standard output and standard error to what was chosen."""


def measure(stage: Stage) -> Iterator[Choices]:
    """Ask every tool on every machine, as many machines at a time as there are processors."""
    check_place()
    catalog = _with_older_rocm(load_catalog())
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    fleet = machines()
    reasons = {
        machine.name: left_out(machine, python_tag=tag, catalog=catalog) for machine in fleet
    }
    chosen = [machine for machine in fleet if reasons[machine.name] is None]
    if not chosen:
        raise BenchmarkError(f"no machine of the fleet has builds like those for {tag}")
    directory = stage.directory / "choices"
    tools = _make_tools(stage, make_peers(directory / "peers"))
    with StandIn(pad_bytes=0) as standin:
        _serve_catalog(standin, directory / "wheels", catalog, tag)
        variables = _variables(standin, directory)
        progress = _Progress(len(chosen))

        def ask(machine: Machine) -> list[Answer]:
            place = lay_out(machine, directory / "machines" / machine.name)
            answers = []
            for tool in tools:
                choice = _ask(tool, machine, place, variables)
                outcome = judge(
                    choice,
                    expected_backend=machine.expected["backend"],
                    expected_torch=machine.expected["torch"],
                    unsupported=machine.expected.get("unsupported", ()),
                    accelerators=accelerators_of(machine),
                    driver_system="windows" if machine.expected.get("wsl") else "linux",
                    python_tag=tag,
                    catalog=catalog,
                )
                answer = Answer(tool=tool.name, machine=machine, choice=choice, outcome=outcome)
                answers.append(answer)
            progress.step()
            return answers

        with ThreadPoolExecutor(os.cpu_count()) as executor:
            answers = [answer for found in executor.map(ask, chosen) for answer in found]
        progress.end()
    yield Choices(
        tools=tuple(tool.name for tool in tools),
        answers=tuple(answers),
        left_out=Counter(reason for reason in reasons.values() if reason is not None),
    )


def _with_older_rocm(catalog: Catalog) -> Catalog:
    """Return the catalog with the one build before its time that torchruntime still chooses.

    Source: the address of its wheel in public files, and `manywheel/build_docker.sh` of
    pytorch/builder for what it holds code for.
    """
    backend = Backend.parse("rocm5.7")
    source = "pytorch/builder"
    build = Build(
        torch=Version("2.3.1"),
        backend=backend,
        wheel_platform="linux_x86_64",
        python_tags=("cp38", "cp39", "cp310", "cp311", "cp312"),
        glibc="2.17",
        source=source,
    )
    names = ("gfx900", "gfx906", "gfx908", "gfx90a", "gfx1030", "gfx1100")
    code = GfxCode(names=names, known=True, source=source)
    return replace(
        catalog,
        builds={**catalog.builds, (backend, "linux_x86_64"): (build,)},
        gfx_code_rows={**catalog.gfx_code_rows, (build.minor, backend): code},
    )


def _make_tools(stage: Stage, peers: Path) -> tuple[_Tool, ...]:
    uv = uv_of(stage)
    version = run_program([uv, "--version"], os.environ).split()[1]
    torchenv = str(stage.environment.directory / "bin" / "torchenv")

    def version_of(project: str) -> str:
        question = f"from importlib.metadata import version; print(version({project!r}))"
        return run_program([str(peers), "-I", "-c", question], os.environ).strip()

    return (
        _Tool(
            name="torchenv select",
            command=(torchenv, "select", "--json"),
            read=choice_of_json,
        ),
        _Tool(
            name=f"uv {version} --torch-backend=auto",
            command=(
                uv, "pip", "compile", "--torch-backend=auto", "--no-header", "--no-annotate",
                f"--python={stage.environment.python}", "-",
            ),
            input=True,
            read=choice_of_text,
        ),
        _Tool(
            name=f"light-the-torch {version_of('light-the-torch')}",
            command=(str(peers), "-m", "light_the_torch", "install"),
            read=choice_of_text,
        ),
        _Tool(
            name=f"torchruntime {version_of('torchruntime')}",
            command=(str(peers), "-m", "torchruntime", "install"),
            read=choice_of_text,
        ),
    )  # fmt: skip


def choice_of_json(output: str, errors: str) -> Choice:
    """Return the choice in what `torchenv select --json` printed."""
    try:
        selection = json.loads(output)
    except ValueError:
        return Choice(said=_end_of(errors))
    if selection["backend"] is None:
        return Choice(refused=True, said="; ".join(selection["warnings"]))
    return Choice(torch=Version(f"{selection['torch']}+{selection['backend']}"))


def choice_of_text(output: str, errors: str) -> Choice:
    """Return the first torch that pip's dry run or uv's list names.

    >>> choice_of_text("Would install torch-2.9.1+cu129 torchvision-0.24.1+cu129", "").torch
    <Version('2.9.1+cu129')>
    """
    for pattern in _NAMED:
        if match := re.search(pattern, output, re.MULTILINE):
            try:
                return Choice(torch=Version(match[1]))
            except InvalidVersion:
                break
    refused = any(words in errors for words in _NO_BUILD)
    return Choice(refused=refused, said=_end_of(errors or output))


def _end_of(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-3:])[-400:]


def _variables(standin: StandIn, directory: Path) -> dict[str, str]:
    # Nothing of this machine's own settings: they are not those of the machine that is played.
    home = directory / "home"
    home.mkdir(parents=True)
    variables = standin.environment(directory / "cache", hermetic=True).apply({"HOME": str(home)})
    return {
        **variables,
        "PIP_CERT": variables["SSL_CERT_FILE"],
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_DRY_RUN": "1",
        "PIP_INDEX_URL": standin.simple_url,
        "PIP_NO_INPUT": "1",
    }


def _serve_catalog(standin: StandIn, directory: Path, catalog: Catalog, tag: str) -> None:
    """Serve exactly the releases that the catalog knows for this Python, as empty wheels."""
    for shelf in (SIMPLE, *map(str, catalog.backends())):
        for wheel in standin.wheels(shelf):
            if wheel.name in {"torch", "torchvision", "torchaudio"}:
                standin.remove_wheel(shelf, wheel.path.name)
    releases = [
        (str(backend), build.local_version)
        for backend in catalog.backends()
        for build in catalog.builds_for(backend, "linux_x86_64")
        if tag in build.python_tags
    ]
    releases += [(SIMPLE, version) for version in catalog.pypi_versions("linux_x86_64", tag)]
    for shelf, torch in releases:
        for path in _make_wheels(directory / shelf, torch, tag):
            standin.add_wheel(shelf, path)


def _make_wheels(directory: Path, torch: Version, tag: str) -> Iterator[Path]:
    """Make torch and its torchvision, which is all that the fleet asks for."""
    label = f"+{torch.local}" if torch.local else ""
    # torchvision 0.N belongs to torch 2.(N - 15).
    vision = f"0.{torch.minor + 15}.{torch.micro}"
    for name, version, requires in (
        ("torch", str(torch), []),
        ("torchvision", f"{vision}{label}", [f"torch=={torch.public}"]),
    ):
        yield make_wheel(
            directory,
            name,
            version,
            requires=requires,
            python_tag=tag,
            abi_tag=tag,
            platform_tag=machine_platform_tag(),
        )


def _ask(tool: _Tool, machine: Machine, place: Place, variables: Mapping[str, str]) -> Choice:
    requirements = machine.request.requirements
    completed = run_on_machine(
        place,
        [*tool.command, *(() if tool.input else requirements)],
        {**variables, **machine.data.get("environ", {})},
        text="\n".join(requirements) if tool.input else "",
        seconds=_SECONDS,
    )
    if completed is None:
        return Choice(said=f"no answer within {_SECONDS} s")
    return tool.read(completed.stdout, completed.stderr)


class _Progress:
    """How many machines are done, for who watches."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._lock = threading.Lock()

    def step(self) -> None:
        with self._lock:
            self._done += 1
            if sys.stderr.isatty():
                words = f"choices: {self._done} of {self._total} machines"
                print(f"\r\x1b[K{words}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
