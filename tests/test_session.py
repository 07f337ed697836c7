"""What a restart would cost: loaded modules, variables, children; read cheaply and safely."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn, cast

import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.kernels import Kernel
from torchenv_magic.notebook.session import (
    ChildProcess,
    LoadedDistribution,
    SessionEffects,
    UserVariable,
    child_processes,
    describe_session,
    loaded_distributions,
    top_level_modules,
    user_variables,
)


def shell_with(**names: object) -> InteractiveShell:
    """Return what `user_variables` reads of a shell: the user's names, and IPython's own."""
    hidden = {"exit": "IPython's", "In": []}
    return cast(
        InteractiveShell, SimpleNamespace(user_ns={**hidden, **names}, user_ns_hidden=hidden)
    )


def measured(**names: object) -> dict[str, int]:
    variables, complete = user_variables(shell_with(**names))
    assert complete
    return {variable.name: variable.size_bytes for variable in variables}


# --- distributions --------------------------------------------------------------------------------


def install(directory: Path, name: str, record: str, top_level: str | None = None) -> None:
    metadata = directory / f"{name.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "RECORD").write_text(record)
    if top_level is not None:
        (metadata / "top_level.txt").write_text(top_level)


@pytest.fixture
def site_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("record", "top_level", "modules"),
    [
        (
            "torch/__init__.py,,\n",
            "functorch\ntorch\ntorchgen\n",
            ["functorch", "torch", "torchgen"],
        ),
        (
            (
                "regular/__init__.py,,\nregular/sub/__init__.py,,\nsingle.py,,\n"
                "native.cpython-311-x86_64-linux-gnu.so,,\nplain.txt,,\n../../../bin/tool,,\n"
                "some_name-1.0.dist-info/RECORD,,\n"
            ),
            None,
            ["native", "regular", "single"],
        ),
        (
            "nvidia/cublas/__init__.py,,\nnvidia/cublas/lib/libcublas.so.12,,\n",
            "nvidia\n",
            ["nvidia.cublas"],
        ),
        (
            "google/cloud/storage/a.py,,\ngoogle/single.py,,\n",
            None,
            ["google.cloud", "google.single"],
        ),
        ("", None, []),
    ],
)
def test_a_distribution_s_modules_are_those_of_its_metadata(
    site_packages: Path, record: str, top_level: str | None, modules: list[str]
) -> None:
    install(site_packages, "some-name", record, top_level)
    assert top_level_modules("some-name") == tuple(modules)


def test_what_is_not_installed_has_no_modules() -> None:
    assert top_level_modules("no-such-distribution") == ()


def test_what_is_loaded_is_told_by_metadata_and_by_the_bare_name(site_packages: Path) -> None:
    install(site_packages, "py-torch-lightning", "lightning_module/__init__.py,,\n")
    install(site_packages, "setuptools", "", "_distutils_hack\npkg_resources\nsetuptools\n")
    modules = {"torch", "torch.nn", "torchgen", "lightning_module", "numpy", "_distutils_hack"}
    changed = ["Py_Torch.Lightning", "torch", "torch", "torchvision", "setuptools"]
    assert loaded_distributions(changed, modules) == (
        LoadedDistribution(name="py-torch-lightning", modules=("lightning_module",)),
        # Not installed, or replaced already: the name is enough.
        LoadedDistribution(name="torch", modules=("torch",)),
    )


# --- variables ------------------------------------------------------------------------------------


def test_only_the_user_s_own_values_count_and_each_object_once() -> None:
    data = bytearray(1000)
    names = measured(
        data=data,
        same=data,
        _private=data.copy(),
        module=sys,
        function=measured,
        builtin=len,
        kind=Path,
        path=Path(),
    )
    assert list(names) == ["data", "path"]


def test_the_largest_variable_comes_first_and_containers_count_what_they_hold() -> None:
    names = measured(
        small=1, text="a" * 5000, rows=[bytes(2_000_000), bytes(10)], table={"a": bytes(3_000_000)}
    )
    assert list(names) == ["table", "rows", "text", "small"]
    assert 2_000_000 < names["rows"] < 2_001_000
    assert 3_000_000 < names["table"] < 3_001_000


class Hostile:
    """An object whose every property computes, or breaks."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("__class__", "__dict__"):
            return object.__getattribute__(self, name)
        raise RuntimeError(f"{name} was read")

    def __sizeof__(self) -> int:
        raise RuntimeError("measured")

    def __len__(self) -> int:
        raise RuntimeError("counted")

    def __iter__(self) -> NoReturn:
        raise RuntimeError("iterated")


