"""Run the probe, and turn what it found into checks that a person can read."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from torchenv_magic.accelerators.detection import detect
from torchenv_magic.accelerators.records import ComputeCapability, Host
from torchenv_magic.builds.backend import Backend
from torchenv_magic.environment import (
    FAMILY_MEMBERS,
    Environment,
    EnvironmentKind,
    Interpreter,
    backend_of_build,
    backend_of_torch_version,
    run_interpreter,
    shown_path,
)
from torchenv_magic.errors import VerificationError
from torchenv_magic.expectation import Expectation
from torchenv_magic.serialization import from_json
from torchenv_magic.verification import probe
from torchenv_magic.verification.facts import Fact, read_system, shortened, told_variables

__all__ = [
    "DOCTOR_HINT",
    "Check",
    "Findings",
    "ProbeRun",
    "Step",
    "Verification",
    "VersionRow",
    "judge",
    "run_probe",
    "self_test_checks",
    "verify",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question about the environment, and its answer."""

    name: str
    passed: bool | None
    """None where it was not tried: the message says why."""
    message: str
    hint: str = ""
    """What to do about it, where it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that the device was to do, and what came of it."""

    name: str
    """`product`, `convolution`, `backward`, `bfloat16`, `memory`."""
    seconds: float | None = None
    difference: float | None = None
    """From the CPU's result in float64, of memory from what was written; None beside a bound: not a
    number."""
    bound: float | None = None
    """The largest difference that rounding explains."""
    failure: str | None = None
    """What was raised."""
    absent: str | None = None
    """Why there is no such thing to try."""
    overdue: bool = False
    """Whether there was no answer in time."""
    block_bytes: int | None = None
    """Of memory: how much was allocated."""
    free_bytes: int | None = None
    """Of memory: before that, as the device tells it."""
    total_bytes: int | None = None

    @property
    def is_right(self) -> bool:
        """Whether it was done, and what came out is right."""
        return (
            self.failure is None
            and self.bound is not None
            and self.difference is not None
            and self.difference <= self.bound
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRow:
    """A package, as it was asked for and as it is."""

    name: str
    asked: str | None
    """None where nothing says what was asked for."""
    installed: str | None

    @property
    def agrees(self) -> bool:
        """Whether what is installed is what was asked for; True where nothing was."""
        return self.asked is None or _same_version(self.asked, self.installed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What became of the question: does this PyTorch work, and is it the one that was asked for."""

    python: str
    """Full version."""
    prefix: Path
    environment_kind: EnvironmentKind
    torch: str | None
    """What the imported torch says; what is installed, where it can't be imported."""
    backend: Backend | None
    """What the build was made for, by its own word."""
    device: str | None
    """What was computed on: `cpu`, `cuda:0`, `xpu:0`, `mps`."""
    device_names: tuple[str, ...]
    checks: tuple[Check, ...]
    versions: tuple[VersionRow, ...]
    import_seconds: float | None
    product_seconds: float | None
    """The first product on the device, with what starting the device takes."""
    self_test: tuple[Step, ...] = ()
    """What the device was let do, in this order."""
    facts: tuple[Fact, ...] = ()
    """What else an issue about this PyTorch has to tell."""
    notes: tuple[str, ...] = ()
    """What torch warned of."""
    detail: str = ""
    """The end of what a child process that failed wrote to stderr."""

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.passed is False)

    @property
    def tried(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.passed is not None)

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def title(self) -> str:
        return "PyTorch works" if self.passed else "PyTorch does not work as asked"

    @property
    def hint(self) -> str:
        """What to do about the first failure."""
        return next((check.hint for check in self.failures if check.hint), "")

    def raise_for_failure(self) -> None:
        """Do nothing where all checks passed.

        Raises
        ------
        VerificationError
            Names each check that failed.
        """
        if self.passed:
            return
        messages = [check.message for check in self.failures]
        text = messages[0] if len(messages) == 1 else "\n".join(f"- {each}" for each in messages)
        if len(messages) > 1:
            text = f"PyTorch failed {len(messages)} of {len(self.tried)} checks:\n{text}"
        raise VerificationError(text, hint=self.hint, detail=self.detail)

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """What was asked and what came of it, as (title, text)."""
        kind = "system Python" if self.environment_kind == "system" else self.environment_kind
        rows = [("Environment", f"{shown_path(self.prefix)}, Python {self.python}, {kind}")]
        if self.torch:
            build = f", {self.backend.label}" if self.backend else ""
            took = self.import_seconds
            seconds = f", imported in {_duration(took)}" if took is not None else ""
            rows.append(("PyTorch", f"{self.torch}{build}{seconds}"))
        if self.device:
            names = (self.device, *self.device_names)
            rows.append(("Device", ", ".join((*names, *self._free_memory))))
        rows += [
            (each.name.capitalize(), each.message)
            for each in self.checks
            if each.passed and each.name in ("product", "versions")
        ]
        right = [step for step in self.self_test if step.is_right and step.name != "product"]
        if right:
            took = sum(step.seconds or 0 for step in right)
            words = f"{_and([_STEP_WORDS[step.name] for step in right])}"
            verb = "is" if len(right) == 1 else "are"
            rows.append(("Self-test", f"{words} {verb} right too, in {_duration(took)}"))
        rows += [("Failed", failure.message) for failure in self.failures]
        rows += [("Note", each.message) for each in self.checks if each.passed is None]
        rows += [("Note", note) for note in self.notes]
        passed = len(self.tried) - len(self.failures)
        rows.append(("Checks", f"{passed} of {len(self.tried)} passed"))
        if self.hint:
            rows.append(("hint:", self.hint))
        return tuple(rows)

    @property
    def _free_memory(self) -> tuple[str, ...]:
        for step in self.self_test:
            if step.total_bytes and step.free_bytes is not None:
                return (f"{_gib(step.free_bytes)} of {_gib(step.total_bytes)} GiB free",)
            if step.total_bytes:
                return (f"{_gib(step.total_bytes)} GiB",)
        return ()

    def __str__(self) -> str:
        facts = [(fact.name, fact.value) for fact in self.facts]
        lines = [f"{name:<13}{text}" for name, text in self.rows]
        return "\n".join([self.title, *lines, *(f"{name:<13}{text}" for name, text in facts)])


# --------------------------------------------------------------------------------------- the probe


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionFindings:
    """A package beside torch, after its import was tried."""

    name: str
    version: str | None
    requires: tuple[str, ...]
    failure: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What the probe saw, as far as it came."""

    python: str
    installed: tuple[tuple[str, tuple[str | None, ...]], ...] = ()
    """(name, its versions): none where it is not installed, several where an install was killed."""
    stale: tuple[tuple[str, str | None, str | None], ...] = ()
    """(module, version in memory, version on disk) where this process holds another one."""
    import_failure: str | None = None
    import_missing: bool = False
    """Whether what failed is that there is no module `torch`."""
    shadowed_by: str | None = None
    """The file that was imported under the name of torch, and isn't torch."""
    import_seconds: float | None = None
    torch_version: str | None = None
    libraries: tuple[str, ...] = ()
    """The shared libraries that the import loaded, as paths: Linux only."""
    cuda: str | None = None
    hip: str | None = None
    xpu: str | None = None
    hidden_by: str | None = None
    """A variable that hides all devices: `CUDA_VISIBLE_DEVICES=-1`."""
    device: str | None = None
    devices: tuple[tuple[str, tuple[int, int] | None], ...] = ()
    """(name, compute capability) of each device of that sort."""
    device_failure: str | None = None
    architectures: tuple[str, ...] = ()
    """`sm_80`, `compute_90`: what the build has code for, where a CUDA device is."""
    steps: tuple[Step, ...] = ()
    """The self-test, as far as it came."""
    processor: str | None = None
    neural_library: str | None = None
    """`cuDNN 9.10.2`, `MIOpen 3.5.0`: what convolves on the device."""
    extensions: tuple[ExtensionFindings, ...] = ()
    notes: tuple[str, ...] = ()

    def step(self, name: str) -> Step | None:
        return next((step for step in self.steps if step.name == name), None)


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
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        meaning = _SIGNAL_MEANINGS.get(name, "")
    if not name:
        return f"ended with status {status} and no answer"
    return f"was ended by {name} ({meaning})" if meaning else f"was ended by {name}"


# ----------------------------------------------------------------------------------------- judging

DOCTOR_HINT = "`%torchenv doctor` tells what is wrong with it, and what puts it right"


def judge(
    findings: Findings,
    environment: Environment,
    expectation: Expectation | None,
    *,
    facts: tuple[Fact, ...] = (),
    ended: str | None = None,
    stage: str = "",
    detail: str = "",
) -> Verification:
    """Return what the findings mean.

    `ended` says how a child process ended that did not finish (`was ended by SIGSEGV`), and `stage`
    what it did then: what comes after that stage is not judged.
    """
    installed = dict(findings.installed)
    actual = _actual_backend(findings)
    checks: list[Check] = []
    notes = list(findings.notes)
    if findings.installed:
        checks += _installation(installed)
    checks += _stale(findings)
    if not any(name == "torch" for name, *_ in findings.stale):
        checks += _import(findings, installed, environment)
    if expectation is not None and findings.installed:
        checks.append(_versions(installed, expectation))
    if findings.torch_version is not None:
        if expectation is not None:
            checks.append(_backend(actual, expectation.backend))
        checks += _device(findings, actual, expectation, notes)
        checks += _architectures(findings, notes)
        checks += self_test_checks(findings, ended=ended is not None)
        checks += _extensions(findings)
    if ended is not None:
        checks.append(_unfinished(ended, stage))
    checks = [replace(check, message=shortened(check.message)) for check in checks]
    product = findings.step("product")
    first = installed.get("torch") or (None,)
    package = environment.installed("torch")
    before = package.version if package is not None and not findings.installed else None
    return Verification(
        python=findings.python,
        prefix=environment.prefix,
        environment_kind=environment.kind,
        torch=findings.torch_version or first[0] or before,
        backend=actual,
        device=findings.device,
        device_names=tuple(name for name, _ in findings.devices),
        checks=tuple(checks),
        versions=_rows(installed, expectation),
        import_seconds=findings.import_seconds,
        product_seconds=product.seconds if product else None,
        self_test=findings.steps,
        facts=facts,
        notes=tuple(map(shortened, notes)),
        detail=shortened(detail),
    )


def _rows(
    installed: dict[str, tuple[str | None, ...]], expectation: Expectation | None
) -> tuple[VersionRow, ...]:
    asked = dict(expectation.versions) if expectation is not None else {}
    names = dict.fromkeys([*asked, *(name for name in FAMILY_MEMBERS if installed.get(name))])
    return tuple(
        VersionRow(
            name=name,
            asked=asked.get(name),
            installed=next(iter(installed.get(name, ())), None),
        )
        for name in names
    )


def _actual_backend(findings: Findings) -> Backend | None:
    """Return what the imported build was made for: its own word, in the version's spelling."""
    if findings.torch_version is None:
        return None
    made_for = backend_of_build(cuda=findings.cuda, hip=findings.hip, xpu=findings.xpu)
    named = backend_of_torch_version(findings.torch_version)
    if made_for == Backend("cpu") and named == Backend("xpu"):
        return named  # torch.version.xpu is younger than the first xpu builds
    # HIP has no number for the third of `rocm6.2.4`.
    return named if _same_backend(made_for, named) else made_for


def _same_backend(one: Backend | None, other: Backend | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.kind == other.kind and one.version[:2] == other.version[:2]


def _same_version(one: str | None, other: str | None) -> bool:
    if one is None or other is None:
        return one is other
    try:
        return Version(one) == Version(other)
    except InvalidVersion:
        return one == other


def _installation(installed: dict[str, tuple[str | None, ...]]) -> list[Check]:
    wrong = []
    for name in FAMILY_MEMBERS:
        versions = installed.get(name, ())
        if len(versions) > 1:
            known = " and ".join(version or "an unreadable one" for version in versions)
            wrong.append(
                f"{name} is installed {len(versions)} times ({known}): its files are mixed"
            )
        elif versions and versions[0] is None:
            wrong.append(f"{name} is installed in part: an install was interrupted")
    if wrong:
        return [
            Check(name="installation", passed=False, message=text, hint=DOCTOR_HINT)
            for text in wrong
        ]
    there = [name for name in FAMILY_MEMBERS if installed.get(name)]
    if not there:
        return []
    return [Check(name="installation", passed=True, message=f"{_list(there)}: installed once")]


def _stale(findings: Findings) -> list[Check]:
    checks = []
    for name, loaded, on_disk in findings.stale:
        if loaded is None:
            held = f"what an import of {name} that failed left behind"
        else:
            now = f"{on_disk} is installed now" if on_disk else "it is no longer installed"
            held = f"{name} {loaded}, and {now}"
        checks.append(
            Check(
                name="session",
                passed=False,
                message=f"This process still has {held}",
                hint="restart the kernel, then run `%torchenv verify`",
            )
        )
    return checks


def _import(
    findings: Findings, installed: dict[str, tuple[str | None, ...]], environment: Environment
) -> list[Check]:
    if findings.torch_version is not None:
        message = f"torch {findings.torch_version} imports"
        return [Check(name="import", passed=True, message=message)]
    if findings.import_failure is None:
        return []
    there = installed.get("torch")
    if not there:
        return [
            Check(
                name="import",
                passed=False,
                message=f"PyTorch is not installed in `{shown_path(environment.prefix)}`",
                hint="`%torchenv` picks and installs it",
            )
        ]
    if findings.shadowed_by is not None:
        return [
            Check(
                name="import",
                passed=False,
                message=f"`{findings.shadowed_by}` is imported where PyTorch should be",
                hint="give it another name, then restart the kernel",
            )
        ]
    if findings.import_missing:
        message = f"torch {there[0] or ''} is registered as installed, and its files are missing"
    else:
        message = f"torch can't be imported: {findings.import_failure}"
    return [Check(name="import", passed=False, message=message, hint=DOCTOR_HINT)]


def _versions(installed: dict[str, tuple[str | None, ...]], expectation: Expectation) -> Check:
    rows = [row for row in _rows(installed, expectation) if row.asked is not None]
    wrong = [
        f"{row.name} is {row.installed or 'missing'}, and {row.asked} was asked for"
        for row in rows
        if not row.agrees
    ]
    if wrong:
        wanted = shlex.join(expectation.requirements)
        return Check(
            name="versions",
            passed=False,
            message="; ".join(wrong),
            hint=f"`%torchenv install {expectation.backend} {wanted}` puts it right",
        )
    there = _list([f"{row.name} {row.installed}" for row in rows])
    return Check(name="versions", passed=True, message=f"{there}, as asked for")


def _backend(actual: Backend | None, asked: Backend) -> Check:
    if _same_backend(actual, asked):
        return Check(name="backend", passed=True, message=f"torch is built for {asked.label}")
    built = actual.label if actual is not None else "an unknown backend"
    return Check(
        name="backend",
        passed=False,
        message=f"torch is built for {built}, and {asked.label} was asked for",
        hint=f"`%torchenv install {asked}` installs the build that was asked for",
    )


_DEVICE_WORDS = {
    "cuda": ("CUDA device", "see whether `nvidia-smi` shows the GPU, or choose the build `cpu`"),
    "rocm": ("ROCm device", "see whether `rocminfo` shows the GPU, or choose the build `cpu`"),
    "xpu": ("Intel GPU", "see whether Intel's GPU driver is installed, or choose the build `cpu`"),
}


def _device(
    findings: Findings, actual: Backend | None, expectation: Expectation | None, notes: list[str]
) -> list[Check]:
    """Judge whether the device is there that the backend is for."""
    asked = expectation.backend if expectation is not None else actual
    if asked is None or asked.kind == "cpu" or findings.device is None:
        return []
    words, hint = _DEVICE_WORDS[asked.kind]
    if findings.device != "cpu":
        names = _list([name for name, _ in findings.devices])
        return [Check(name="device", passed=True, message=f"PyTorch sees {names}")]
    if findings.hidden_by is not None:
        reason, hint = (
            f": {findings.hidden_by} hides it",
            "unset that variable, and restart the kernel",
        )
    else:
        reason = f": {findings.device_failure}" if findings.device_failure else ""
    message = f"PyTorch finds no {words} here{reason}"
    if expectation is None and not findings.device_failure:
        # Nobody asked for the device: a build for a GPU also computes on the CPU.
        notes.append(f"{message}, and computes on the CPU")
        return []
    return [Check(name="device", passed=False, message=message, hint=hint)]


def _architectures(findings: Findings, notes: list[str]) -> list[Check]:
    """Judge whether the build has code for each GPU, by torch's own rule without its exceptions.

    (Jetsons; `DEVICE_REQUIREMENT` in `torch/cuda/__init__.py`.) So the product has the last word
    about the GPU that it ran on.
    """
    if not findings.architectures:
        return []
    product = findings.step("product")
    worked = product is not None and product.failure is None
    checks = []
    for index, (name, capability) in enumerate(findings.devices):
        if capability is None:
            continue
        shown = ComputeCapability(*capability)
        has = has_code_for(findings.architectures, capability)
        codes = " ".join(findings.architectures)
        missing = f"{name} has compute capability {shown}, and this build only has code for {codes}"
        if has:
            message = f"the build has code for compute capability {shown} ({name})"
            checks.append(Check(name="code", passed=True, message=message))
        elif index == 0 and not worked:
            hint = "`%torchenv` recommends a build that has code for this GPU"
            checks.append(Check(name="code", passed=False, message=missing, hint=hint))
        elif index > 0:
            notes.append(missing)
    return checks


def has_code_for(architectures: Iterable[str], capability: tuple[int, int]) -> bool:
    """Tell whether a GPU can run a build: binary code of its generation, or PTX of an older one.

    >>> has_code_for(["sm_60", "sm_75"], (6, 1)), has_code_for(["sm_75"], (6, 1))
    (True, False)
    """
    for architecture in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", architecture)
        if match is None:
            continue
        built = (int(match[2]), int(match[3]))
        if built <= capability and (match[1] == "compute" or built[0] == capability[0]):
            return True
    return False


_STEP_WORDS = {
    "product": "a matrix product",
    "convolution": "a convolution",
    "backward": "a backward pass",
    "bfloat16": "a bfloat16 product",
    "memory": "a block of memory",
}
_STEP_NAMES = tuple(_STEP_WORDS)


def self_test_checks(findings: Findings, *, ended: bool) -> list[Check]:
    """Judge what the device did; `ended` says that the process ended before it had done all."""
    checks: list[Check] = []
    failed_alike: dict[str, list[str]] = {}
    for step in findings.steps:
        if step.failure is not None:
            failed_alike.setdefault(step.failure, []).append(_STEP_WORDS[step.name])
    for step in findings.steps:
        if step.failure is None:
            checks.append(_step(step, findings))
            continue
        # A device that is in an error state says the same to all that follows.
        names = failed_alike.pop(step.failure, None)
        if names is not None:
            message = f"{_and(names)} on {findings.device} failed: {step.failure}"
            hint = _failure_hint(step, findings)
            checks.append(Check(name=step.name, passed=False, message=message, hint=hint))
    rest = [_STEP_WORDS[name] for name in _STEP_NAMES[len(findings.steps) :]]
    if findings.steps and rest and not ended:
        verb = "was" if len(rest) == 1 else "were"
        message = f"{_and(rest)} {verb} not tried after that"
        checks.append(Check(name="self-test", passed=None, message=message))
    return checks


def _step(step: Step, findings: Findings) -> Check:
    what = f"{_STEP_WORDS[step.name]} on {findings.device}"
    if step.absent is not None:
        message = f"{_STEP_WORDS[step.name]} was not tried: {step.absent}"
        return Check(name=step.name, passed=None, message=message)
    if step.overdue:
        return Check(
            name=step.name,
            passed=False,
            message=f"{what} gave no answer within the {probe.SELF_TEST_SECONDS:g} s that the "
            "self-test may take",
            hint=_overdue_hint(findings),
        )
    off = f"{step.difference:.1e}" if step.difference is not None else "not a number"
    took = f" in {_duration(step.seconds)}" if step.seconds else ""
    if step.name == "memory":
        if step.is_right:
            size = f"{(step.block_bytes or 0) >> 20} MiB"
            message = f"{size} on {findings.device} were taken, filled, read and given back{took}"
            return Check(name=step.name, passed=True, message=message)
        return Check(
            name=step.name,
            passed=False,
            message=f"{what} gives back other numbers than were written to it: off by {off}",
            hint="restart the machine; where that does not help, the device is broken",
        )
    if step.is_right:
        within = f"off by {off}, {step.bound:.1e} allowed"
        message = f"{what} agrees with the CPU's in float64 ({within}){took}"
        return Check(name=step.name, passed=True, message=message)
    return Check(
        name=step.name,
        passed=False,
        message=f"{what} is wrong: off by {off} from the CPU's in float64, {step.bound:.1e} "
        "allowed",
        hint="do not trust this build's results: `%torchenv` shows which others fit",
    )


def _monitor(findings: Findings) -> str:
    """Return what shows the processes on the device."""
    if findings.device == "cuda:0":
        return "`rocm-smi --showpids`" if findings.hip else "`nvidia-smi`"
    return "`xpu-smi ps`" if findings.device == "xpu:0" else "the system's list of processes"


def _failure_hint(step: Step, findings: Findings) -> str:
    """Return the cure for what was raised, as far as its words tell."""
    failure = (step.failure or "").lower()
    if "out of memory" in failure or "not enough memory" in failure or "memoryerror" in failure:
        return f"free memory: {_monitor(findings)} shows which process holds it"
    if step.name == "product":
        return "`%torchenv` shows which builds fit this machine"
    return DOCTOR_HINT


def _overdue_hint(findings: Findings) -> str:
    if findings.hip and findings.device != "cpu":
        # MIOpen compiles what it has no code for, and keeps it.
        return "restart the kernel and run `%torchenv verify` once more: a first use may compile"
    return f"see in {_monitor(findings)} what keeps the device busy, and restart the kernel"


def _extensions(findings: Findings) -> list[Check]:
    checks = []
    for extension in findings.extensions:
        called = f"{extension.name} {extension.version or ''}".strip()
        mismatch = _mismatch(extension, called, findings)
        if mismatch is not None:
            hint = (
                f"`%torchenv install torch {extension.name}` installs the two that belong together"
            )
            checks.append(Check(name=extension.name, passed=False, message=mismatch, hint=hint))
        elif extension.failure is not None:
            message = f"{extension.name} can't be imported: {extension.failure}"
            checks.append(
                Check(name=extension.name, passed=False, message=message, hint=DOCTOR_HINT)
            )
        else:
            message = f"{called} belongs to this torch and imports"
            checks.append(Check(name=extension.name, passed=True, message=message))
    return checks


def _mismatch(extension: ExtensionFindings, called: str, findings: Findings) -> str | None:
    torch = findings.torch_version or ""
    for text in extension.requires:
        needed = _torch_requirement(text)
        if needed is not None and not needed.specifier.contains(torch, prereleases=True):
            return f"{called} needs torch{needed.specifier}, and torch is {torch}"
    # What can't be imported doesn't say its version; its metadata does.
    installed = next(iter(dict(findings.installed).get(extension.name, ())), None)
    version = extension.version or installed or ""
    ours, theirs = backend_of_torch_version(version), backend_of_torch_version(torch)
    if ours is not None and theirs is not None and ours != theirs:
        return f"{extension.name} {version} is built for {ours.label}, and torch for {theirs.label}"
    return None


def _torch_requirement(text: str) -> Requirement | None:
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return None
    if requirement.name.lower() != "torch":
        return None
    marker = requirement.marker
    return requirement if marker is None or marker.evaluate({"extra": ""}) else None


def _unfinished(ended: str, stage: str) -> Check:
    at = f" at `{stage}`" if stage and stage != "done" else ""
    if "could not be started" in ended:
        hint = "make this environment anew, or choose another one as this notebook's kernel"
    elif "did not finish" in ended:
        hint = "see what keeps the disk or the device busy, then run `%torchenv verify` once more"
    else:
        hint = DOCTOR_HINT
    return Check(
        name="process",
        passed=False,
        message=f"The process that tried PyTorch {ended}{at}",
        hint=hint,
    )


def _list(texts: list[str]) -> str:
    return ", ".join(texts)


def _and(texts: list[str]) -> str:
    """Return the texts as a sentence has them.

    >>> _and(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([part for part in (", ".join(texts[:-1]), texts[-1]) if part])


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
