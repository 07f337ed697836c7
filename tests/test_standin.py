"""Hold that the stand-in does to the real uv what the PyTorch index does, and what it should not.

What is asserted here of uv was measured against the real index's layout; where a test about the
product fails, these tell whether the ground under it moved.
"""

from __future__ import annotations

import base64
import csv
import email.message
import hashlib
import http.client
import importlib.metadata
import os
import re
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from uv import find_uv_bin

from tests.standin import (
    BACKENDS,
    FILE_HOST,
    INDEX_HOST,
    OLDER_TORCH,
    SIMPLE,
    TORCH,
    Fault,
    StandIn,
    made_torch,
    make_family,
    make_wheel,
)
from tests.standin.wheels import PYTHON_TAGS, read_wheel

TORCH_WHEEL = r"/torch-[^/]*\.whl$"
TORCH_PAGE = r"/torch/$"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Hold a fresh environment, and the variables under which uv meets the stand-in."""

    prefix: Path
    variables: dict[str, str]

    @property
    def python(self) -> Path:
        return self.prefix / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def uv(
        self, *arguments: str, stdin: str = "", variables: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [find_uv_bin(), *arguments],
            env={**self.variables, **(variables or {})},
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )

    def install(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.uv(
            "pip", "install", "--python", str(self.python), *arguments, variables=variables
        )

    def installed(self) -> dict[str, str]:
        folders = [str(path) for path in self.prefix.rglob("site-packages")]
        return {
            found.metadata["Name"]: found.version
            for found in importlib.metadata.distributions(path=folders)
        }

    def run(self, code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.python, "-c", code], capture_output=True, encoding="utf-8", check=False
        )


@pytest.fixture
def bench(tmp_path: Path, fresh_standin: StandIn) -> Bench:
    variables = fresh_standin.environment(tmp_path / "cache", hermetic=True).apply(os.environ)
    folder = tmp_path / "environment"
    subprocess.run(
        [find_uv_bin(), "venv", "--quiet", "--python", sys.executable, folder],
        env=variables,
        check=True,
    )
    return Bench(prefix=folder, variables=variables)


def fetch(
    standin: StandIn, url: str, *, method: str = "GET", **headers: str
) -> tuple[int, email.message.Message, bytes]:
    """Ask through the closed proxy; return status, headers and body, whatever the status."""
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({"https": standin.closed_proxy_url}),
        urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=standin.bundle)),
    )
    request = urllib.request.Request(
        url,
        method=method,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, refusal.headers, refusal.read()


def torch_wheel_url(standin: StandIn, backend: str = "cpu") -> tuple[str, Path]:
    """Return the address and the file of one made torch."""
    path = next(w.path for w in standin.wheels(backend) if w.path.name.startswith("torch-2.13"))
    return f"https://{FILE_HOST}/whl/{backend}/{quote(path.name)}", path


# The builds


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_backend_installs_its_own_build_of_every_member(bench: Bench, backend: str) -> None:
    done = bench.install(f"--torch-backend={backend}", "torch", "torchvision", "torchaudio")
    assert done.returncode == 0, done.stderr
    installed = bench.installed()
    assert installed["torch"] == f"{TORCH}+{backend}"
    assert installed["torchvision"] == f"0.28.0+{backend}"
    assert installed["torchaudio"] == f"2.11.0+{backend}"
    tritons = {name for name in installed if name.startswith("triton")}
    if sys.platform == "linux":
        vendor = re.sub(r"[\d.]+$", "", backend)
        expected = {"cpu": set(), "rocm": {"triton-rocm"}, "xpu": {"triton-xpu"}}
        assert tritons == expected.get(vendor, {"triton"})
    imported = bench.run(
        "import torch, torchaudio, torchvision; print(torch.__version__, torch.version.cuda)"
    )
    cuda = f"{backend[2:4]}.{backend[4:]}" if backend.startswith("cu") else None
    assert imported.stdout.split() == [f"{TORCH}+{backend}", str(cuda)], imported.stderr


@pytest.mark.parametrize("backend", ["cpu", "cu126"])
def test_an_older_torch_can_be_pinned_and_brings_its_companions(bench: Bench, backend: str) -> None:
    done = bench.install(f"--torch-backend={backend}", f"torch=={OLDER_TORCH}", "torchvision")
    assert done.returncode == 0, done.stderr
    installed = bench.installed()
    assert installed["torch"] == f"{OLDER_TORCH}+{backend}"
    assert installed["torchvision"] == f"0.27.0+{backend}"


def test_each_python_gets_the_wheel_of_its_tag(bench: Bench) -> None:
    for tag in PYTHON_TAGS:
        version = f"3.{tag.removeprefix('cp3')}"
        locked = bench.uv(
            *("pip", "compile", "-", "--torch-backend=cu130", "--format=pylock.toml"),
            *(f"--python-version={version}", f"--python={bench.python}"),
            stdin="torch",
        ).stdout
        assert f"https://{FILE_HOST}/whl/cu130/torch-{TORCH}%2Bcu130-{tag}-{tag}-" in locked


def test_half_a_switch_shows_at_import(bench: Bench) -> None:
    bench.install("--torch-backend=cu126", "torch", "torchvision")
    bench.install("--torch-backend=cpu", "--reinstall-package=torch", "torch", "torchvision")
    assert bench.installed()["torchvision"] == "0.28.0+cu126"
    imported = bench.run("import torchvision")
    assert imported.returncode == 1
    assert "beside torch 2.13.0+cpu" in imported.stderr


def test_switching_without_force_is_the_silent_no_op_that_uv_makes_it(bench: Bench) -> None:
    bench.install("--torch-backend=cu130", "torch")
    done = bench.install("--torch-backend=cu126", "torch")
    assert done.returncode == 0
    assert bench.installed()["torch"] == f"{TORCH}+cu130"


def test_made_torch_computes_and_rounds_to_its_dtype() -> None:
    made_torch.manual_seed(7)
    left, right = made_torch.randn(16, 9), made_torch.randn(9, 5, device=made_torch.device("cpu"))
    product = (left @ right).cpu()
    rows, columns = left.tolist(), right.tolist()
    expected = [
        [sum(rows[i][k] * columns[k][j] for k in range(9)) for j in range(5)] for i in range(16)
    ]
    exact = left.double() @ right.double()
    assert exact.tolist() == expected
    error = (product.double() - exact).abs().max().item()
    assert 0 < error < 1e-5
    assert made_torch.allclose(product, exact.float())
    assert not made_torch.allclose(product, made_torch.zeros(16, 5))
    assert made_torch.isfinite(product).all()
    with made_torch.no_grad():
        assert made_torch.ones(3, 4, dtype=made_torch.float64).sum().item() == 12
    made_torch.manual_seed(7)
    assert made_torch.randn(16, 9).tolist() == rows


def test_made_torch_has_no_device_and_refuses_to_mix_dtypes() -> None:
    assert not made_torch.cuda.is_available()
    assert made_torch.cuda.device_count() == 0
    assert made_torch.cuda.get_arch_list() == []
    assert not made_torch.backends.mps.is_available()
    assert not made_torch.xpu.is_available()
    assert made_torch.get_num_threads() >= 1
    with pytest.raises(RuntimeError, match="no device cuda:0"):
        made_torch.ones(2).to("cuda:0")
    with pytest.raises(RuntimeError, match="one dtype"):
        made_torch.ones(2, 2) @ made_torch.ones(2, 2).double()


def test_made_wheels_are_valid_and_repeat_byte_for_byte(tmp_path: Path) -> None:
    first = make_family(tmp_path / "first", backend="cu126", python_tags=["cp311"])
    second = make_family(tmp_path / "second", backend="cu126", python_tags=["cp311"])
    assert [path.name.split("-")[0] for path in first] == [
        "torch",
        "torchvision",
        "torchaudio",
        "triton",
    ]
    for path, twin in zip(first, second, strict=True):
        content = path.read_bytes()
        assert content == twin.read_bytes()
        assert read_wheel(path).sha256 == hashlib.sha256(content).hexdigest()
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            record = next(name for name in archive.namelist() if name.endswith("/RECORD"))
            listed = {row[0]: row[1:] for row in csv.reader(archive.read(record).decode().split())}
            assert set(listed) == set(archive.namelist())
            for member, (digest, size) in listed.items():
                if member != record:
                    content = archive.read(member)
                    raw = hashlib.sha256(content).digest()
                    assert digest == f"sha256={base64.urlsafe_b64encode(raw).decode().strip('=')}"
                    assert int(size) == len(content)
    with pytest.raises(ValueError, match=r"torch 9\.9 is not one of"):
        make_family(tmp_path, backend="cpu", torch="9.9")


# The layout


def test_pages_and_files_lie_where_the_real_index_has_them(fresh_standin: StandIn) -> None:
    status, headers, page = fetch(fresh_standin, f"https://{INDEX_HOST}/whl/cpu/torch/")
    assert status == 200
    assert headers["Cache-Control"] == "no-cache,no-store,must-revalidate"
    url, path = torch_wheel_url(fresh_standin)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f'href="{url}#sha256={digest}"'.encode() in page
    metadata = fetch(fresh_standin, f"{url}.metadata")[2]
    named = hashlib.sha256(metadata).hexdigest()
    assert f'data-dist-info-metadata="sha256={named}"'.encode() in page
    assert f'data-core-metadata="sha256={named}"'.encode() in page
    assert fetch(fresh_standin, f"https://{INDEX_HOST}/whl/cpu/nothing/")[0] == 403
    assert fetch(fresh_standin, f"{url}.nothing")[0] == 403


def test_files_answer_head_ranges_and_conditions(fresh_standin: StandIn) -> None:
    url, path = torch_wheel_url(fresh_standin)
    content = path.read_bytes()
    status, headers, body = fetch(fresh_standin, url, method="HEAD")
    assert (status, headers["Content-Length"], body) == (200, str(len(content)), b"")
    assert "Cache-Control" not in headers
    status, partial, body = fetch(fresh_standin, url, Range="bytes=10-19")
    assert (status, body) == (206, content[10:20])
    assert partial["Content-Range"] == f"bytes 10-19/{len(content)}"
    assert fetch(fresh_standin, url, Range="bytes=-7")[2] == content[-7:]
    assert fetch(fresh_standin, url, Range=f"bytes={len(content)}-")[0] == 416
    assert fetch(fresh_standin, url, If_None_Match=headers["ETag"])[0] == 304
    assert fetch(fresh_standin, url, If_None_Match='"other"')[0] == 200
    assert fetch(fresh_standin, url, If_Modified_Since=headers["Last-Modified"])[0] == 304
    assert [request.range for request in fresh_standin.downloads()][:2] == [
        "bytes=10-19",
        "bytes=-7",
    ]


def test_torch_cannot_be_resolved_offline_because_its_page_is_never_stored(bench: Bench) -> None:
    assert bench.install("--torch-backend=cpu", "torch").returncode == 0
    again = bench.install("--offline", "--torch-backend=cpu", "--reinstall", "torch")
    assert again.returncode == 1
    assert "not found in the cache" in re.sub(r"\s+", " ", again.stderr)


def test_the_plain_server_is_a_mirror_as_well(bench: Bench, fresh_standin: StandIn) -> None:
    fresh_standin.down = True
    mirror = fresh_standin.mirror_url("cu128")
    done = bench.install("--index", mirror, f"torch=={TORCH}+cu128")
    assert done.returncode == 0, done.stderr
    assert bench.installed()["torch"] == f"{TORCH}+cu128"


# Faults

FAULTS = (
    (Fault(pattern=TORCH_PAGE, kind="status", status=404), "not found in the package registry"),
    (Fault(pattern=TORCH_PAGE, kind="status", status=500), "500"),
    (Fault(pattern=TORCH_WHEEL, kind="status", status=403), "403"),
    (Fault(pattern=r"/torch-.*\.metadata$", kind="status", status=404), "404"),
    (Fault(pattern=TORCH_PAGE, kind="silent"), "timed out"),
    (Fault(pattern=TORCH_WHEEL, kind="stall"), "UV_HTTP_TIMEOUT"),
    (Fault(pattern=TORCH_WHEEL, kind="truncate"), "end of file|closed|incomplete|body|cache"),
    (Fault(pattern=TORCH_WHEEL, kind="corrupt"), "CRC|[Hh]ash"),
    (Fault(pattern=TORCH_PAGE, kind="wrong-hash"), "Hash mismatch"),
)


@pytest.mark.parametrize(("fault", "said"), FAULTS)
def test_each_fault_stops_uv_and_leaves_the_environment_empty(
    bench: Bench, fresh_standin: StandIn, fault: Fault, said: str
) -> None:
    fresh_standin.faults = [fault]
    done = bench.install("--torch-backend=cpu", "torch", UV_HTTP_RETRIES="0", UV_HTTP_TIMEOUT="1")
    assert done.returncode in {1, 2}
    assert re.search(said, re.sub(r"\s+", " ", done.stderr)), done.stderr
    assert bench.installed() == {}
    hit = [request for request in fresh_standin.requests if re.search(fault.pattern, request.path)]
    assert hit
    if fault.kind == "status":
        assert {request.status for request in hit} == {fault.status}


def test_a_fault_ends_after_its_times_and_uv_tries_again(
    bench: Bench, fresh_standin: StandIn
) -> None:
    fresh_standin.faults = [Fault(pattern=TORCH_PAGE, kind="status", status=503, times=1)]
    done = bench.install("--torch-backend=cpu", "torch")
    assert done.returncode == 0, done.stderr
    assert fresh_standin.faults == ()
    pages = [request.status for request in fresh_standin.downloads(TORCH_PAGE)]
    assert pages == [503, 200]


def test_a_stall_ends_when_the_client_leaves_or_the_fault_is_lifted(
    fresh_standin: StandIn,
) -> None:
    url, path = torch_wheel_url(fresh_standin)
    fresh_standin.faults = [Fault(pattern=TORCH_WHEEL, kind="stall")]
    command = [sys.executable, "-c", f"import urllib.request as r; r.urlopen({url!r}).read()"]
    environment = fresh_standin.environment(path.parent, hermetic=True).apply(os.environ)
    half = path.stat().st_size // 2
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as client:
        assert fresh_standin.wait_for(TORCH_WHEEL, sent=half).bytes == half
        assert not fresh_standin.downloads()[0].finished
        client.kill()
    until(lambda: fresh_standin.downloads()[0].finished)
    fresh_standin.clear_log()
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as client:
        fresh_standin.wait_for(TORCH_WHEEL, sent=half)
        fresh_standin.faults = ()
        assert b"IncompleteRead" in client.communicate()[1]


def until(condition: object, *, seconds: float = 10) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_down_refuses_both_hosts_and_nothing_is_taken_from_elsewhere(
    bench: Bench, fresh_standin: StandIn
) -> None:
    fresh_standin.down = True
    done = bench.install("--torch-backend=cpu", "torch", UV_HTTP_RETRIES="0")
    assert done.returncode == 2
    assert "tunnel" in done.stderr
    assert bench.installed() == {}
    refused = [request for request in fresh_standin.requests if request.method == "CONNECT"]
    assert {(request.host, request.status) for request in refused} == {(INDEX_HOST, 502)}
    fresh_standin.down = False
    assert bench.install("--torch-backend=cpu", "torch").returncode == 0


def test_going_down_ends_a_download_under_way(bench: Bench, fresh_standin: StandIn) -> None:
    fresh_standin.rate = 100_000
    with subprocess.Popen(
        [find_uv_bin(), "pip", "install", "--python", bench.python, "--torch-backend=cpu", "torch"],
        env={**bench.variables, "UV_HTTP_RETRIES": "0"},
        stderr=subprocess.PIPE,
    ) as process:
        fresh_standin.wait_for(TORCH_WHEEL)
        fresh_standin.down = True
        process.communicate(timeout=30)
        assert process.returncode != 0
    assert bench.installed() == {}


def test_the_plain_torch_is_visible_where_it_is_taken(bench: Bench, fresh_standin: StandIn) -> None:
    fresh_standin.faults = [Fault(pattern=r"^/whl/", kind="status", status=404)]
    assert bench.install("--torch-backend=cpu", "torch").returncode == 1
    assert bench.installed() == {}
    # A mistyped mirror is how uv comes to take it silently.
    mistyped = fresh_standin.mirror_url("cpuu")
    assert bench.install("--index", mistyped, "torch").returncode == 0
    assert bench.installed()["torch"] == TORCH


def test_pages_without_hashes_still_install(bench: Bench, fresh_standin: StandIn) -> None:
    fresh_standin.hashes = False
    page = fetch(fresh_standin, f"https://{INDEX_HOST}/whl/cpu/torch/")[2]
    assert b"#sha256" not in page
    assert b"data-core-metadata" in page
    assert bench.install("--torch-backend=cpu", "torch").returncode == 0


def test_without_metadata_files_uv_reads_it_from_the_wheel(
    bench: Bench, fresh_standin: StandIn
) -> None:
    fresh_standin.metadata = False
    assert bench.install("--torch-backend=cpu", "--dry-run", "torch").returncode == 0
    wheel_requests = [r for r in fresh_standin.requests if re.search(TORCH_WHEEL, r.path)]
    assert wheel_requests[0].method == "HEAD"
    assert fresh_standin.downloads(TORCH_WHEEL)[0].status == 206


# Speed


def test_rate_holds_a_download_back_and_can_be_lifted(bench: Bench, fresh_standin: StandIn) -> None:
    size = torch_wheel_url(fresh_standin)[1].stat().st_size
    fresh_standin.rate = size // 10
    begin = time.monotonic()
    with subprocess.Popen(
        [find_uv_bin(), "pip", "install", "--python", bench.python, "--torch-backend=cpu", "torch"],
        env=bench.variables,
        stderr=subprocess.PIPE,
    ) as process:
        fresh_standin.wait_for(TORCH_WHEEL, sent=size // 10)
        slow = time.monotonic() - begin
        assert process.poll() is None
        fresh_standin.rate = None
        process.communicate(timeout=30)
        assert process.returncode == 0
    # A tenth took about a second; the rest, at that rate, would have taken nine more.
    assert slow > 0.9
    assert time.monotonic() - begin - slow < 7


# Other hosts


def tunnel(standin: StandIn, proxy: str) -> int:
    """Ask the plain index through a proxy's CONNECT; return the status of the page."""
    way, target = urlsplit(proxy), urlsplit(standin.simple_url)
    connection = http.client.HTTPConnection(str(way.hostname), way.port, timeout=10)
    connection.set_tunnel(str(target.hostname), target.port)
    try:
        connection.request("GET", "/simple/numpy/")
        return connection.getresponse().status
    finally:
        connection.close()


