"""Try the PyTorch of the interpreter that runs this file, and say what was seen.

stdlib and torch only, for any Python from 3.8 on. `verify` runs it as a script (the question is one
JSON line on stdin; on stdout there is one JSON line as each stage begins, with what was found so
far, so that a crash leaves that behind), or calls `probe()` in the kernel's own process. Nothing is
judged here: a failure is a finding, and `report.py` turns findings into checks.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import random
import re
import sys
import time
import warnings
from functools import partial
from typing import Any, Callable  # noqa: UP035  (collections.abc's can't be subscripted in 3.8)

__all__ = ["probe"]

# A kernel that a device doesn't have fails at any size, and a wrong one is wrong at any size: 64 is
# 5 ms for a GPU's first launch and 20 ms for the pure-Python torch of the tests, so all are alike.
SIZE = 64

_NOISE = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
_LONGEST = 1000
"""Characters of one message: an ImportError of a CUDA library lists all it depends on."""


def probe(
    question: dict[str, Any], on_stage: Callable[[str, dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Return what was found.

    `question` has `packages` (normalized names, `torch` among them), `extensions` (those to import
    after torch, where they are installed) and `backend` (uv's word, or None).
    """

    def stage(name: str) -> None:
        if on_stage is not None:
            on_stage(name, findings)

    findings: dict[str, Any] = {"python": sys.version.split()[0].rstrip("+")}
    importlib.invalidate_caches()
    findings["installed"] = [[name, _versions(name)] for name in question["packages"]]
    # Before the import: what this process already holds may not be what is installed now.
    findings["stale"] = [
        stale for name in ["torch", *question["extensions"]] if (stale := _stale(name))
    ]
    if any(name == "torch" for name, *_ in findings["stale"]):
        # Old code in memory, new libraries on disk: to import more of them can end the process.
        stage("done")
        return findings
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _try_torch(findings, question, stage)
    findings["notes"] = _notes(caught)
    stage("done")
    return findings


def _versions(name: str) -> list[str | None]:
    """Return the installed version, and what else lies beside it: an install that was killed leaves
    two. None stands for metadata that can't be read: such an install was killed too.
    """  # noqa: D205
    found: dict[str, list[str | None]] = {}
    for distribution in importlib.metadata.distributions(name=name):
        directory = str(distribution.locate_file(""))
        try:
            version = distribution.metadata["Version"]
        except Exception:  # noqa: BLE001  (half-linked metadata fails in as many ways as Pythons)
            version = None
        found.setdefault(directory, []).append(version)
    # Another directory's is shadowed: the system's, under an environment that includes it.
    return next(iter(found.values()), [])


_VERSION = re.compile(r"^__version__\b[^=\n]*=\s*['\"]([^'\"\n]+)['\"]", re.MULTILINE)


def _stale(name: str) -> list[str | None] | None:
    """Return [name, version in memory, version on disk] where a module isn't the installed one."""
    module = sys.modules.get(name)
    if module is None:
        # An import that failed halfway leaves its submodules, and a new import would build on them.
        rest = any(loaded.startswith(f"{name}.") for loaded in sys.modules)
        return [name, None, None] if rest else None
    if not hasattr(module, "__version__"):
        return None  # not the package of that name, which is not this question
    loaded = str(module.__version__)
    # The file and not the metadata: those differ in spelling (`nv25.04`, `nv25.4`) and by packager.
    try:
        path = os.path.join(os.path.dirname(module.__file__ or ""), "version.py")  # noqa: PTH118, PTH120
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            match = _VERSION.search(file.read())
    except OSError:
        match = None
    on_disk = match[1] if match else next(iter(_versions(name)), None)
    return None if loaded == on_disk else [name, loaded, on_disk]


