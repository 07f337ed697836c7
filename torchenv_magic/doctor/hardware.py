"""Whether the installed build fits this host: GPU code, driver, kind of build, what torch sees."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from torchenv_magic.accelerators.records import Accelerator
from torchenv_magic.builds.catalog import driver_number
from torchenv_magic.doctor.case import VENDOR_OF_KIND, Case, Remarks, listed
from torchenv_magic.doctor.problem import Problem, Severity, install_cure
from torchenv_magic.verification.judgement import has_code_for

__all__ = ["hardware_problems"]

_VENDOR_WORDS = {"nvidia": "NVIDIA", "amd": "AMD", "intel": "Intel", "apple": "Apple"}


def hardware_problems(case: Case, remarks: Remarks) -> Iterator[Problem]:
    """Judge the build by the host's GPUs and their driver; what the child proved comes first."""
    if case.backend is None:
        remarks.unchecked.append(
            "whether the build fits the GPUs: nothing says which backend it was built for"
        )
        return
    vendor = VENDOR_OF_KIND.get(case.backend.kind)
    mine = case.accelerators(vendor)
    if vendor is None:
        yield from _cpu_only(case, remarks)
        return
    if not mine:
        yield from _without_gpu(case, remarks)
        return
    driver = list(_driver(case, mine, remarks))
    code = list(_code(case, mine, remarks))
    yield from driver
    yield from code
    if not driver and not code:
        yield from _unusable(case, mine)
        yield from _fewer(case, mine)


# ------------------------------------------------------------------------------- the kind of build


def _asked(case: Case) -> bool:
    return (
        case.examination.asked_backend is not None
        and case.examination.asked_backend == case.backend
    )


def _cpu_only(case: Case, remarks: Remarks) -> Iterator[Problem]:
    usable = [
        item
        for item in case.selection.accelerators
        if item.vendor != "apple" and item.name not in case.selection.unsupported_accelerators
    ]
    best = case.selection.backend
    remarks.checked.append("the accelerators here")
    if not usable or best is None or best.kind == "cpu":
        return
    if _asked(case):
        remarks.notes.append(
            f"The build is for the CPU alone, as asked for: {usable[0].name} stays unused"
        )
        return
    yield Problem(
        name="cpu-only",
        severity="warning",
        found=f"{case.shown} is built for the CPU alone, and {_present(usable)}",
        meaning=f"PyTorch computes without the GPU; {best.label} would use it",
        cure=install_cure(),
    )


def _without_gpu(case: Case, remarks: Remarks) -> Iterator[Problem]:
    backend = case.backend
    if backend is None:
        return
    remarks.checked.append("the accelerators here")
    vendor = _VENDOR_WORDS[VENDOR_OF_KIND[backend.kind]]
    others = [item for item in case.host.accelerators if item.vendor != "apple"]
    best = case.selection.backend
    if others and best is not None and best.kind not in ("cpu", backend.kind):
        yield Problem(
            name="other-vendor",
            severity="warning",
            found=f"{case.shown} is built for {backend.label}, and {_present(others)}",
            meaning=f"PyTorch computes on the CPU; {best.label} would use the GPU",
            cure=install_cure(),
        )
        return
    if case.sees_gpu:  # the child's word counts more than a probe that found nothing
        return
    # Of this vendor alone: that an Intel GPU is no XPU says nothing about NVIDIA's.
    finding = next(
        (
            finding
            for finding in case.host.findings
            if vendor.lower() in f"{finding.message} {finding.source}".lower()
            and not finding.source.startswith("UV_")
        ),
        None,
    )
    lack = f"no {vendor} GPU is here"
    if finding is not None:
        lack = f"no {vendor} GPU can be used ({finding.message})"
    if _asked(case):
        remarks.notes.append(f"The build is for {backend.label}, as asked for, and {lack}")
        return
    found = f"{case.shown} is built for {backend.label}, and {lack}"
    if finding is not None and finding.hint:
        yield Problem(
            name="no-gpu",
            severity="warning",
            found=found,
            meaning="PyTorch computes on the CPU",
            cure=finding.hint,
        )
        return
    size = sum(check.size_bytes for check in case.examination.files)
    weight = f" and takes {size / 1e9:.1f} GB for it" if size > 10**9 else ""
    yield Problem(
        name="no-gpu",
        severity="warning",
        found=found,
        meaning=f"PyTorch computes on the CPU{weight}; the build for the CPU is smaller and does "
        "the same",
        cure=install_cure("cpu"),
    )


# ------------------------------------------------------------------------------------------ drivers


