"""The examples for admins, loaded into the real spawners: what would be started, and with what."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from jupyterhub.app import JupyterHub
from jupyterhub.spawner import SpawnException
from traitlets.config import Config

from tests.spawners.programs import Recorder
from tests.spawners.stage import EXAMPLES, TOKEN, choose, load, make_spawner
from torchenv_magic.hub import OPTION, configure
from torchenv_magic.words import parse_words

WRAPPED = ["torchenv", "preinstall", "--", "jupyterhub-singleuser"]
CONFIGURATIONS = {
    "local/jupyterhub_config.py": "LocalProcessSpawner",
    "systemd/jupyterhub_config.py": "SystemdSpawner",
    "sudo/jupyterhub_config.py": "SudoSpawner",
    "docker/jupyterhub_config.py": "DockerSpawner",
    "slurm/jupyterhub_config.py": "SlurmSpawner",
}


@pytest.fixture(autouse=True)
def _no_hub_is_left() -> Iterator[None]:
    yield
    JupyterHub.clear_instance()


def classes(spawner: Any) -> set[str]:
    return {each.__name__ for each in type(spawner).__mro__}


# -------------------------------------------------------------------------------- all of the files


def test_the_table_of_the_examples_names_each_file() -> None:
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    there = {
        path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*") if path.is_file()
    }
    for name in there - {"README.md"}:
        assert f"]({name})" in table, name


def test_each_file_says_at_its_head_what_it_is_for_and_what_to_change() -> None:
    for path in EXAMPLES.rglob("*"):
        if not path.is_file() or path.name == "README.md":
            continue
        head = path.read_text(encoding="utf-8")[:1500]
        for word in ("What for:", "What to change:"):
            assert word in head, path


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_makes_its_spawner_and_leaves_the_server_the_time_to_wait(
    name: str,
) -> None:
    async def look() -> Any:
        spawner = make_spawner(load(EXAMPLES / name))
        await choose(spawner)
        return spawner, spawner.get_env()

    spawner, variables = asyncio.run(look())
    assert CONFIGURATIONS[name] in classes(spawner)
    assert variables["TORCHENV_BACKEND"] == "auto"
    wait = float(variables["TORCHENV_PREINSTALL_WAIT"])
    timeout = spawner.start_timeout if "slurm" in name else spawner.http_timeout
    assert 0 < wait <= timeout - 60


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_what_a_user_chose_reaches_the_server_and_nothing_else_that_was_sent_along(
    name: str,
) -> None:
    async def look() -> Any:
        spawner = make_spawner(load(EXAMPLES / name))
        await choose(spawner, {OPTION: "cpu", "environment": {"LD_PRELOAD": "x"}, "cmd": "evil"})
        return spawner, spawner.get_env()

    spawner, variables = asyncio.run(look())
    assert variables["TORCHENV_BACKEND"] == "cpu"
    assert "LD_PRELOAD" not in variables
    assert "evil" not in (spawner.cmd or [])


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_choice_that_is_none_is_refused_before_anything_is_started(name: str) -> None:
    async def look() -> None:
        spawner = make_spawner(load(EXAMPLES / name))
        for value in ("$(id)", "cpu\nX=1", ["cpu"], {"a": 1}, 5):
            with pytest.raises(SpawnException) as caught:
                await choose(spawner, {OPTION: value})
            assert caught.value.jupyterhub_message

    asyncio.run(look())


# ------------------------------------------------------------------------------------------- local


def test_three_lines_are_enough_on_one_machine() -> None:
    text = (EXAMPLES / "local" / "jupyterhub_config.py").read_text(encoding="utf-8")
    lines = text.rpartition('"""')[2].split("\n")
    assert len([line for line in lines if line.strip()]) == 3
    spawner = make_spawner(load(EXAMPLES / "local" / "jupyterhub_config.py"))
    assert spawner.cmd == WRAPPED


