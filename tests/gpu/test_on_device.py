"""The examination as tests: on the device where there is one, on kept records everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.gpu.examination import Examination, examine
from torchenv_magic.accelerators import Host
from torchenv_magic.environment import Interpreter
from torchenv_magic.selection import Request, select
from torchenv_magic.serialization import from_json

RECORDS = sorted((Path(__file__).parent / "recorded").glob("*.json"))


@pytest.fixture(scope="module")
def examination() -> Examination:
    pytest.importorskip("torch", reason="no PyTorch is installed beside the tests")
    examination = examine()
    if not examination.has_accelerator:
        pytest.skip("no accelerator was found here")
    return examination


@pytest.mark.gpu
def test_product_and_pytorch_agree_about_the_device(examination: Examination) -> None:
    assert examination.checks
    assert not [str(check) for check in examination.checks if not check.passed]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_recorded_machine_still_gets_the_build_that_was_right_for_it(path: Path) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    host = from_json(Host, record["detect"]["data"])
    interpreter = Interpreter(
        executable=Path("python"),
        version=record["machine"]["python"],
        implementation="cpython",
    )

    selection = select(host, Request(), interpreter=interpreter)

    assert all(check["passed"] for check in record["checks"])
    assert str(selection.backend) == record["select"]["data"]["backend"]
