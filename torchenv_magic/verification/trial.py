"""Try the PyTorch of an environment: run the probe, in a child or in this process, and judge it."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchenv_magic.accelerators.detection import detect
from torchenv_magic.accelerators.records import Host
from torchenv_magic.environment import (
    FAMILY_MEMBERS,
    Environment,
    Interpreter,
    run_interpreter,
    signal_name,
)
from torchenv_magic.expectation import Expectation
from torchenv_magic.serialization import from_json
from torchenv_magic.verification import probe
from torchenv_magic.verification.facts import Fact, read_system, told_variables
from torchenv_magic.verification.findings import Findings
from torchenv_magic.verification.judgement import judge
from torchenv_magic.verification.report import Verification

__all__ = ["ProbeRun", "describe_end", "run_probe", "verify"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRun:
    """One run of the probe."""

    findings: Findings | None
    ended: str | None = None
    """How a child ended that did not finish, in words."""
    stage: str = ""
    """What it did then."""
    detail: str = ""


def verify(
    environment: Environment,
    expectation: Expectation | None,
    *,
    in_process: bool,
    timeout_seconds: float = 300,
) -> Verification:
    """Try the PyTorch of `environment`, and compare it with what was asked for.

    In process, the session that asks is what is tried, and torch stays imported. Otherwise a child
    process tries it, so that a crash or a hang is a failed check. `expectation` None: only whether
    it works. A failure is in the result, never raised.

    Raises
    ------
    ValueError
        In process, and `environment` is another interpreter's.
    """
    packages = dict.fromkeys([*FAMILY_MEMBERS, *_BESIDE])
    if expectation is not None:
        packages.update(dict.fromkeys(name for name, _ in expectation.versions))
    question = {
        "packages": list(packages),
        "extensions": list(FAMILY_MEMBERS[1:]),
        "backend": str(expectation.backend) if expectation is not None else None,
    }
    if in_process:
        if not _same_directory(sys.prefix, environment.prefix):
            message = f"{environment.prefix} is not this process's environment"
            raise ValueError(message)
        # Through JSON, as a child's: one form to judge, without torch's own types.
        findings = json.loads(json.dumps(probe.probe(question)))
        run = ProbeRun(findings=from_json(Findings, findings), stage="done")
    else:
        run = run_probe(environment.interpreter, question, timeout_seconds)
    found = run.findings or Findings(python=environment.interpreter.version)
    # After the try, which has woken the driver: asked while it sleeps, it takes its time.
    host = detect()
    return judge(
        found,
        environment,
        expectation,
        facts=_facts(found, host, system=read_system(host), variables=told_variables(os.environ)),
        ended=run.ended,
        stage=run.stage,
        detail=run.detail,
    )


# Of the packages beside PyTorch's own, those whose version decides what goes wrong with it.
_BESIDE = ("numpy", "triton", "triton-rocm", "pytorch-triton-rocm", "pytorch-triton-xpu")


def _facts(findings: Findings, host: Host, *, system: str, variables: str) -> tuple[Fact, ...]:
    """Return what an issue has to tell beside the checks."""
    installed = {name: versions[0] for name, versions in findings.installed if versions}
    names = [name for name in (*FAMILY_MEMBERS, *_BESIDE) if name in installed]
    libraries = [
        f"{title} {version}"
        for title, version in (
            ("CUDA", findings.cuda),
            ("HIP", findings.hip),
            ("XPU", findings.xpu),
        )
        if version
    ]
    libraries += [findings.neural_library] if findings.neural_library else []
    rows = [
        ("System", system),
        ("Processor", findings.processor or ""),
        ("Accelerator", "; ".join(map(str, host.accelerators)) or "none found"),
        ("Libraries", ", ".join(libraries)),
        ("Built for", " ".join(findings.architectures)),
        (
            "Packages",
            ", ".join(f"{name} {installed[name] or 'of an unreadable version'}" for name in names),
        ),
        ("Variables", variables),
    ]
    return tuple(Fact(name=name, value=value) for name, value in rows if value)


def _same_directory(one: str | Path, other: str | Path) -> bool:
    try:
        return os.path.samefile(one, other)  # noqa: PTH121  (either may be a str)
    except OSError:
        return False


def run_probe(
    interpreter: Interpreter, question: dict[str, Any], timeout_seconds: float
) -> ProbeRun:
    """Run the probe in a process of its own, which may crash or hang: then that is the answer."""
    try:
        run = run_interpreter(
            interpreter.executable,
            ["-I", probe.__file__],
            timeout_seconds=timeout_seconds,
            stdin=json.dumps(question).encode("ascii") + b"\n",
        )
    except OSError as error:
        return ProbeRun(findings=None, ended=f"could not be started ({error.strerror or error})")
    stage, findings = _last_line(run.output)
    if run.status == 0 and stage == "done":
        return ProbeRun(findings=findings, stage=stage)
    if run.timed_out:
        ended = f"did not finish within {timeout_seconds:g} s"
    else:
        ended = describe_end(run.status)
    return ProbeRun(findings=findings, ended=ended, stage=stage, detail=run.errors)


def _last_line(output: bytes) -> tuple[str, Findings | None]:
    """Return the last stage that was begun and what was found by then."""
    for line in reversed(output.splitlines()):
        try:
            answer = json.loads(line)
            return str(answer["stage"]), from_json(Findings, answer["findings"])
        except (ValueError, TypeError, KeyError):
            continue  # cut off by the end of the process, or printed by a .pth file
    return "", None


_SIGNAL_MEANINGS = {
    "SIGSEGV": "a memory error in compiled code",
    "SIGBUS": "a memory error in compiled code, or a full disk",
    "SIGILL": "an instruction that this CPU does not have",
    "SIGABRT": "a library gave up",
    "SIGFPE": "an arithmetic error in compiled code",
    "SIGKILL": "by the system, as when memory runs out",
}
# Windows has exit statuses (NTSTATUS) where others have signals.
_WINDOWS_ENDS = {
    0xC0000005: ("ACCESS_VIOLATION", "a memory error in compiled code"),
    0xC000001D: ("ILLEGAL_INSTRUCTION", "an instruction that this CPU does not have"),
    0xC0000135: ("DLL_NOT_FOUND", "a library is missing"),
    0xC0000409: ("STACK_BUFFER_OVERRUN", "a library gave up"),
}


def describe_end(status: int) -> str:
    """Return how a process with that exit status ended.

    >>> describe_end(-11)
    'was ended by SIGSEGV (a memory error in compiled code)'
    """
    name, meaning = _WINDOWS_ENDS.get(status & 0xFFFFFFFF, ("", ""))
    if status < 0 and not name:
        name = signal_name(-status)
        meaning = _SIGNAL_MEANINGS.get(name, "")
    if not name:
        return f"ended with status {status} and no answer"
    return f"was ended by {name} ({meaning})" if meaning else f"was ended by {name}"