def _driver(case: Case, mine: tuple[Accelerator, ...], remarks: Remarks) -> Iterator[Problem]:
    backend = case.backend
    if backend is None or backend.kind != "cuda":
        return
    here = next((item for item in mine if driver_number(item.driver_version or "")), None)
    if here is None:
        remarks.unchecked.append("the NVIDIA driver: its version is not known")
        return
    remarks.checked.append(f"the NVIDIA driver {here.driver_version}")
    system = case.host.platform.driver_system
    floor = case.catalog.driver_floor(backend, system)
    if floor is None:
        # Drivers run every CUDA of their major version: NVIDIA's minor version compatibility.
        related = [
            text
            for other in case.catalog.backends()
            if other.version[:1] == backend.version[:1]
            and (text := case.catalog.driver_floor(other, system))
        ]
        floor = min(related, key=_number, default=None)
    if floor is None:
        remarks.unchecked.append(f"the NVIDIA driver: which one {backend.label} needs is not known")
    elif _number(here.driver_version) < _number(floor) and not case.sees_gpu:
        yield _driver_problem(case, f"{backend.label} needs driver {floor} or newer", here)
        return
    for item in mine:
        capability = item.compute_capability
        needed = capability and case.catalog.gpu_driver_floor(capability, system)
        if needed and _number(item.driver_version) < _number(needed) and not case.sees_gpu:
            yield _driver_problem(case, f"{item.name} needs driver {needed} or newer", item)
            return


def _driver_problem(case: Case, need: str, here: Accelerator) -> Problem:
    best = case.selection.backend
    # Another build helps only where it has code for the GPU and this driver runs it.
    instead = best if best is not None and best.kind == "cuda" and best != case.backend else None
    meaning = "PyTorch can't use the GPU"
    if instead is not None:
        meaning += f"; torch {case.selection.torch} for {instead.label} runs with this driver"
    version = re.search(r"driver (\S+)", need)
    capability = here.compute_capability
    newest = case.catalog.last_driver_branch(capability) if capability else None
    hopeless = newest is not None and version is not None and _branch(version[1]) > _branch(newest)
    if instead is None and hopeless:
        meaning += f"; driver {newest} is the last that knows {here.name}"
    other = install_cure() if instead is not None else install_cure("cpu")
    return Problem(
        name="driver-too-old",
        severity="error",
        found=f"{need}, and driver {here.driver_version} is here",
        meaning=meaning,
        cure=other
        if instead is not None or hopeless
        else _driver_cure(case, version[1] if version else ""),
    )


def _board_cure(case: Case) -> str:
    """Return what a Jetson needs, whose driver and wheels come with JetPack; empty elsewhere."""
    found = (each for each in case.host.findings if each.source == "/proc/device-tree")
    return next((finding.hint for finding in found), "")


def _driver_cure(case: Case, version: str) -> str:
    if board := _board_cure(case):
        return board
    # Under WSL the driver is that of Windows; one for Linux would break it.
    where = " in Windows" if case.host.platform.wsl else ""
    return f"install NVIDIA's driver {version} or newer{where}, and restart the machine"


def _branch(version: str) -> tuple[int, ...]:
    return _number(version)[:1]


def _number(text: str | None) -> tuple[int, ...]:
    return driver_number(text or "") or ()


# --------------------------------------------------------------------------------------------- code


def _code(case: Case, mine: tuple[Accelerator, ...], remarks: Remarks) -> Iterator[Problem]:
    verdicts = [(item, _has_code(case, item)) for item in mine]
    unknown = [item for item, verdict in verdicts if verdict is None]
    if unknown:
        why = (
            f"the list of code in {case.shown}, a build that is not PyTorch's own, is not known"
            if case.build is None
            else "it is not known what code they need, or what the build holds"
        )
        remarks.unchecked.append(f"code for {_names(unknown)}: {why}")
    known = [item for item, verdict in verdicts if verdict is not None]
    if known:
        remarks.checked.append(f"code for {_names(known)}")
    without = [item for item, verdict in verdicts if verdict is False]
    if not without:
        return
    severity: Severity = "error"
    if len(without) < len(mine):
        if all(item.name in case.selection.unsupported_accelerators for item in without):
            remarks.notes.append(
                f"{case.shown} has no code for {_names(without)}, and no build that runs on "
                "the other GPU has"
            )
            return
        severity = "warning"
    by_rule = _by_rule(case)
    if by_rule:
        severity = "warning"
    yield Problem(
        name="no-gpu-code",
        severity=severity,
        found=f"{case.shown} has no code for {_needs(without)}{_holds(case)}{by_rule}",
        meaning="what is computed on this GPU "
        + ("is likely to fail" if by_rule else "fails (`no kernel image is available`)")
        + _instead(case, without),
        cure=_better_build_cure(case, without),
    )