def test_no_property_of_an_unknown_object_is_ever_read() -> None:
    hostile = Hostile()
    assert measured(one=hostile, many=[hostile, hostile]).keys() == {"one", "many"}


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: object) -> None:
    module = ModuleType(name)
    module.__dict__.update(attributes)
    monkeypatch.setitem(sys.modules, name, module)


class Array:
    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes


class LazyArray(Array):
    @property
    def nbytes(self) -> int:
        raise RuntimeError("computed")

    @nbytes.setter
    def nbytes(self, value: int) -> None:
        """Take no notice."""


class Tensor:
    def __init__(self, count: int, layout: str = "strided") -> None:
        self.layout, self.count = layout, count

    def numel(self) -> int:
        return self.count

    def element_size(self) -> int:
        return 4


class Parameter(Tensor):
    pass


class Module:
    def __init__(self, *parameters: Parameter) -> None:
        self.registered = parameters

    def parameters(self) -> Iterator[Parameter]:
        return iter(self.registered)


class ComputingModule(Module):
    def parameters(self) -> Iterator[Parameter]:
        raise RuntimeError("computed")


def test_arrays_tensors_and_networks_count_their_data(monkeypatch: pytest.MonkeyPatch) -> None:
    # The libraries' own types are known by identity, so stand-ins show the rule without a GB of
    # installs; the kernel below has the real ones that are installed.
    stand_in(monkeypatch, "numpy", ndarray=Array)
    network = SimpleNamespace(Parameter=Parameter, Module=Module)
    stand_in(monkeypatch, "torch", Tensor=Tensor, nn=network, strided="strided")
    names = measured(
        array=Array(8_000),
        lazy=LazyArray(8_000),
        tensor=Tensor(1_000),
        sparse=Tensor(10**9, layout="sparse"),
        weights=Parameter(2_000),
        network=ComputingModule(Parameter(3_000), Parameter(5_000)),
        batch=[Tensor(4_000), Tensor(4_000)],
    )
    assert names["array"] == 8_000
    assert names["lazy"] < 1_000
    assert names["tensor"] == 4_000
    assert names["sparse"] == 0
    assert names["weights"] == 8_000
    assert names["network"] == 32_000
    assert 32_000 < names["batch"] < 33_000


def test_measuring_ends_after_five_milliseconds_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slow(array: Any) -> int:
        time.sleep(0.003)  # what is measured is the time itself
        return int(array.size)

    kind = type("Slow", (), {"nbytes": property(slow), "size": 2_000_000})
    stand_in(monkeypatch, "numpy", ndarray=kind)
    variables, complete = user_variables(shell_with(**{f"a{n}": kind() for n in range(50)}))
    assert not complete
    assert len(variables) == 50
    # A busy machine may sleep longer than asked, so one or two were measured before the end.
    sizes = [variable.size_bytes for variable in variables]
    assert sizes[0] == 2_000_000
    assert not any(sizes[2:])


# --- the process ----------------------------------------------------------------------------------