def _try_torch(
    findings: dict[str, Any], question: dict[str, Any], stage: Callable[[str], None]
) -> None:
    stage("import torch")
    before = "torch" in sys.modules
    start = time.perf_counter()
    try:
        torch = importlib.import_module("torch")
        version = str(torch.__version__)
    except BaseException as error:  # noqa: BLE001  (a SystemExit of a module is a finding too)
        _reraise_interrupt(error)
        findings["import_failure"] = _words(error)
        findings["import_missing"] = isinstance(error, ImportError) and error.name == "torch"
        impostor = sys.modules.get("torch")
        findings["shadowed_by"] = getattr(impostor, "__file__", None)
        if not before:
            sys.modules.pop("torch", None)  # so that the next attempt looks again
        return
    findings["import_seconds"] = time.perf_counter() - start
    build = getattr(torch, "version", None)
    findings.update(
        torch_version=version,
        libraries=_libraries(),
        cuda=_text(getattr(build, "cuda", None)),
        hip=_text(getattr(build, "hip", None)),
        xpu=_text(getattr(build, "xpu", None)),
        hidden_by=_hidden_by(),
    )
    stage("look for devices")
    try:
        findings.update(_device(torch, question["backend"]))
    except BaseException as error:  # noqa: BLE001
        _reraise_interrupt(error)
        findings.update(device="cpu", devices=[_cpu()], device_failure=_words(error))
    stage(f"compute on {findings['device']}")
    try:
        findings.update(_product(torch, findings["device"]))
    except BaseException as error:  # noqa: BLE001
        _reraise_interrupt(error)
        findings["product_failure"] = _words(error)
    findings["extensions"] = []
    installed = {name for name, versions in findings["installed"] if versions}
    for name in question["extensions"]:
        if name not in installed:
            continue
        stage(f"import {name}")
        findings["extensions"].append(_extension(name))


def _reraise_interrupt(error: BaseException) -> None:
    if isinstance(error, KeyboardInterrupt):
        raise error


def _words(error: BaseException) -> str:
    return _plain(f"{type(error).__name__}: {error}")


def _plain(text: str) -> str:
    """Return `text` as one line without control characters, which a terminal would obey."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(shown.split())[:_LONGEST]


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _libraries() -> list[str]:
    """Return the shared libraries in this process, without Python's modules: Linux tells."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            found = re.findall(r"(/[^\n]*/lib[^/\n]*\.so(?:\.[\d.]+)?)$", file.read(), re.MULTILINE)
    except OSError:
        return []
    return list(dict.fromkeys(found))


def _hidden_by() -> str | None:
    """Return the variable that hides every device from this process, None where none does."""
    for name in (
        "CUDA_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES",
        "ROCR_VISIBLE_DEVICES",
        "ZE_AFFINITY_MASK",
    ):
        if os.environ.get(name, "all").strip() in ("", "-1"):
            return f"{name}={os.environ[name]}"
    return None


def _device(torch: Any, backend: str | None) -> dict[str, Any]:  # noqa: ANN401
    """Choose the device by the backend that was asked for; by the build where none was."""
    family = backend[:2] if backend else None  # cu, ro, xp, cp
    if family in ("cu", "ro", None) and _available(torch, "cuda"):
        return {
            "device": "cuda:0",
            "devices": [
                [torch.cuda.get_device_name(index), _capability(torch, index)]
                for index in range(torch.cuda.device_count())
            ],
            # Not where there is no device: it is empty there, whatever the build holds.
            "architectures": list(torch.cuda.get_arch_list()),
        }
    if family in ("xp", None) and _available(torch, "xpu"):
        names = [torch.xpu.get_device_name(index) for index in range(torch.xpu.device_count())]
        return {"device": "xpu:0", "devices": [[name, None] for name in names]}
    if family in ("cp", None) and sys.platform == "darwin" and platform.machine() == "arm64":
        mps = getattr(torch.backends, "mps", None)
        if mps is not None and mps.is_available():
            return {"device": "mps", "devices": [["Apple GPU", None]]}
    return {"device": "cpu", "devices": [_cpu()]}


def _available(torch: Any, name: str) -> bool:  # noqa: ANN401
    module = getattr(torch, name, None)
    return module is not None and module.is_available()


def _capability(torch: Any, index: int) -> list[int] | None:  # noqa: ANN401
    if torch.version.cuda is None:  # ROCm answers too, with numbers that mean nothing here
        return None
    return list(torch.cuda.get_device_capability(index))


def _cpu() -> list[Any]:
    name = ""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            for line in file:
                if line.startswith("model name"):
                    name = line.partition(":")[2].strip()
                    break
    except OSError:
        name = platform.processor()
    return [name or platform.machine() or "CPU", None]


