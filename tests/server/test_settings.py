"""Who decides whether a server installs PyTorch, and what: its configuration, or its variables."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from traitlets.config import Config

from torchenv_magic.preinstall.wish import wish_of
from torchenv_magic.server.settings import TorchenvPreinstall


@pytest.mark.parametrize(
    ("traits", "environ", "is_on"),
    [
        ({}, {}, False),
        ({}, {"TORCHENV_PREINSTALL": "1"}, True),
        ({}, {"TORCHENV_PREINSTALL": "yes"}, False),
        ({"enabled": True}, {}, True),
        ({"enabled": False}, {"TORCHENV_PREINSTALL": "1"}, False),
        # A switch for a whole site, or one container, that no configuration forgets.
        ({"enabled": True}, {"TORCHENV_PREINSTALL": "0"}, False),
    ],
)
def test_nothing_begins_unless_somebody_has_opted_in(
    traits: Mapping[str, object], environ: Mapping[str, str], *, is_on: bool
) -> None:
    assert made(traits).is_on(environ) is is_on


def test_the_configuration_comes_before_the_variables() -> None:
    environ = {"TORCHENV_BACKEND": "cu126", "TORCHENV_REQUIREMENTS": "numpy", "HOME": "/home"}
    settings = made({"backend": "cpu", "requirements": ["torch>=2.12, <2.14", "torchvision"]})

    wish = wish_of(settings.over(environ))

    assert (wish.backend, wish.notices) == ("cpu", ())
    assert wish.requirements == ("torch>=2.12, <2.14", "torchvision")
    assert made({}).over(environ) == environ


def made(traits: Mapping[str, object]) -> TorchenvPreinstall:
    return TorchenvPreinstall(config=Config({"TorchenvPreinstall": dict(traits)}))