def _has_code(case: Case, item: Accelerator) -> bool | None:
    """Return whether the build runs on that GPU: by the build's own list, else by the catalog."""
    seen, backend = case.findings, case.backend
    capability = item.compute_capability
    if backend is None:
        return None
    if backend.kind == "cuda":
        if capability is None:
            return None
        pair = (capability.major, capability.minor)
        if seen is not None and seen.devices and seen.devices[0][1] == pair and case.computes:
            return True  # it was seen to compute there
        if seen is not None and seen.architectures:
            return has_code_for(seen.architectures, pair)
        if case.build is None or not case.catalog.cuda_code(case.build).capabilities:
            return None
        return case.catalog.runs_on(case.build, capability)
    if case.sees_gpu and case.computes and len(case.accelerators(item.vendor)) == 1:
        return True
    if backend.kind == "rocm":
        overridden = any(name == "HSA_OVERRIDE_GFX_VERSION" for name, _ in _variables(case))
        if item.gfx is None or case.build is None or overridden:
            return None
        names = case.catalog.gfx_code(case.build).names
        return item.gfx in names if names else None
    return None


def _by_rule(case: Case) -> str:
    if case.build is None or (case.findings is not None and case.findings.architectures):
        return ""
    is_cuda = case.build.backend.kind == "cuda"
    code = case.catalog.cuda_code(case.build) if is_cuda else case.catalog.gfx_code(case.build)
    return "" if code.known else ", by the list of its nearest known release"


def _holds(case: Case) -> str:
    seen = case.findings
    if seen is not None and seen.architectures:
        return f"; it has {', '.join(seen.architectures)}"
    if case.build is None or case.build.backend.kind != "cuda":
        return ""
    texts = [str(capability) for capability in case.catalog.cuda_code(case.build).capabilities]
    return f"; it has code for {', '.join(texts)}" if texts else ""


def _needs(items: Iterable[Accelerator]) -> str:
    texts = []
    for item in items:
        code = item.gfx or (
            f"compute capability {item.compute_capability}" if item.compute_capability else ""
        )
        texts.append(f"{item.name} ({code})" if code and code not in item.name else item.name)
    return listed(list(dict.fromkeys(texts)))


def _unused(case: Case, items: Iterable[Accelerator]) -> str:
    """Return why no build at all is chosen for these GPUs, in the selection's words."""
    leads = [f"{item.name} stays unused: " for item in items]
    lines = (line for line in case.selection.warnings if line.startswith(tuple(leads)))
    return next(lines, "").partition(": ")[2]


def _instead(case: Case, items: Iterable[Accelerator]) -> str:
    best = case.selection.backend
    if best is None or best.kind == "cpu":
        return f"; {_unused(case, items) or 'no build for this system runs on it'}"
    if case.selection.torch is None or best == case.backend:
        return ""
    if case.backend is not None and best.kind != case.backend.kind:
        return f"; torch {case.selection.torch} for {best.label} uses another GPU that is here"
    return f"; torch {case.selection.torch} for {best.label} has code for it"


def _better_build_cure(case: Case, items: Iterable[Accelerator]) -> str:
    best = case.selection.backend
    if best is not None and best.kind != "cpu":
        return install_cure()
    driver = re.search(r"with driver (\S+) or newer", _unused(case, items))
    if driver:
        return _driver_cure(case, driver[1])
    return _board_cure(case) or install_cure("cpu")


def _names(items: Iterable[Accelerator]) -> str:
    return listed(list(dict.fromkeys(item.name for item in items)))


def _present(items: Iterable[Accelerator]) -> str:
    names = list(dict.fromkeys(item.name for item in items))
    return f"{listed(names)} {'is' if len(names) == 1 else 'are'} here"


# --------------------------------------------------------------------------- what torch itself sees