# ----------------------------------------------------------------------------------------- systemd


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Systemd is no process 1 here: its two programs write down what they are told."""
    programs = tmp_path / "programs"
    programs.mkdir()
    started = tmp_path / "started"
    touch = f"open({str(started)!r}, 'w').close()"
    recorder = Recorder(programs / "systemd-run", tmp_path / "systemd-run.jsonl", then=touch)
    answer = (
        f"sys.exit(0 if sys.argv[1] == 'is-active' and os.path.exists({str(started)!r}) else 3)"
    )
    Recorder(programs / "systemctl", tmp_path / "systemctl.jsonl", then=answer)
    # What the unit's command is looked for in.
    for name in ("torchenv", "jupyterhub-singleuser"):
        Recorder(programs / name, tmp_path / f"{name}.jsonl")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    module = import_module("systemdspawner.systemd")
    monkeypatch.setattr(module, "RUN_ROOT", str(tmp_path / "run"))
    return recorder


def unit_started_by(config: Config, systemd: Recorder) -> tuple[list[str], str]:
    """Start the unit; return the words of `systemd-run`, and the text of its variables' file."""

    async def start() -> None:
        spawner = make_spawner(config)
        await choose(spawner, {OPTION: "cpu"})
        await spawner.start()

    asyncio.run(start())
    words = systemd.calls[0]["arguments"]
    file = next(word for word in words if word.startswith("--property=EnvironmentFile="))
    return words, Path(file.rpartition("=")[2]).read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore::UserWarning:systemdspawner")