def test_running_children_are_listed_and_ended_ones_are_not() -> None:
    sleeper = [sys.executable, "-c", "import sys; sys.stdin.read()", "a child of this test"]
    with subprocess.Popen(sleeper, stdin=subprocess.PIPE) as child:
        # It is listed from its fork on, with its command line from its exec on.
        wait_until(
            lambda: any(
                process.pid == child.pid and process.command.startswith(sys.executable[:20])
                for process in child_processes()
            )
        )
        assert all(len(process.command) <= 60 for process in child_processes())
        assert child.stdin is not None
        child.stdin.close()
        wait_until(lambda: child.pid not in [process.pid for process in child_processes()])
        # A zombie still: nobody has waited for it.


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_thread_that_the_process_would_wait_for_is_work() -> None:
    ended = threading.Event()
    shell = shell_with()
    thread = threading.Thread(target=ended.wait, name="training")
    daemon = threading.Thread(target=ended.wait, name="watching", daemon=True)
    thread.start()
    daemon.start()
    try:
        assert "training" in describe_session(shell, []).threads
        assert "watching" not in describe_session(shell, []).threads
    finally:
        ended.set()
        thread.join()
        daemon.join()


# --- what is said ---------------------------------------------------------------------------------

TORCH = LoadedDistribution(name="torch", modules=("torch",))
FRAME = UserVariable(name="df", type_name="DataFrame", size_bytes=1_234_000_000)
COUNT = UserVariable(name="n", type_name="int", size_bytes=28)
CHILD = ChildProcess(pid=4711, command="tensorboard --logdir runs")


@pytest.mark.parametrize(
    ("effects", "restart", "work", "words"),
    [
        (SessionEffects(), False, False, ""),
        (
            SessionEffects(loaded=(TORCH,)),
            True,
            False,
            "`torch` is loaded in this session and can only change with a restart.",
        ),
        (
            SessionEffects(
                loaded=tuple(LoadedDistribution(name=n, modules=(n,)) for n in "abcde"),
                variables=(COUNT,),
            ),
            True,
            False,
            (
                "`a`, `b`, `c` and 2 more are loaded in this session and can only change with a "
                "restart. 1 variable is lost with a restart."
            ),
        ),
        (
            SessionEffects(variables=(FRAME, COUNT)),
            False,
            True,
            "2 variables (largest: `df`, 1.2 GB) are lost with a restart.",
        ),
        (
            SessionEffects(variables=(FRAME,), children=(CHILD,), threads=("training",)),
            False,
            True,
            (
                "1 variable (`df`, 1.2 GB), 1 child process (`tensorboard --logdir runs`, process "
                "4711) and 1 running thread are lost with a restart."
            ),
        ),
        (
            SessionEffects(accelerator_bytes=2_500_000_000),
            False,
            True,
            "2.5 GB on the accelerator are lost with a restart.",
        ),
    ],
)
def test_the_cost_is_one_or_two_plain_sentences(
    effects: SessionEffects, *, restart: bool, work: bool, words: str
) -> None:
    assert str(effects) == words
    assert (effects.must_restart, effects.holds_work) == (restart, work)


# --- a real kernel --------------------------------------------------------------------------------


def test_a_real_session_is_described_within_milliseconds(tmp_path: Path) -> None:
    with Kernel.start(tmp_path) as kernel:
        kernel.run(
            "import json as data_format\n"
            "from torchenv_magic.notebook.session import describe_session\n"
            "large, small = bytearray(3_000_000), 7\n"
            "for i in range(300):\n"
            "    globals()[f'name{i}'] = list(range(100))\n"
            "effects = describe_session(get_ipython(), ['ipykernel', 'torch'])\n"
        )
        assert kernel.value("[(v.name, v.size_bytes > 3e6) for v in effects.variables[:1]]") == [
            ["large", True]
        ]
        assert kernel.value("len(effects.variables), effects.holds_work") == [303, True]
        assert kernel.value("effects.children, effects.threads, effects.accelerator_bytes") == [
            [],
            [],
            0,
        ]
        assert kernel.value("str(effects)").startswith(
            "`ipykernel` is loaded in this session and can only change with a restart. "
            "303 variables (largest: `large`, 3.0 MB)"
        )
        seconds = kernel.value(
            "min(__import__('timeit').repeat("
            "lambda: describe_session(get_ipython(), ['torch']), number=1))"
        )
        assert seconds < 0.02
