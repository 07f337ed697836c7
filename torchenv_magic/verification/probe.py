"""Try the PyTorch of the interpreter that runs this file, and say what was seen.

stdlib and torch only, for any Python from 3.8 on. `verify` runs it as a script (the question is one
JSON line on stdin; on stdout there is one JSON line as each stage begins, with what was found so
far, so that a crash leaves that behind), or calls `probe()` in the kernel's own process. Nothing is
judged here: a failure is a finding, and `judgement.py` turns findings into checks.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import math
import os
import platform
import queue
import random
import re
import sys
import threading
import time
import warnings
from functools import partial
from typing import Any, Callable  # noqa: UP035  (collections.abc's can't be subscripted in 3.8)

__all__ = ["probe"]

SELF_TEST_SECONDS = 10.0
"""For the whole self-test. A GPU's first use takes up to some seconds, and one that is stuck takes
for ever."""

# A kernel that a device doesn't have fails at any size, and a wrong one is wrong at any size: 64 is
# 5 ms for a GPU's first launch and 20 ms for the pure-Python torch of the tests, so all are alike.
SIZE = 64
_BLOCK_BYTES = 64 << 20
_CPU_BLOCK_BYTES = 1 << 20
"""The CPU's memory is the one that this process lives in already."""

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
        hidden_by=_hidden_by(build),
        processor=_cpu()[0],
    )
    stage("look for devices")
    try:
        findings.update(_device(torch, question["backend"]))
    except BaseException as error:  # noqa: BLE001
        _reraise_interrupt(error)
        findings.update(device="cpu", devices=[_cpu()], device_failure=_words(error))
    _self_test(torch, findings, stage)
    findings["neural_library"] = _neural_library(torch, findings["device"])
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


def _hidden_by(build: Any) -> str | None:  # noqa: ANN401
    """Return the variable that hides every device from this build, None where none does."""
    names = ["CUDA_VISIBLE_DEVICES"]
    if getattr(build, "hip", None):
        names += ["HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"]
    elif getattr(build, "xpu", None):
        names = ["ZE_AFFINITY_MASK"]
    for name in names:
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


# ----------------------------------------------------------------------------------- the self-test

Compute = Callable[..., Any]


def _self_test(torch: Any, findings: dict[str, Any], stage: Callable[[str], None]) -> None:  # noqa: ANN401
    """Let the device do what a person's work is made of; each step is a finding.

    In a thread: a device that is stuck gives no answer, and whoever waits for it has to stop
    waiting. The thread also begins as a new process does, without the person's `no_grad`,
    `autocast`, default device and current stream. Nothing else is set, so nothing has to be undone.
    """
    device = findings["device"]
    findings["steps"] = []
    deadline = time.monotonic() + SELF_TEST_SECONDS
    worker = _Worker()
    try:
        for name, words, step in _STEPS:
            stage(f"{words} on {device}")
            found = worker.answer(partial(_attempt, step, torch, device), deadline)
            findings["steps"].append({"name": name, **found})
            # What spoils a product spoils the rest, and a thread that is stuck tries no more.
            if found.get("overdue") or (name == "product" and not _is_within(found)):
                break
    finally:
        worker.end()


def _is_within(found: dict[str, Any]) -> bool:
    difference = found.get("difference")
    return difference is not None and difference <= found["bound"]