@pytest.mark.parametrize("name", ["systemd/jupyterhub_config.py", "tljh/torchenv.py", "plugin"])
def test_a_unit_runs_the_wrapper_as_the_user(
    name: str, systemd: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured_by_plugin(monkeypatch) if name == "plugin" else load(EXAMPLES / name)
    if name != "systemd/jupyterhub_config.py":
        like_the_littlest_hub(config, users=tmp_path / "programs")
    words, variables = unit_started_by(config, systemd)
    start = words.index(str(tmp_path / "programs" / "torchenv"))
    assert words[start + 1 : start + 4] == WRAPPED[1:]
    assert any(word.startswith("--uid=") for word in words[:start])
    # systemd-run's arguments can be read by everybody; the file by its owner alone.
    assert TOKEN not in " ".join(words)
    assert TOKEN in variables
    assert "TORCHENV_BACKEND=cpu\n" in variables
    assert "PrivateDevices" not in " ".join(words)


def like_the_littlest_hub(config: Config, *, users: Path) -> None:
    """Add what TLJH's own jupyterhub_config.py sets; the package itself is in no index."""
    config.JupyterHub.spawner_class = "systemd"
    config.SystemdSpawner.extra_paths = [str(users)]
    config.SystemdSpawner.default_shell = "/bin/bash"
    config.SystemdSpawner.unit_name_template = "jupyter-{USERNAME}"


def configured_by_plugin(monkeypatch: pytest.MonkeyPatch) -> Config:
    """Call the plugin through pluggy as TLJH does.

    TLJH can't be installed from an index: `tljh.hooks` is made here, with pluggy's own markers and
    the names and arguments of the three hooks as TLJH documents them.
    """
    pluggy = import_module("pluggy")
    specification, implementation = (
        pluggy.HookspecMarker("tljh"),
        pluggy.HookimplMarker("tljh"),
    )

    class Hooks:
        def tljh_extra_user_pip_packages(self) -> None: ...

        def tljh_extra_hub_pip_packages(self) -> None: ...

        def tljh_custom_jupyterhub_config(self, c: Config) -> None: ...

    for name, hook in list(vars(Hooks).items()):
        if name.startswith("tljh_"):
            specification(hook)
    hooks = type(sys)("tljh.hooks")
    hooks.hookimpl = implementation  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tljh", type(sys)("tljh"))
    monkeypatch.setitem(sys.modules, "tljh.hooks", hooks)
    monkeypatch.syspath_prepend(str(EXAMPLES / "tljh"))
    monkeypatch.delitem(sys.modules, "tljh_torchenv", raising=False)
    manager = pluggy.PluginManager("tljh")
    manager.add_hookspecs(Hooks)
    manager.register(import_module("tljh_torchenv"))
    manager.check_pending()
    assert manager.hook.tljh_extra_hub_pip_packages() == [["torchenv-magic"]]
    assert manager.hook.tljh_extra_user_pip_packages() == [["torchenv-magic"]]
    config = Config()
    config.JupyterHub.spawner_class = "systemd"
    manager.hook.tljh_custom_jupyterhub_config(c=config)
    return config


# -------------------------------------------------------------------------------------------- sudo


@pytest.fixture
def sudo_folder(tmp_path: Path) -> Path:
    """Return a folder as an admin has it: `sudospawner`, the example's script, the two programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    beside = Path(sys.executable).parent
    shutil.copy(beside / "sudospawner", folder)
    shutil.copy(EXAMPLES / "sudo" / "sudospawner-singleuser", folder)
    (folder / "torchenv").symlink_to(beside / "torchenv")
    return folder


@pytest.mark.parametrize("torchenv", ["there", "missing"])
def test_sudospawner_starts_the_wrapper_by_its_script_and_the_server_without_it_too(
    torchenv: str, sudo_folder: Path, tmp_path: Path
) -> None:
    """Its mediator runs for real; the one step that is left out is sudo itself."""
    then = "import time\ntime.sleep(60)"
    program = sudo_folder / "jupyterhub-singleuser"
    server = Recorder(program, tmp_path / "server.jsonl", then=then)
    if torchenv == "missing":
        (sudo_folder / "torchenv").unlink()

    async def start() -> None:
        config = load(EXAMPLES / "sudo" / "jupyterhub_config.py")
        config.SudoSpawner.sudospawner_path = str(sudo_folder / "sudospawner")
        # The wrapper is the real one, and told to install nothing.
        config.Spawner.environment["TORCHENV_PREINSTALL"] = "0"
        spawner = make_spawner(config)
        await choose(spawner, {OPTION: "cpu"})
        ask = spawner.do
        spawner.do = lambda action, **words: ask(action, _skip_sudo=True, **words)
        await spawner.start()
        for _ in range(100):
            if server.calls:
                break
            await asyncio.sleep(0.1)
        # After the wrapper's exec the server has the pid that the hub knows.
        assert spawner.pid == server.calls[0]["pid"]
        os.kill(spawner.pid, 9)

    asyncio.run(start())
    assert len(server.calls) == 1
    assert server.calls[0]["variables"]["TORCHENV_BACKEND"] == "cpu"


# ------------------------------------------------------------------------------------------ docker


def container_of(config: Config, options: dict[str, object]) -> tuple[Any, dict[str, Any]]:
    """Return the spawner, and what Docker's own client was asked to create."""
    asked: list[dict[str, Any]] = []

    async def create() -> Any:
        spawner = make_spawner(config, user="ada")
        client = import_module("docker").APIClient(version="1.44")
        type(spawner)._client = client

        async def docker(method: str, *arguments: object, **words: Any) -> Any:
            assert method == "create_container", (method, arguments)
            words.pop("name")
            asked.append(client.create_container_config(**words))
            return {"Id": "1"}

        spawner.docker = docker
        await choose(spawner, options)
        await spawner.create_object()
        return spawner

    spawner = asyncio.run(create())
    return spawner, asked[0]


def test_a_container_gets_the_wrapper_the_choice_its_volume_and_the_devices() -> None:
    config = load(EXAMPLES / "docker" / "jupyterhub_config.py")
    spawner, asked = container_of(config, {OPTION: "cu126"})
    # Cmd and no Entrypoint: that of the image, with its own start script, still runs first.
    assert asked["Cmd"][:4] == WRAPPED
    assert not asked.get("Entrypoint")
    variables = dict(line.split("=", 1) for line in asked["Env"])
    assert variables["TORCHENV_BACKEND"] == "cu126"
    assert variables["TORCHENV_FIND_LINKS"] == "/srv/wheels:/opt/torchenv/wheels"
    assert set(asked["HostConfig"]["Binds"]) == {
        "jupyterhub-user-ada:/home/jovyan:rw",
        "/srv/wheels:/srv/wheels:ro",
    }
    (devices,) = asked["HostConfig"]["DeviceRequests"]
    assert (devices["Count"], devices["Capabilities"]) == (-1, [["gpu"]])
    # A container that was kept would be started again with its old command and variables.
    assert spawner.remove is True
    assert asked["HostConfig"]["AutoRemove"] is True


# ----------------------------------------------------------------------------- docker-stacks' hook


@pytest.fixture
def public() -> Iterator[Path]:
    """Return a folder that every user may enter; pytest's own are its user's alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def run_hook(
    folder: Path, *, user: int, variables: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(EXAMPLES / "docker-stacks" / "50-torchenv")],
        env={"PATH": f"{folder}:/usr/bin:/bin", **variables},
        user=user,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_hook_is_run_and_not_sourced() -> None:
    hook = EXAMPLES / "docker-stacks" / "50-torchenv"
    assert os.access(hook, os.X_OK)
    assert hook.suffix == ""
    dockerfile = (EXAMPLES / "docker-stacks" / "Dockerfile").read_text(encoding="utf-8")
    assert f"--chmod=755 {hook.name} /usr/local/bin/before-notebook.d/{hook.name}" in dockerfile


def write_program(file: Path, text: str) -> None:
    file.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    file.chmod(0o755)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start it as a container's root does")
def test_the_hook_gives_up_root_before_it_begins(public: Path) -> None:
    # In a container that is kept, the first folder of PATH is the user's own.
    for name in ("id", "env", "setpriv"):
        write_program(public / name, 'echo "planted, and run as root" >&2')
    told = 'PATH=/usr/bin:/bin\necho "$(id -u) $(id -g) $(id -G) $HOME $USER $TORCHENV_BACKEND: $*"'
    write_program(public / "torchenv", told)
    names = {"NB_UID": "65534", "NB_GID": "100", "NB_USER": "ada", "TORCHENV_BACKEND": "cpu"}
    done = run_hook(public, user=0, variables={"HOME": "/root", "USER": "root", **names})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "65534 100 100 /home/ada ada cpu: preinstall --wait 0\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start it as another user")
def test_the_hook_as_the_user_changes_nobody_and_never_fails(public: Path) -> None:
    write_program(public / "torchenv", 'echo "$(id -u) $HOME"; exit 3')
    done = run_hook(public, user=65534, variables={"HOME": "/home/ada"})
    assert (done.returncode, done.stdout) == (0, "65534 /home/ada\n")
    assert "the server starts all the same" in done.stderr
    (public / "torchenv").unlink()
    assert run_hook(public, user=65534, variables={"HOME": "/home/ada"}).returncode == 0


# ------------------------------------------------------------------------------------------- slurm


class Port(BaseHTTPRequestHandler):
    """The hub's handler that a job tells its port."""

    told: list[tuple[str, Any]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.told.append((self.path, body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_words: object) -> None:
        pass


@pytest.fixture
def hub_api() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Port.told.clear()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_job_s_script_runs_the_wrapper_on_its_node_and_then_the_server(
    hub_api: HTTPServer, tmp_path: Path
) -> None:
    """The script is Slurm's own template, and bash runs it; `sbatch` here starts it at once."""
    programs = tmp_path / "programs"
    programs.mkdir()
    server = Recorder(programs / "jupyterhub-singleuser", tmp_path / "server.jsonl")
    script = tmp_path / "job.sh"
    # A node's variables are those of a login there, and those that `--export` names.
    login = f"export PATH={programs}:{Path(sys.executable).parent}:$PATH"
    start = f"bash {script} > {tmp_path}/job.log 2>&1 &"
    write_program(programs / "sbatch", f"cat > {script}\n{login}\n{start}\necho 7")
    write_program(programs / "srun", 'exec "$@"')

    async def submit() -> Any:
        config = load(EXAMPLES / "slurm" / "jupyterhub_config.py")
        config.SlurmSpawner.exec_prefix = ""
        config.SlurmSpawner.batch_submit_cmd = str(programs / "sbatch")
        config.Spawner.environment["TORCHENV_PREINSTALL"] = "0"
        spawner = make_spawner(config, api_url=("127.0.0.1", hub_api.server_port))
        hostile = {"prologue": "touch /pwned", "cmd": "evil", "options": "--partition=other"}
        await choose(spawner, {OPTION: "cpu", **hostile})
        await spawner.submit_batch_script()
        return spawner

    spawner = asyncio.run(submit())
    deadline = time.monotonic() + 30
    while not server.calls and time.monotonic() < deadline:
        time.sleep(0.1)
    assert server.calls, (tmp_path / "job.log").read_text(encoding="utf-8")
    assert spawner.job_id == "7"
    text = script.read_text(encoding="utf-8")
    assert "\nsrun torchenv preinstall -- batchspawner-singleuser jupyterhub-singleuser" in text
    for word in ("pwned", "evil", "other", TOKEN):
        assert word not in text
    # The job's own variables: `sbatch` hands them over by name.
    assert "TORCHENV_BACKEND" in text
    (call,) = server.calls
    assert call["variables"]["TORCHENV_BACKEND"] == "cpu"
    assert [path for path, _ in Port.told] == ["/hub/api/batchspawner"]


# -------------------------------------------------------------------------------------- wrapspawner


# It hands a child what Spawner no longer takes.
@pytest.mark.filterwarnings("ignore:Passing unrecognized arguments:DeprecationWarning")
def test_a_profile_s_own_spawner_gets_the_wrapper_the_variables_and_the_time() -> None:
    """ProfilesSpawner has a form of its own; its children take what counts for all spawners."""

    async def look() -> Any:
        config = Config()
        config.JupyterHub.spawner_class = "wrapspawner.ProfilesSpawner"
        batch = import_module("batchspawner").SlurmSpawner
        config.ProfilesSpawner.profiles = [("Cluster", "slurm", batch, {"req_partition": "gpu"})]
        configure(config, form=False, backend="cu126")
        spawner = make_spawner(config)
        await choose(spawner, {"profile": "slurm"})
        # As the hub does before each start: what was loaded with the user is another start's.
        spawner.clear_state()
        spawner.construct_child()
        return spawner.child_spawner

    child = asyncio.run(look())
    assert "SlurmSpawner" in classes(child)
    line = child.cmd_formatted_for_batch()
    assert line.startswith("batchspawner-singleuser torchenv preinstall -- jupyterhub-singleuser")
    variables = child.get_env()
    assert variables["TORCHENV_BACKEND"] == "cu126"
    assert float(variables["TORCHENV_PREINSTALL_WAIT"]) <= child.http_timeout - 60


# ---------------------------------------------------------------------------------------- an image


def test_what_an_image_is_built_by_is_in_our_own_words() -> None:
    text = (EXAMPLES / "image" / "Dockerfile").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("RUN torchenv ")]
    parse_words(line.removeprefix("RUN torchenv ").split(), notebook=False)
    folder = line.split()[3]
    assert f"ENV TORCHENV_FIND_LINKS={folder}\n" in text
    # Root's, so that no user of a container can put a wheel there for the next one.
    assert text.index("USER root") < text.index(line) < text.index("USER ${NB_UID}")
