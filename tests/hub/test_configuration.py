"""What `configure` makes of a hub's configuration, with the real classes and without a hub."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jupyterhub.spawner import LocalProcessSpawner, SpawnException
from traitlets.config import Config

from torchenv_magic.errors import ConfigurationError, RequestError
from torchenv_magic.hub import (
    OPTION,
    Variant,
    apply_user_options,
    configure,
    environment,
    options_form,
    spawner_command,
    with_progress,
)
from torchenv_magic.hub.progress import Feed, feed_of, read_news
from torchenv_magic.hub.variants import form_html, is_backend, read_choice, read_variants
from torchenv_magic.preinstall.place import identity_of
from torchenv_magic.preinstall.wish import wish_of

WRAPPED = ["torchenv", "preinstall", "--", "jupyterhub-singleuser"]


class Working(LocalProcessSpawner):  # type: ignore[misc]
    """A spawner that tells of its own progress, and has soon told all of it."""

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        yield {"progress": 60, "message": "pulling an image"}


def spawner_of(c: Config, **orm: Any) -> Any:
    """Return a spawner as the hub would make it of the configuration."""
    spawner = c.JupyterHub.spawner_class(config=c)
    spawner.orm_spawner = SimpleNamespace(server=None, name="", user_options={}, **orm)
    return spawner


def configured(c: Config | None = None, **options: Any) -> Config:
    c = Config() if c is None else c
    configure(c, **options)
    return c


# ------------------------------------------------------------------------------------- the import


def test_the_hub_part_loads_nothing_of_jupyterhub_of_a_notebook_or_of_what_looks_at_a_machine() -> (
    None
):
    program = "import json, sys, torchenv_magic.hub; print(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(answer.stdout))
    assert not {name.partition(".")[0] for name in loaded} & {
        "IPython", "ipywidgets", "jupyterhub", "packaging", "torch", "tornado", "traitlets", "uv",
    }  # fmt: skip
    ours = {name for name in loaded if name.startswith("torchenv_magic.")}
    assert not ours & {
        "torchenv_magic.accelerators",
        "torchenv_magic.builds.catalog",
        "torchenv_magic.selection",
        "torchenv_magic.words",
    }


# ------------------------------------------------------------------------------------ the command


def test_the_command_of_each_spawner_is_wrapped_and_its_arguments_stay() -> None:
    c = Config()
    c.Spawner.args = ["--debug"]
    spawner = spawner_of(configured(c))
    assert (spawner.cmd, spawner.args) == (WRAPPED, ["--debug"])
    for name in ("docker", "systemd", "kubespawner.KubeSpawner"):
        c = Config()
        c.JupyterHub.spawner_class = name
        assert configured(c).Spawner.cmd == WRAPPED, name


def test_the_command_that_counts_is_the_one_that_is_wrapped() -> None:
    c = Config()
    c.Spawner.cmd = "general"
    c.LocalProcessSpawner.cmd = ["special", "--now"]
    configured(c)
    assert c.LocalProcessSpawner.cmd == ["torchenv", "preinstall", "--", "special", "--now"]
    assert c.Spawner.cmd == "general"


def test_a_command_is_wrapped_once_and_by_the_program_beside_it(tmp_path: Path) -> None:
    program = tmp_path / "jupyterhub-singleuser"
    assert spawner_command([str(program)])[0] == "torchenv"
    (tmp_path / "torchenv").touch()
    wrapped = spawner_command([str(program)])
    assert wrapped[0] == str(tmp_path / "torchenv")
    assert spawner_command(wrapped) == wrapped
    assert spawner_command(torchenv=("/opt/torchenv",))[0] == "/opt/torchenv"


def test_a_job_s_own_command_is_wrapped_and_only_the_choice_reaches_its_script() -> None:
    c = Config()
    c.JupyterHub.spawner_class = "batchspawner.SlurmSpawner"
    spawner = spawner_of(configured(c))
    assert spawner.batchspawner_singleuser_cmd == "torchenv preinstall -- batchspawner-singleuser"
    assert spawner.cmd == ["jupyterhub-singleuser"]
    asyncio.run(spawner._run_apply_user_options({OPTION: "cpu", "prologue": "id", "cmd": "id"}))
    assert spawner.user_options == {OPTION: "cpu"}


def test_where_nobody_is_asked_no_option_reaches_a_job_s_script() -> None:
    c = Config()
    c.JupyterHub.spawner_class = "batchspawner.SlurmSpawner"
    spawner = spawner_of(configured(c, form=False))
    spawner.user_options = {OPTION: "cpu", "prologue": "id"}
    asyncio.run(spawner._run_apply_user_options(spawner.user_options))
    assert spawner.user_options == {}
    # An admin's own form is theirs to judge.
    c = Config()
    c.JupyterHub.spawner_class = "batchspawner.SlurmSpawner"
    c.Spawner.options_form = "<input name=memory>"
    assert "apply_user_options" not in configured(c, form=False).Spawner


# --------------------------------------------------------------------------- the time there is


@pytest.mark.parametrize(
    ("given", "wait", "timeout", "handed"),
    [(None, 60, 120, "60"), (None, 0, 30, "0"), (300, 60, 300, "60"), (90, 600, 660, "600")],
)
def test_the_time_out_leaves_room_for_the_wait_and_is_never_lowered(
    given: int | None, wait: int, timeout: int, handed: str
) -> None:
    c = Config()
    if given is not None:
        c.Spawner.http_timeout = given
    spawner = spawner_of(configured(c, wait=wait))
    assert spawner.http_timeout == timeout
    assert spawner.environment["TORCHENV_PREINSTALL_WAIT"](spawner) == handed
    # Whoever lowers it for some later waits no longer than it lets them.
    spawner.http_timeout = 75
    assert float(spawner.environment["TORCHENV_PREINSTALL_WAIT"](spawner)) == min(wait, 15)


# -------------------------------------------------------------------------------- the environment


def test_the_variables_say_what_the_preinstall_reads() -> None:
    variables = environment(
        backend="cpu",
        requirements=["torch == 2.13.*", "torchvision"],
        mirror="https://mirror.example/whl/",
        find_links=["/srv/wheels", "/srv/more"],
        layers=["/srv/layers"],
        seed="/srv/seed",
        certificates="/etc/ssl/site.pem",
        proxies="http://proxy.example:3128",
    )
    texts = {name: value for name, value in variables.items() if isinstance(value, str)}
    wish = wish_of(texts)
    assert (wish.backend, wish.requirements) == ("cpu", ("torch==2.13.*", "torchvision"))
    assert wish.notices == ()
    expected = {
        "TORCHENV_INDEX_BASE": "https://mirror.example/whl",
        "TORCHENV_FIND_LINKS": "/srv/wheels:/srv/more",
        "TORCHENV_LAYERS": "/srv/layers",
        "TORCHENV_SEED": "/srv/seed",
        "TORCHENV_HUB_ENVIRONMENT": identity_of(Path(sys.prefix)),
        "SSL_CERT_FILE": "/etc/ssl/site.pem",
        "REQUESTS_CA_BUNDLE": "/etc/ssl/site.pem",
        "https_proxy": "http://proxy.example:3128",
        "HTTPS_PROXY": "http://proxy.example:3128",
        "NO_PROXY": "localhost,127.0.0.1,::1",
    }
    assert expected.items() <= texts.items()


def test_what_the_admin_set_in_so_many_words_stays() -> None:
    c = Config()
    c.Spawner.environment = {"TORCHENV_REQUIREMENTS": "torch torchaudio", "SITE": "x"}
    given = configured(c).Spawner.environment
    assert (given["TORCHENV_REQUIREMENTS"], given["SITE"]) == ("torch torchaudio", "x")
    assert given["TORCHENV_BACKEND"] == "auto"
    late = Config()
    late.Spawner.environment.update({"TORCHENV_REQUIREMENTS": "torch torchaudio"})
    spawner = spawner_of(configured(late))
    assert spawner.environment["TORCHENV_REQUIREMENTS"] == "torch torchaudio"
    assert spawner.environment["TORCHENV_BACKEND"] == "auto"


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "cuda"},
        {"backend": "cu126"},
        {"c": Config(Spawner={"environment": {"TORCHENV_BACKEND": "cu126"}})},
        {"c": Config(Spawner={"environment": {"TORCHENV_BACKEND": lambda _: "cpu"}})},
        {"variants": ()},
        {"variants": ("auto", "$(id)")},
        {"variants": ("cpu", "cpu")},
        {"requirements": ("torch @ https://someone:hunter2@example.org/torch.whl",)},
        {"requirements": ("--index-url=https://example.org",)},
        {"wait": -1},
        {"wait": "60"},
        {"mirror": "ftp://mirror.example/whl"},
        {"mirror": "https://mirror.example/whl/cu126"},
        {"mirror": "https://someone:hunter2@mirror.example/whl"},
        {"find_links": ("wheels",)},
        {"layers": ("/srv/a:b",)},
        {"seed": "seed"},
        {"certificates": "site.pem"},
        {"proxies": {"ftp": "http://proxy.example"}},
        {"proxies": "http://someone:hunter2@proxy example"},
    ],
    # The same in each process: a function's own text has its address.
    ids=lambda options: re.sub(r" at 0x\w+", "", str(options)),
)
def test_what_can_t_be_used_is_told_with_a_hint_as_the_hub_starts_and_no_password_with_it(
    options: dict[str, Any],
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        configured(**options)
    assert caught.value.hint
    assert "hunter2" not in str(caught.value)


def test_a_spawner_that_can_t_be_had_is_told() -> None:
    c = Config()
    c.JupyterHub.spawner_class = "nowhere.Spawner"
    with pytest.raises(ConfigurationError, match="can't be imported"):
        configured(c)
    with pytest.raises(ConfigurationError, match="called twice"):
        configured(configured())
    c = Config()
    c.JupyterHub.spawner_class = "wrapspawner.ProfilesSpawner"
    with pytest.raises(ConfigurationError, match="The form of ProfilesSpawner is its own"):
        configured(c)


# --------------------------------------------------------------------------------------- the form


def test_the_form_is_labelled_escaped_and_marks_what_was_chosen_last() -> None:
    offered = read_variants(
        ["cpu", Variant(backend="cu126", title="<b>GPU</b>", description='"fast"'), "auto"]
    )
    page = form_html(offered, chosen="cpu")
    assert page.index('value="auto"') < page.index('value="cpu"') < page.index('value="cu126"')
    assert page.count(" checked>") == 1
    assert page.index('value="cpu"') < page.index(" checked>") < page.index('value="cu126"')
    assert "<b>GPU" not in page
    assert "&lt;b&gt;GPU&lt;/b&gt;" in page
    assert "&quot;fast&quot;" in page
    for name in ("auto", "cpu", "cu126"):
        assert f'for="{OPTION}-{name}"' in page
        assert f'id="{OPTION}-{name}-about"' in page
    many = form_html(read_variants(["auto", *(f"cu{number}" for number in range(118, 126))]))
    assert many.count("<option") == 9
    assert f'<label class="form-label fs-5" for="{OPTION}">' in many


def test_the_form_stands_below_the_admin_s_own_and_below_the_one_of_the_class() -> None:
    async def theirs(_: Any) -> str:
        return "<p>theirs</p>"

    for given in ("<p>theirs</p>", lambda _: "<p>theirs</p>", theirs):
        c = Config()
        c.Spawner.options_form = given
        page = asyncio.run(spawner_of(configured(c)).get_options_form())
        assert page.startswith("<p>theirs</p><fieldset")
    c = Config()
    c.JupyterHub.spawner_class = "docker"
    c.DockerSpawner.allowed_images = ["one", "two"]
    page = asyncio.run(spawner_of(configured(c)).get_options_form())
    assert page.index('name="image"') < page.index(f'name="{OPTION}"')


def test_the_other_options_are_read_as_before_from_a_form_and_from_a_link() -> None:
    c = Config()
    c.JupyterHub.spawner_class = "docker"
    c.DockerSpawner.allowed_images = ["one", "two"]
    spawner = spawner_of(configured(c))
    data = {"image": ["two"], OPTION: ["cpu"], "other": ["x"]}
    wanted = {"image": "two", OPTION: "cpu"}
    assert spawner.run_options_from_form(data) == wanted
    assert spawner.options_from_query(data) == wanted
    c = Config()
    c.Spawner.options_form = "<input name=size>"
    c.Spawner.options_from_form = "simple"
    assert spawner_of(configured(c)).run_options_from_form({"size": ["2"]}) == {"size": "2"}
    # As JupyterHub has it: all of it, as it came.
    spawner = spawner_of(configured())
    assert spawner.run_options_from_form({"x": ["y"]}) == {"x": ["y"]}
    # Several are left for where options from everywhere are judged.
    assert spawner.run_options_from_form({OPTION: ["cpu", "x"]}) == {OPTION: ["cpu", "x"]}


def test_what_is_done_with_the_other_options_is_done_as_before() -> None:
    seen: list[Any] = []

    async def theirs(_: Any, options: dict[str, Any]) -> None:
        seen.append(options)

    c = Config()
    c.Spawner.apply_user_options = theirs
    spawner = spawner_of(configured(c))
    asyncio.run(spawner._run_apply_user_options({OPTION: "cpu", "size": 2}))
    assert seen == [{"size": 2}]
    assert spawner.environment["TORCHENV_BACKEND"] == "cpu"
    c = Config()
    c.Spawner.apply_user_options = {"seconds": "http_timeout"}
    spawner = spawner_of(configured(c))
    asyncio.run(spawner._run_apply_user_options({"seconds": "77", "unknown": 1}))
    assert (spawner.http_timeout, spawner.environment["TORCHENV_BACKEND"]) == (77, "auto")


# ------------------------------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("environment", "backend"), [({}, "cu126"), ({"TORCHENV_BACKEND": "cu126"}, "auto")]
)
def test_who_has_not_chosen_gets_the_build_that_the_admin_named(
    environment: dict[str, str], backend: str
) -> None:
    c = Config()
    c.Spawner.environment = environment
    spawner = spawner_of(configured(c, backend=backend, variants=("auto", "cpu", "cu126")))
    page = asyncio.run(spawner.get_options_form())
    assert page.index('value="cu126"') < page.index(" checked>") < page.index('value="auto"')
    assert "(recommended)" not in page
    asyncio.run(spawner._run_apply_user_options({}))
    assert spawner.environment["TORCHENV_BACKEND"] == "cu126"
    asyncio.run(spawner._run_apply_user_options({OPTION: "auto"}))
    assert spawner.environment["TORCHENV_BACKEND"] == "auto"


def test_the_start_after_another_choice_knows_nothing_of_that() -> None:
    spawner = spawner_of(configured())
    asyncio.run(spawner._run_apply_user_options({OPTION: "rocm7.2"}))
    assert spawner.environment["TORCHENV_BACKEND"] == "auto"
    assert "build rocm7.2 of" in spawner.environment["TORCHENV_PREINSTALL_NOTICE"]
    asyncio.run(spawner._run_apply_user_options({OPTION: "cpu"}))
    assert spawner.environment["TORCHENV_BACKEND"] == "cpu"
    assert "TORCHENV_PREINSTALL_NOTICE" not in spawner.environment


def test_a_build_that_is_not_offered_falls_back_and_what_is_no_build_is_refused() -> None:
    offered = read_variants(["cpu", "cu126"])
    assert read_choice({}, offered).backend == "cpu"
    assert read_choice({OPTION: "cu126"}, offered).backend == "cu126"
    fallen = read_choice({OPTION: "auto"}, offered)
    assert (fallen.backend, "build auto of" in fallen.notice) == ("cpu", True)
    for value in ("cu", "CPU", "cu\u0661\u0662\u0666", "cu126 ", ["cpu"], None, 5, "", "auto\n"):
        assert not is_backend(value)
        with pytest.raises(RequestError):
            read_choice({OPTION: value}, offered)


def test_a_refused_choice_is_not_kept_for_the_next_start() -> None:
    spawner = spawner_of(configured())
    spawner.user_options = {OPTION: "$(id)", "other": 1}
    with pytest.raises(SpawnException) as caught:
        asyncio.run(spawner._run_apply_user_options(spawner.user_options))
    assert "$(id)" not in caught.value.jupyterhub_message
    assert (spawner.user_options, spawner.orm_spawner.user_options) == ({"other": 1}, {"other": 1})


def test_a_choice_is_judged_also_where_the_piece_is_used_alone() -> None:
    spawner = Working()
    spawner.orm_spawner = SimpleNamespace(server=None, name="", user_options={OPTION: "cpu"})

    async def use() -> str:
        await apply_user_options(["auto", "cpu"])(spawner, {OPTION: "cpu"})
        return await options_form(["auto", "cpu"])(spawner)

    page = asyncio.run(use())
    assert spawner.environment["TORCHENV_BACKEND"] == "cpu"
    assert page.index('value="cpu"') < page.index(" checked>")


# ----------------------------------------------------------------------------------- the progress


def test_both_tell_of_their_progress_and_the_bar_goes_forward_only() -> None:
    async def watch() -> list[dict[str, Any]]:
        spawner = with_progress(Working)()
        spawner.environment["TORCHENV_PREINSTALL_NOTICE"] = "not offered"
        feed_of(spawner).tell("downloading", 0.1)
        events: list[dict[str, Any]] = []
        progress = spawner.progress()
        async for event in progress:
            events.append(event)
            if len(events) == 4:
                feed_of(spawner).tell("downloading", 0.5)
                feed_of(spawner).tell("linking", None)
            if len(events) == 6:
                break
        await progress.aclose()
        assert feed_of(spawner).listeners == set()
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
        # The next start begins with nothing.
        spawner.clear_state()
        assert feed_of(spawner).told() == []
        return events

    assert asyncio.run(watch()) == [
        {"progress": 60, "message": "pulling an image"},
        {"message": "not offered"},
        {"message": "downloading"},
        {"progress": 60},
        {"progress": 72},
        {"message": "linking"},
    ]


def test_a_spawner_whose_own_progress_fails_is_heard_no_more_and_the_install_is() -> None:
    class Failing(LocalProcessSpawner):  # type: ignore[misc]
        async def progress(self) -> AsyncIterator[dict[str, Any]]:
            yield {"message": "one"}
            raise RuntimeError

    async def watch() -> list[dict[str, Any]]:
        spawner = with_progress(Failing)()
        events = []
        async for event in spawner.progress():
            events.append(event)
            feed_of(spawner).tell("two", None)
            if len(events) == 2:
                break
        return events

    assert asyncio.run(watch()) == [{"message": "one"}, {"message": "two"}]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"x", b"[]", b"{}", b'{"message": 5}', b'{"message": "x", "fraction": "1"}',
        b'{"message": "x", "fraction": NaN}', b'{"message": "x", "fraction": true}',
        b'{"message": "x", "fraction": 2}', b"[" * 3000, b'{"message": "' + b"x" * 4000 + b'"}',
    ],
)  # fmt: skip
def test_what_no_preinstall_posts_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (it has no words)
        read_news(body)


def test_what_is_posted_is_text_of_one_line_and_comes_at_a_bounded_rate() -> None:
    posted = json.dumps({"message": "a\nb\x1b[31m\u202e" + "x" * 300, "html_message": "<b>"})
    text, fraction = read_news(posted.encode())
    assert (text[:4], len(text), text.isprintable(), fraction) == ("a b ", 200, True, None)
    feed = Feed()
    assert sum(feed.admits(now=100 + number / 100) for number in range(100)) <= 10
    assert feed.admits(now=110)
