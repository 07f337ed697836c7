"""What the findings of a try mean: one check for each question, and a cure for each that failed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import replace

from packaging.requirements import InvalidRequirement, Requirement

from torchenv_magic.accelerators.records import ComputeCapability
from torchenv_magic.builds.backend import Backend
from torchenv_magic.environment import (
    FAMILY_MEMBERS,
    Environment,
    backend_of_build,
    backend_of_torch_version,
    shown_path,
)
from torchenv_magic.expectation import Expectation
from torchenv_magic.verification import probe
from torchenv_magic.verification.facts import Fact, shortened
from torchenv_magic.verification.findings import (
    STEP_NAMES,
    STEP_WORDS,
    ExtensionFindings,
    Findings,
    Step,
)
from torchenv_magic.verification.report import (
    Check,
    Verification,
    VersionRow,
    duration,
    joined,
)

__all__ = ["DOCTOR_HINT", "has_code_for", "judge", "self_test_checks"]

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


def self_test_checks(findings: Findings, *, ended: bool) -> list[Check]:
    """Judge what the device did; `ended` says that the process ended before it had done all."""
    checks: list[Check] = []
    failed_alike: dict[str, list[str]] = {}
    for step in findings.steps:
        if step.failure is not None:
            failed_alike.setdefault(step.failure, []).append(STEP_WORDS[step.name])
    for step in findings.steps:
        if step.failure is None:
            checks.append(_step(step, findings))
            continue
        # A device that is in an error state says the same to all that follows.
        names = failed_alike.pop(step.failure, None)
        if names is not None:
            message = f"{joined(names)} on {findings.device} failed: {step.failure}"
            hint = _failure_hint(step, findings)
            checks.append(Check(name=step.name, passed=False, message=message, hint=hint))
    rest = [STEP_WORDS[name] for name in STEP_NAMES[len(findings.steps) :]]
    if findings.steps and rest and not ended:
        verb = "was" if len(rest) == 1 else "were"
        message = f"{joined(rest)} {verb} not tried after that"
        checks.append(Check(name="self-test", passed=None, message=message))
    return checks


def _step(step: Step, findings: Findings) -> Check:
    what = f"{STEP_WORDS[step.name]} on {findings.device}"
    if step.absent is not None:
        message = f"{STEP_WORDS[step.name]} was not tried: {step.absent}"
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
    took = f" in {duration(step.seconds)}" if step.seconds else ""
    if step.name == "memory":
        if step.is_right:
            size = f"{(step.block_bytes or 0) >> 20} MiB"
            message = f"{size} on {findings.device} were taken, filled, read and given back{took}"
            return Check(name=step.name, passed=True, message=message)
        return Check(
            name=step.name,
            passed=False,
            message=f"{what} gives back other numbers than were written to it: off by {off}",
            hint="restart the machine; where that does not help, have the device checked",
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
    if "busy or unavailable" in failure:  # one process at a time may have it, by its setting
        return f"end the other process on the device: {_monitor(findings)} shows it"
    if "cublas_workspace_config" in failure:  # the session asks for deterministic algorithms
        return "set CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment that Python starts in"
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