class _Worker:
    """A thread that does one thing after the other, and is left behind by whom it lets wait."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._is_waiting = True
        self._thread = threading.Thread(target=self._work, name="torchenv-self-test", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        for task in iter(self._tasks.get, None):
            self._answers.put(task())

    def answer(self, task: Callable[[], dict[str, Any]], deadline: float) -> dict[str, Any]:
        self._tasks.put(task)
        self._is_waiting = False
        while True:
            left = deadline - time.monotonic()
            try:
                # In short turns: on Windows an interrupt waits for the end of one.
                found: dict[str, Any] = self._answers.get(timeout=min(max(left, 0.0), 0.1))
            except queue.Empty:
                if left <= 0:
                    return {"overdue": True}
            else:
                self._is_waiting = True
                return found

    def end(self) -> None:
        self._tasks.put(None)
        if self._is_waiting:
            self._thread.join()


def _attempt(step: Callable[[Any, str], dict[str, Any]], torch: Any, device: str) -> dict[str, Any]:  # noqa: ANN401
    try:
        return step(torch, device)
    except BaseException as error:  # noqa: BLE001
        # As words: the error itself would keep the tensors of the step in the device's memory.
        return {"failure": _words(error)}


def _numbers(torch: Any, random_numbers: random.Random, *shape: int) -> Any:  # noqa: ANN401
    """Return a tensor of normal numbers that have eight significant bits each.

    So they are the same in bfloat16 and in TF32, and their products are exact in float32: whichever
    of these precisions a person (or `TORCH_ALLOW_TF32_CUBLAS_OVERRIDE` of NVIDIA's containers) lets
    products be computed in, the result is as exact as float32's.
    """
    values = []
    for _ in range(math.prod(shape)):
        mantissa, exponent = math.frexp(random_numbers.gauss(0, 1))
        values.append(math.ldexp(round(mantissa * 256), exponent - 8))
    # Whatever torch.set_default_dtype says.
    return torch.tensor(values, dtype=torch.float32, device="cpu").reshape(*shape)


def _compared(
    device: str,
    operands: tuple[Any, ...],
    compute: Compute,
    *,
    tolerance: float,
    on_device: Compute | None = None,
) -> dict[str, Any]:
    """Compute on `device`, and compare with the CPU in float64.

    `tolerance` is relative to the same computation with the magnitudes of all numbers.
    """
    start = time.perf_counter()
    result = (on_device or compute)(*(each.to(device) for each in operands))
    # torch's own kernels (the products are a library's): abs and max. `item` waits for the device.
    largest = result.abs().max().item()
    seconds = time.perf_counter() - start
    reference = compute(*(each.double() for each in operands))
    difference = max(
        (result.cpu().double() - reference).abs().max().item(),
        abs(largest - reference.abs().max().item()),
    )
    magnitude = compute(*(each.double().abs() for each in operands)).max().item()
    return {
        "seconds": seconds,
        # not a number isn't JSON
        "difference": difference if difference == difference else None,  # noqa: PLR0124
        "bound": tolerance * magnitude,
    }


# Any order of summation of n products in float32 stays within n * 2**-24 * (|A| |B|), to first
# order (Higham, "Accuracy and Stability of Numerical Algorithms", 3.5). Twice that, since the units
# that multiply matrices cut off where others round.
_A_TERM = 2.0**-23


def _product(torch: Any, device: str) -> dict[str, Any]:  # noqa: ANN401
    # Python's own generator: torch's global one is the person's, and stays as they seeded it.
    numbers = random.Random(0)  # noqa: S311
    operands = (_numbers(torch, numbers, SIZE, SIZE), _numbers(torch, numbers, SIZE, SIZE))
    return _compared(device, operands, torch.matmul, tolerance=SIZE * _A_TERM)


def _convolution(torch: Any, device: str) -> dict[str, Any]:  # noqa: ANN401
    numbers = random.Random(1)  # noqa: S311
    operands = (_numbers(torch, numbers, 1, 4, 17, 17), _numbers(torch, numbers, 8, 4, 3, 3))
    # In steps of two: cuDNN and oneDNN then have no Winograd and no FFT, whose errors have another
    # bound. The result is a sum of 4 * 3 * 3 products.
    compute = partial(torch.nn.functional.conv2d, stride=2)
    return _compared(device, operands, compute, tolerance=36 * _A_TERM)


def _backward(torch: Any, device: str) -> dict[str, Any]:  # noqa: ANN401
    numbers = random.Random(2)  # noqa: S311
    shapes = ((32, 48), (48, 16), (32, 16))
    operands = tuple(_numbers(torch, numbers, *shape) for shape in shapes)

    def gradient(samples: Any, weights: Any, factors: Any) -> Any:  # noqa: ANN401
        weights = weights.clone().requires_grad_()
        (found,) = torch.autograd.grad(((samples @ weights) * factors).sum(), weights)
        return found

    # samples.T @ factors: a sum over 32 samples.
    return _compared(device, operands, gradient, tolerance=32 * _A_TERM)


def _bfloat16(torch: Any, device: str) -> dict[str, Any]:  # noqa: ANN401
    absent = _no_bfloat16(torch, device)
    if absent:
        return {"absent": absent}
    numbers = random.Random(3)  # noqa: S311
    operands = (_numbers(torch, numbers, SIZE, SIZE), _numbers(torch, numbers, SIZE, SIZE))

    def product(left: Any, right: Any) -> Any:  # noqa: ANN401
        return (left.to(torch.bfloat16) @ right.to(torch.bfloat16)).to(torch.float32)

    # Sums are in float32, and the result is rounded to eight bits: by 2**-8 of it (Higham, 2.1).
    # Twice that, since partial sums may be rounded too (`allow_bf16_reduced_precision_reduction`).
    bits = {"tolerance": 2 * 2.0**-8}
    try:
        return _compared(device, operands, torch.matmul, on_device=product, **bits)
    except (RuntimeError, TypeError) as error:
        # So say the CPU of an old torch, and Apple's GPU before macOS 14.
        text = str(error)
        if "BFloat16" in text and ("not implemented for" in text or "not supported" in text):
            return {"absent": "this build has none for it"}
        raise


def _no_bfloat16(torch: Any, device: str) -> str | None:  # noqa: ANN401
    """Return why the device has no bfloat16; `is_bf16_supported` also counts what is emulated."""
    if not hasattr(torch, "bfloat16"):
        return "this torch has none"
    if device.startswith("cuda"):
        capability = _capability(torch, 0)
        if capability is not None and capability < [8, 0]:
            major, minor = capability
            return f"it begins with compute capability 8.0, and this GPU has {major}.{minor}"
    return None


def _memory(torch: Any, device: str) -> dict[str, Any]:  # noqa: ANN401
    """Allocate a block, fill it, read it and give it back."""
    module = getattr(torch, device.partition(":")[0], None)
    free, total = _memory_bytes(torch, module, device)
    size = _CPU_BLOCK_BYTES
    if device != "cpu":
        size = _BLOCK_BYTES if free is None else min(_BLOCK_BYTES, max(free // 4, 1 << 20))
    known = {"block_bytes": size, "free_bytes": free, "total_bytes": total}
    reserved = getattr(module, "memory_reserved", lambda: 0)
    before = reserved()
    start = time.perf_counter()
    try:
        block = torch.empty(size // 4, dtype=torch.float32, device=device)
        block.fill_(1.5)
        lowest, highest = block.min().item(), block.max().item()
        seconds = time.perf_counter() - start
        del block
    except BaseException as error:  # noqa: BLE001
        return {**known, "failure": _words(error)}
    # What torch took from the driver for the block is given back; what the session had, it keeps
    # where nothing was taken.
    if reserved() > before:
        module.empty_cache()  # type: ignore[union-attr]
    difference = max(abs(lowest - 1.5), abs(highest - 1.5))
    if difference != difference:  # noqa: PLR0124
        difference = None
    return {**known, "seconds": seconds, "difference": difference, "bound": 0.0}


def _memory_bytes(torch: Any, module: Any, device: str) -> tuple[int | None, int | None]:  # noqa: ANN401
    """Return (free, total), None where nothing tells."""
    try:
        if device == "cpu":
            return _cpu_memory_bytes()
        if device == "mps":  # free is what macOS makes free
            return None, int(torch.mps.recommended_max_memory())
        free, total = module.mem_get_info(device)
        return int(free), int(total)
    except Exception:  # noqa: BLE001  (an older torch, or a driver that doesn't tell)
        return None, None


def _cpu_memory_bytes() -> tuple[int | None, int | None]:
    with open("/proc/meminfo", encoding="ascii", errors="replace") as file:  # noqa: PTH123
        kib = dict(re.findall(r"^(\w+): +(\d+) kB$", file.read(), re.MULTILINE))
    return int(kib["MemAvailable"]) * 1024, int(kib["MemTotal"]) * 1024


def _neural_library(torch: Any, device: str) -> str | None:  # noqa: ANN401
    """Return the library that convolves on the device, with the version that is loaded."""
    if not device.startswith("cuda"):
        return None
    try:
        if torch.version.hip is not None:
            found = re.search(r"MIOpen [0-9.]+", torch.__config__.show())
            return found[0] if found else None
        version = int(torch.backends.cudnn.version())
    except Exception:  # noqa: BLE001  (one that doesn't fit this torch has no version)
        return None
    # cuDNN 9 counts in ten thousands, those before it in thousands.
    scale = 10_000 if version >= 90_000 else 1000
    return f"cuDNN {version // scale}.{version % scale // 100}.{version % 100}"


_STEPS = (
    ("product", "a matrix product", _product),
    ("convolution", "a convolution", _convolution),
    ("backward", "a backward pass", _backward),
    ("bfloat16", "a bfloat16 product", _bfloat16),
    ("memory", "a block of memory", _memory),
)


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