def _product(torch: Any, device: str) -> dict[str, Any]:  # noqa: ANN401
    """Multiply two matrices on `device`, and compare with the CPU in float64."""
    # Python's own generator: torch's global one is the person's, and stays as they seeded it.
    numbers = random.Random(0)  # noqa: S311
    left, right = (
        torch.tensor(
            [[numbers.gauss(0, 1) for _ in range(SIZE)] for _ in range(SIZE)],
            dtype=torch.float32,
            device="cpu",  # whatever torch.set_default_device says
        )
        for _ in range(2)
    )
    with _FullPrecision(torch):
        start = time.perf_counter()
        product = left.to(device) @ right.to(device)
        # torch's own kernels (the product is cuBLAS's): abs and max. `item` waits for the device.
        largest = product.abs().max().item()
        seconds = time.perf_counter() - start
    reference = left.double() @ right.double()
    difference = max(
        (product.cpu().double() - reference).abs().max().item(),
        abs(largest - reference.abs().max().item()),
    )
    # Any order of summation in float32 stays within n * 2**-24 * (|A| |B|), to first order (Higham,
    # "Accuracy and Stability", 3.5). Twice that, for reciprocal roundings; TensorFloat-32 would be
    # a hundred times coarser than what is seen, and beyond the bound.
    magnitude = (left.double().abs() @ right.double().abs()).max().item()
    return {
        "product_seconds": seconds,
        # not a number isn't JSON
        "product_difference": difference if difference == difference else None,  # noqa: PLR0124
        "product_bound": SIZE * 2.0**-23 * magnitude,
    }


class _FullPrecision:
    """Switch products of reduced precision (TF32, bfloat16) off for a while.

    `TORCH_ALLOW_TF32_CUBLAS_OVERRIDE` (NVIDIA's containers) and a person's own setting switch them
    on. Since torch 2.9 each backend has its own switch, and the common one raises where a person
    used those.
    """

    def __init__(self, torch: Any) -> None:  # noqa: ANN401
        self._torch = torch
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> None:
        torch = self._torch
        backends = [getattr(torch.backends, name, None) for name in ("cuda", "mkldnn")]
        switches: list[Any] = [getattr(backend, "matmul", None) for backend in backends]
        switches = [switch for switch in switches if hasattr(switch, "fp32_precision")]
        for switch in switches:
            self._undo.append(partial(setattr, switch, "fp32_precision", switch.fp32_precision))
            switch.fp32_precision = "ieee"
        if not switches and hasattr(torch, "get_float32_matmul_precision"):  # torch 1.12 to 2.8
            set_precision = torch.set_float32_matmul_precision
            self._undo.append(partial(set_precision, torch.get_float32_matmul_precision()))
            set_precision("highest")

    def __exit__(self, *_: object) -> None:
        for undo in self._undo:
            undo()


def _extension(name: str) -> dict[str, Any]:
    try:
        requires = importlib.metadata.requires(name) or []
    except Exception:  # noqa: BLE001  (see _versions)
        requires = []
    found: dict[str, Any] = {"name": name, "requires": requires, "failure": None}
    try:
        found["version"] = str(getattr(importlib.import_module(name), "__version__", "")) or None
    except BaseException as error:  # noqa: BLE001
        _reraise_interrupt(error)
        found["version"], found["failure"] = None, _words(error)
    return found


def _notes(caught: list[warnings.WarningMessage]) -> list[str]:
    """Return what torch warned of (`driver too old`, `no kernel image`), each once."""
    messages = [
        re.sub(r" ?\(Triggered internally at [^)]*\)", "", _plain(str(warning.message)))
        for warning in caught
        if not issubclass(warning.category, _NOISE)
    ]
    # NumPy is not torch's requirement: its absence, said at the first tensor, is no fault.
    told = [text for text in messages if "No module named 'numpy'" not in text]
    return list(dict.fromkeys(told))[:10]


def _main() -> None:
    import faulthandler

    # What torch, or a library in C, prints must not come between our lines: from here on descriptor
    # 1 is stderr, and the answers go where it was.
    faulthandler.enable()
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w", encoding="ascii", newline="\n")
    os.dup2(2, 1)

    def say(stage: str, findings: dict[str, Any]) -> None:
        answers.write(json.dumps({"stage": stage, "findings": findings}) + "\n")
        answers.flush()

    probe(json.loads(sys.stdin.buffer.readline()), say)
    # Not the interpreter's own end: a library's clean-up that hangs or crashes says nothing about
    # PyTorch in a session.
    os._exit(0)


if __name__ == "__main__":
    _main()
