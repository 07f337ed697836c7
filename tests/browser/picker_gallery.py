"""Every state of the picker from made-up facts, drawn by the picker's own code in a real kernel.

A machine's own facts would be others on each machine; here a look at a state's structure, its
colours and its accessibility means the same everywhere. `show` is what a cell of the gallery calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from IPython.display import display

from torchenv_magic.accelerators import Accelerator, ComputeCapability, Host, Platform
from torchenv_magic.builds.backend import Backend
from torchenv_magic.environment import Environment, InstalledPackage
from torchenv_magic.errors import InstallCancelled, LockError, PlanError, TargetError
from torchenv_magic.installation.plan import Change, Download, Plan, Source
from torchenv_magic.installation.planning import IndexUnreachableError
from torchenv_magic.installation.progress import Bytes
from torchenv_magic.interpreter import Interpreter
from torchenv_magic.notebook.job import JobState
from torchenv_magic.notebook.lock_offer import LockOffer
from torchenv_magic.notebook.picker_look import PickerModel, choices, look, obstacle
from torchenv_magic.notebook.picker_view import PickerView
from torchenv_magic.notebook.restart import how_to_choose
from torchenv_magic.notebook.server_preinstall import Preinstall
from torchenv_magic.preinstall.record import Record
from torchenv_magic.project.lock import (
    Asked,
    LockedBackend,
    LockedPackage,
    LockedWheel,
    LockTarget,
    NotebookLock,
)
from torchenv_magic.selection import Alternative, CatalogOrigin, Request, Selection
from torchenv_magic.status import Status

__all__ = ["MODELS", "show"]

_CU126, _CU118, _CPU = Backend.parse("cu126"), Backend.parse("cu118"), Backend.parse("cpu")

_STATUS = Status(
    host=Host(
        platform=Platform(system="linux", machine="x86_64", libc="glibc", libc_version="2.36"),
        accelerators=(
            Accelerator(
                vendor="nvidia",
                name="NVIDIA GeForce GTX 1080 Ti",
                compute_capability=ComputeCapability(6, 1),
                memory_bytes=11 * 2**30,
                driver_version="580.95.05",
                source="nvidia-smi",
            ),
        ),
        findings=(),
    ),
    environment=Environment(
        interpreter=Interpreter(
            executable=Path("/lab/.venv/bin/python"), version="3.12.3", implementation="cpython"
        ),
        kind="venv",
        prefix=Path("/lab/.venv"),
        site_packages=Path("/lab/.venv/lib/python3.12/site-packages"),
        has_pip=True,
        writable=True,
        externally_managed=None,
        free_bytes=412_000_000_000,
        packages=(InstalledPackage(name="torch", version="2.15.0+cu132", installer="pip"),),
    ),
    selection=Selection(
        backend=_CU126,
        torch="2.14.1",
        accelerators=(),
        unsupported_accelerators=(),
        warnings=(),
        reason="the newest build with code for compute capability 6.1",
        alternatives=(
            Alternative(
                backend=_CU126,
                torch="2.14.1",
                fits=True,
                reason="the newest build with code for compute capability 6.1",
            ),
            Alternative(
                backend=_CU118, torch="2.7.1", fits=True, reason="runs here with torch 2.7.1"
            ),
            Alternative(
                backend=_CPU,
                torch="2.14.1",
                fits=True,
                reason="runs on any machine, without a GPU",
            ),
            Alternative(
                backend=Backend.parse("cu132"),
                torch="2.15.0",
                fits=False,
                reason="no code for compute capability 6.1: sm_75 and newer",
            ),
            Alternative(
                backend=Backend.parse("rocm7.2"),
                torch="2.14.1",
                fits=False,
                reason="no AMD GPU here",
            ),
        ),
        catalog=CatalogOrigin(as_of="2026-11-22", source="the shipped catalog"),
    ),
    installed_backend=Backend.parse("cu132"),
)
_PLAN = Plan(
    request=Request(backend=_CU126, requirements=("torch",)),
    backend=_CU126,
    reason="the newest build with code for compute capability 6.1",
    python=Path("/lab/.venv/bin/python"),
    prefix=Path("/lab/.venv"),
    source=Source(kind="index", location="https://download.pytorch.org/whl/cu126"),
    changes=(
        Change(name="torch", action="replace", before="2.15.0+cu132", after="2.14.1+cu126"),
        Change(name="nvidia-cublas-cu12", action="install", after="12.6.4.1"),
        Change(name="nvidia-cublas", action="remove", before="13.2.0.9"),
    ),
    downloads=(
        Download(name="torch", version="2.14.1+cu126", size_bytes=817_000_000),
        Download(name="nvidia-cublas-cu12", version="12.6.4.1", size_bytes=393_000_000),
    ),
)
_LOSING = replace(
    _PLAN,
    changes=(
        *_PLAN.changes,
        Change(name="numpy", action="replace", before="2.3.4", after="1.26.4"),
    ),
)
_SESSION = (
    "`torch` is loaded in this session and can only change with a restart. 3 variables (largest: "
    "`df`, 1.2 GB) will be lost."
)
_LOG = (
    "Resolved 17 packages in 412ms",
    "Downloading torch (779.1MiB)",
    " Downloaded nvidia-cublas-cu12",
)
_HERE = replace(
    _STATUS,
    installed_backend=_CU126,
    environment=replace(
        _STATUS.environment,
        packages=(InstalledPackage(name="torch", version="2.13.0+cu126", installer="uv"),),
    ),
)
_FROZEN = replace(_STATUS, environment=replace(_STATUS.environment, writable=False))
_NOTHING = replace(
    _STATUS,
    installed_backend=None,
    environment=replace(_STATUS.environment, packages=()),
    selection=replace(
        _STATUS.selection,
        backend=None,
        torch=None,
        warnings=("PyTorch has no wheels for Python 3.7: Python 3.8 to 3.14 have wheels",),
        reason="no build to install here",
        alternatives=tuple(
            replace(item, fits=False, torch=None, reason="no wheel for Python 3.7")
            for item in _STATUS.selection.alternatives
        ),
    ),
)
_ABSENT = replace(
    _STATUS,
    installed_backend=None,
    environment=replace(_STATUS.environment, packages=()),
)
_ABSENT_AND_FROZEN = replace(_ABSENT, environment=replace(_ABSENT.environment, writable=False))
_RUNNING = Preinstall(
    record=Record(
        status="running",
        message="Downloading from the PyTorch index",
        target="/lab/.venv",
        fraction=0.4,
    ),
    stage="running",
    here=True,
)
_RUNNING_ELSEWHERE = replace(
    _RUNNING,
    record=replace(_RUNNING.record, kernel="torchenv", kernel_title="PyTorch (torchenv)"),
    here=False,
)
_DONE_ELSEWHERE = replace(
    _RUNNING_ELSEWHERE,
    record=replace(
        _RUNNING_ELSEWHERE.record,
        status="done",
        message="Installed torch 2.14.1+cu126 in 41.0 s",
        torch="2.14.1+cu126",
    ),
    stage="done",
)
_FAILED = replace(
    _RUNNING,
    record=replace(
        _RUNNING.record,
        status="failed",
        message="There is no room on the disk: 4.2 GB are needed and 1.1 GB are free",
        hint="free some, or set `UV_CACHE_DIR` to another disk",
        notice="CUDA 11.8 is no longer offered here: the best build for this machine is taken",
    ),
    stage="failed",
    log=("Resolved 17 packages in 412ms", "error: No space left on device (os error 28)"),
)
_KILLED = replace(_RUNNING, stage="killed", log=("Downloading torch (779.1MiB)",))


def _locked_wheel(folder: str, file: str) -> tuple[LockedWheel, ...]:
    return (LockedWheel(url=f"https://download.pytorch.org/whl/{folder}/{file}", sha256="0" * 64),)


def _locked(backend: str) -> LockedBackend:
    torch = f"torch-2.14.1%2B{backend}-cp312-cp312-linux_x86_64.whl"
    return LockedBackend(
        backend=Backend.parse(backend),
        packages=(
            LockedPackage(
                name="torch",
                version=f"2.14.1+{backend}",
                wheels=_locked_wheel(backend, torch),
            ),
            LockedPackage(
                name="jinja2",
                version="3.1.6",
                wheels=_locked_wheel(backend, "jinja2-3.1.6-py3-none-any.whl"),
            ),
            LockedPackage(
                name="nvidia-cublas-cu12",
                version="12.6.4.1",
                wheels=_locked_wheel(backend, "nvidia_cublas_cu12-12.6.4.1-py3-none-any.whl"),
            ),
        ),
    )


_LOCK = NotebookLock(
    version="0.1.0",
    asked=Asked(requirements=("torch",)),
    torch="2.14.1",
    target=LockTarget(python="3.12", implementation="cpython", system="linux", machine="x86_64"),
    ran=Backend.parse("cpu"),
    backends=tuple(map(_locked, ("cpu", "cu126", "cu132", "rocm7.2"))),
)
_OFFER = LockOffer(stage="open", lock=_LOCK, backend=_CU126)
_ELSEWHERE = replace(_LOCK, target=replace(_LOCK.target, machine="aarch64"))

MODELS: Mapping[str, PickerModel] = {
    "detecting": PickerModel(),
    "detection-failed": PickerModel(
        error=PlanError("`UV_TORCH_BACKEND=cu999` is not a backend", hint="unset UV_TORCH_BACKEND")
    ),
    "ready": PickerModel(state="ready", status=_STATUS),
    "offline": PickerModel(state="ready", status=_STATUS, offline=True),
    "ready-with-work": PickerModel(
        state="ready",
        status=_STATUS,
        asks_first=True,
        session="12 variables (largest: `frame`, 1.2 GB; `weights`, 340 MB; `batch`, 12 MB) and 1 "
        "child process (`python worker.py`, process 4242) are lost with a restart.",
    ),
    "planned": PickerModel(
        state="ready", status=_STATUS, plan=_PLAN, session=_SESSION, asks_first=True
    ),
    "planned-with-losses": PickerModel(state="ready", status=_STATUS, plan=_LOSING),
    "nothing-to-do": PickerModel(state="nothing to do", status=_HERE),
    "can-be-undone": PickerModel(
        state="nothing to do", status=_HERE, undo="back to torch 2.12.0+cu126 and 2 more packages"
    ),
    "not-possible": PickerModel(state="not possible", status=_FROZEN, error=obstacle(_FROZEN)),
    "not-yours": PickerModel(state="not yours", status=_FROZEN, error=obstacle(_FROZEN)),
    "not-yours-failed": PickerModel(
        state="not yours",
        status=_FROZEN,
        error=TargetError(
            "There is a kernel `torch-cu126` already: torch-cu126 (torch 2.13.0, CUDA 12.6)",
            hint="take another name; `--yes` replaces it, `%torchenv new-kernel torch-cu126 "
            "--remove` removes it",
        ),
    ),
    "no-build-fits": PickerModel(state="not possible", status=_NOTHING, error=obstacle(_NOTHING)),
    "preinstalling": PickerModel(
        state="preinstalling",
        status=_ABSENT,
        preinstall=_RUNNING,
        job=JobState(
            stage="joining",
            phase="download",
            message="Downloading from the PyTorch index",
            bytes=Bytes(
                done=501_000_000,
                total=1_210_000_000,
                per_second=61_000_000,
                packages=(("torch", 372_000_000, 817_000_000),),
            ),
        ),
    ),
    "preinstalling-elsewhere": PickerModel(
        state="preinstalling",
        status=_ABSENT_AND_FROZEN,
        preinstall=_RUNNING_ELSEWHERE,
        job=JobState(stage="joining", message="Installing a kernel", fraction=0.4),
    ),
    "preinstalling-left": PickerModel(state="ready", status=_ABSENT, preinstall=_RUNNING),
    "elsewhere": PickerModel(
        state="elsewhere", status=_ABSENT_AND_FROZEN, preinstall=_DONE_ELSEWHERE
    ),
    "elsewhere-told": PickerModel(
        state="elsewhere",
        status=_ABSENT_AND_FROZEN,
        restarts=False,
        preinstall=_DONE_ELSEWHERE,
        how_to_choose=how_to_choose("vscode", name="torchenv", display_name="PyTorch (torchenv)"),
    ),
    "preinstall-failed": PickerModel(state="ready", status=_ABSENT, preinstall=_FAILED),
    "preinstall-killed": PickerModel(state="ready", status=_ABSENT, preinstall=_KILLED),
    "locked": PickerModel(state="locked", status=_STATUS, lock=_OFFER, session=_SESSION),
    "locked-failed": PickerModel(
        state="locked",
        status=_STATUS,
        lock=_OFFER,
        error=LockError(
            "The lock can't be kept: the PyTorch index has another file by the name of "
            "`torch-2.14.1+cu126-cp312-cp312-linux_x86_64.whl`",
            hint="find out who has changed it before you install either",
        ),
    ),
    "lock-left": PickerModel(state="ready", status=_STATUS, lock=_OFFER),
    "lock-met": PickerModel(
        state="nothing to do",
        status=_HERE,
        lock=LockOffer(stage="met", lock=_LOCK, backend=_CU126),
    ),
    "lock-for-elsewhere": PickerModel(
        state="ready",
        status=_STATUS,
        lock=LockOffer(
            stage="closed",
            lock=_ELSEWHERE,
            error=LockError(
                f"The notebook's lock is for {_ELSEWHERE.target}, and this is {_LOCK.target}",
                hint="the nearest is `%torchenv install cu126 torch==2.14.1`, which is not locked",
            ),
        ),
    ),
    "restoring": PickerModel(
        state="planning",
        status=_STATUS,
        lock=_OFFER,
        restores=True,
        job=JobState(message="Asking the PyTorch index what would change"),
    ),
    "planning": PickerModel(
        state="planning",
        status=_STATUS,
        job=JobState(message="Asking the PyTorch index what would change"),
    ),
    "joining": PickerModel(
        state="joining",
        status=_STATUS,
        job=JobState(
            stage="joining",
            message="Another install works on `/lab/.venv` (process 4242). This one goes on when "
            "it has ended.",
        ),
    ),
    "installing": PickerModel(
        state="installing",
        status=_STATUS,
        job=JobState(
            stage="installing",
            phase="download",
            message="Downloading 2 packages",
            bytes=Bytes(
                done=501_000_000,
                total=1_210_000_000,
                per_second=61_000_000,
                packages=(("torch", 372_000_000, 817_000_000),),
            ),
            plan=_PLAN,
            log=_LOG,
        ),
    ),
    "making": PickerModel(
        state="making",
        status=_FROZEN,
        job=JobState(
            stage="installing",
            message="Installing a kernel, and what the magic needs",
            log=_LOG,
        ),
    ),
    "stopping": PickerModel(state="stopping", status=_STATUS, job=JobState(plan=_PLAN)),
    "verifying": PickerModel(state="verifying", status=_HERE, lead="Installed torch 2.13.0+cu126"),
    "cancelled": PickerModel(
        state="cancelled",
        status=_STATUS,
        error=InstallCancelled("Cancelled; the environment is as it was"),
    ),
    "failed": PickerModel(
        state="failed",
        status=_STATUS,
        error=PlanError(
            "`no-such-package` is on none of the indexes",
            hint="check its spelling",
            detail="error: No solution found when resolving dependencies",
        ),
    ),
    "offered": PickerModel(
        state="offered",
        status=_STATUS,
        error=IndexUnreachableError(
            "The PyTorch index (https://download.pytorch.org/whl/cu126) can't be reached. "
            "The wheel folder /wheels has torch 2.14.1+cu126, which fits",
            offers=(replace(_PLAN, source=Source(kind="folder", location="/wheels")),),
        ),
    ),
    "consenting": PickerModel(state="consenting", status=_STATUS, plan=_LOSING),
    "made": PickerModel(
        state="made",
        status=_FROZEN,
        lead="Made the kernel “torch-cu126 (torch 2.14.1, CUDA 12.6)” in 41.0 s",
        session="3 variables (largest: `df`, 1.2 GB) are lost with a switch.",
    ),
    "asking": PickerModel(
        state="asking",
        status=_STATUS,
        lead="Installed torch 2.14.1+cu126 and 2 other packages in 31.2 s",
        session=_SESSION,
    ),
    "asking-may-keep": PickerModel(
        state="asking",
        status=_STATUS,
        lead="Installed torch 2.14.1+cu126 in 31.2 s",
        session="3 variables (largest: `df`, 1.2 GB) will be lost.",
        may_keep=True,
    ),
    "restarting": PickerModel(
        state="restarting", status=_STATUS, lead="Installed torch 2.14.1+cu126 in 31.2 s"
    ),
    "without-restart": PickerModel(state="ready", status=_STATUS, restarts=False),
}


def show(name: str) -> None:
    """Display the picker in that state, with buttons that do nothing."""
    model = MODELS[name]

    def nothing() -> None:
        return

    view = PickerView(
        on_primary=nothing,
        on_secondary=nothing,
        on_restart=nothing,
        on_choice=nothing,
        on_fields=nothing,
        on_name=nothing,
        on_undo=nothing,
    )
    if model.status is not None:
        view.offer(choices(model.status))
        view.vision.value = True
        if model.state in ("not yours", "making"):
            view.name.value = "torch-cu126"
    view.draw(look(model))
    display(view.root)  # type: ignore[no-untyped-call]