def test_other_hosts_are_reached_directly_or_refused(fresh_standin: StandIn) -> None:
    assert tunnel(fresh_standin, fresh_standin.proxy_url) == 200
    with pytest.raises(OSError, match="403"):
        tunnel(fresh_standin, fresh_standin.closed_proxy_url)
    fresh_standin.direct = False
    with pytest.raises(OSError, match="403"):
        tunnel(fresh_standin, fresh_standin.proxy_url)
    connects = [r.status for r in fresh_standin.requests if r.method == "CONNECT"]
    assert connects == [200, 403, 403]


def test_the_environment_lets_nothing_else_decide(
    fresh_standin: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("UV_FIND_LINKS", "UV_DEFAULT_INDEX", "PIP_INDEX_URL", "SSL_CERT_DIR"):
        monkeypatch.setenv(name, "elsewhere")
    hermetic = fresh_standin.environment(tmp_path, hermetic=True).apply(os.environ)
    assert hermetic["UV_DEFAULT_INDEX"] == fresh_standin.simple_url
    assert hermetic["HTTPS_PROXY"] == fresh_standin.closed_proxy_url
    assert hermetic["PIP_CONFIG_FILE"] == os.devnull
    assert not {"UV_FIND_LINKS", "PIP_INDEX_URL", "SSL_CERT_DIR"} & set(hermetic)
    mixed = fresh_standin.environment(tmp_path, hermetic=False).apply(os.environ)
    assert mixed["UV_DEFAULT_INDEX"] == "elsewhere"
    assert mixed["PIP_INDEX_URL"] == "elsewhere"
    assert mixed["HTTPS_PROXY"] == fresh_standin.proxy_url
    assert not {"UV_FIND_LINKS", "SSL_CERT_DIR"} & set(mixed)


# What tests add


def test_an_added_wheel_is_served_until_the_reset(
    bench: Bench, fresh_standin: StandIn, tmp_path: Path
) -> None:
    wheel = make_wheel(tmp_path, "needs-old-torch", "1.0", requires=[f"torch=={OLDER_TORCH}"])
    fresh_standin.add_wheel(SIMPLE, wheel)
    assert bench.install("--torch-backend=cu126", "needs-old-torch").returncode == 0
    assert bench.installed()["torch"] == f"{OLDER_TORCH}+cu126"
    fresh_standin.reset()
    assert wheel.name not in {served.path.name for served in fresh_standin.wheels(SIMPLE)}
    assert fresh_standin.requests == ()
    assert fresh_standin.rate is None


@pytest.mark.real_wheel
def test_the_real_wheel_is_resolved_and_downloads_whole(
    bench: Bench, fresh_standin: StandIn, real_wheel: Path
) -> None:
    wheel = read_wheel(real_wheel)
    backend = wheel.backend or ""
    fresh_standin.add_wheel(backend, real_wheel)
    version = re.sub(r"cp3", "3.", real_wheel.name.split("-")[2])
    done = bench.install(
        f"--torch-backend={backend}", f"--python-version={version}", "--dry-run", "torch"
    )
    assert done.returncode == 0, done.stderr
    assert "networkx" in done.stderr
    assert fresh_standin.downloads() == ()
    _, _, body = fetch(fresh_standin, f"https://{FILE_HOST}/whl/{backend}/{quote(real_wheel.name)}")
    assert hashlib.sha256(body).hexdigest() == wheel.sha256
    assert fresh_standin.downloads()[0].bytes == wheel.size


@pytest.mark.skipif(os.name == "nt", reason="the lines are for a POSIX shell")
def test_the_module_prints_lines_for_a_shell_and_serves_until_interrupted(bench: Bench) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.standin", "--hermetic", "--rate", "100000000"],
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as serving:
        assert serving.stdout
        lines = list(iter(serving.stdout.readline, "# serving; Ctrl-C ends it\n"))
        assert {line.partition(" ")[0] for line in lines} <= {"export", "unset"}
        install = [find_uv_bin(), "pip", "install", "--torch-backend=cu129", "torch"]
        done = subprocess.run(
            ["sh", "-c", "".join([*lines, 'exec "$0" "$@"']), *install, "--python", bench.python],
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        serving.send_signal(signal.SIGINT)
        serving.communicate(timeout=30)
    assert done.returncode == 0, done.stderr
    assert serving.returncode == 0
    assert bench.installed()["torch"] == f"{TORCH}+cu129"