# What CUDA says where GPU, driver and build would fit: (its words, what it means, the cure).
_CUDA_WORDS = (
    (
        r"driver on your system is too old|insufficient.*driver",
        "the driver that answers is older than this build needs",
        "install a newer NVIDIA driver, and restart the machine",
    ),
    (
        r"\bError 802\b|system not yet initialized",
        "the service that connects the GPUs (NVSwitch) does not run",
        "`sudo systemctl start nvidia-fabricmanager`",
    ),
    (
        r"\bError 803\b|unsupported display driver",
        "the driver in memory and its libraries are of different versions",
        "restart the machine",
    ),
    (
        r"\bError 804\b|forward compatibility was attempted",
        "a compatibility library of CUDA (`cuda-compat`) is loaded that this GPU doesn't allow",
        "take `cuda-compat` out of `LD_LIBRARY_PATH`, and restart the kernel",
    ),
    (
        r"out of memory",
        "its memory is taken by other processes",
        "`nvidia-smi` names them: end the one that you don't need",
    ),
)


def _unusable(case: Case, mine: tuple[Accelerator, ...]) -> Iterator[Problem]:
    seen = case.findings
    # A GPU that a variable of uv's names was not seen by anybody.
    if seen is None or seen.device != "cpu" or _overridden(mine):
        return
    said = " ".join([*seen.notes, seen.device_failure or ""]).strip()
    meaning, cure = _reason(case, said)
    yield Problem(
        name="gpu-not-usable",
        severity="warning" if seen.hidden_by else "error",
        found=f"{_present(mine)}, and PyTorch finds no device"
        + (f": {seen.hidden_by} hides it" if seen.hidden_by else f" ({_short(said)})" * bool(said)),
        meaning=f"{meaning}, so PyTorch computes on the CPU",
        cure=cure,
    )


def _reason(case: Case, said: str) -> tuple[str, str]:
    seen = case.findings
    if seen is not None and seen.hidden_by:
        name = seen.hidden_by.partition("=")[0]
        return f"`{name}` hides every GPU", f"unset `{name}`, and restart the kernel"
    for pattern, meaning, cure in _CUDA_WORDS:
        if re.search(pattern, said, re.IGNORECASE):
            return meaning, cure
    if case.backend is not None and case.backend.kind == "rocm":
        return (
            "this user may not open `/dev/kfd`, or no driver is behind it",
            "`sudo usermod -aG render,video $USER`, and sign in anew",
        )
    if case.backend is not None and case.backend.kind == "xpu":
        return (
            "Intel's driver for computing (Level Zero) is missing, or this user may not use it",
            "install Intel's GPU driver with Level Zero, and sign in anew",
        )
    if case.examination.uvm_missing:
        return (
            "the device node `/dev/nvidia-uvm`, which CUDA needs, is missing",
            "`sudo nvidia-modprobe -u -c=0` makes it; in a container, on the host",
        )
    chosen = next(
        ((name, value) for name, value in _variables(case) if name == "CUDA_VISIBLE_DEVICES"), None
    )
    if chosen is not None:
        name, value = chosen
        return (
            f"`{name}={_short(value)}` may name a GPU, or a part of one (MIG), that is not here",
            f"unset `{name}`, and restart the kernel",
        )
    if any("MIG" in finding.message for finding in case.host.findings):
        return (
            "the GPU is set to be shared in parts (MIG), and none is given to this session",
            "`nvidia-smi -L` names the parts: set `CUDA_VISIBLE_DEVICES` to one of them",
        )
    if "unknown error" in said:
        return (
            "CUDA can't start, as it happens after the machine has slept",
            "`sudo rmmod nvidia_uvm && sudo modprobe nvidia_uvm`",
        )
    return (
        "the driver does not answer CUDA",
        "`nvidia-smi` in a terminal says more; restart the machine where it fails too",
    )


def _fewer(case: Case, mine: tuple[Accelerator, ...]) -> Iterator[Problem]:
    seen = case.findings
    if seen is None or seen.device in (None, "cpu") or _overridden(mine):
        return
    # AMD's integrated GPUs are counted here, and mostly not by ROCm.
    if case.backend is None or case.backend.kind != "cuda":
        return
    if not 0 < len(seen.devices) < len(mine):
        return
    chosen = [name for name, _ in _variables(case) if name.endswith(("VISIBLE_DEVICES", "MASK"))]
    if chosen:
        return  # somebody chose them
    yield Problem(
        name="gpu-count",
        severity="warning",
        found=f"{len(mine)} GPUs are here, and PyTorch sees {len(seen.devices)}",
        meaning="the others stay unused; one may be in an error state, or be shared in parts (MIG)",
        cure="`nvidia-smi` in a terminal says more",
    )


def _overridden(items: Iterable[Accelerator]) -> bool:
    return any(item.source.startswith("UV_") for item in items)


def _variables(case: Case) -> tuple[tuple[str, str], ...]:
    return case.examination.visibility


def _short(text: str) -> str:
    shown = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return shown if len(shown) <= 200 else f"{shown[:199]}…"
