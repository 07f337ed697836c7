"""What is wrong with the PyTorch that is installed, what it means, and what cures it."""

from __future__ import annotations

from torchenv_magic.doctor.diagnosis import (
    Diagnosis,
    diagnose,
    diagnosis_to_json,
    examine_and_judge,
)
from torchenv_magic.doctor.examination import Examination, examine
from torchenv_magic.doctor.problem import Problem

__all__ = [
    "Diagnosis",
    "Examination",
    "Problem",
    "diagnose",
    "diagnosis_to_json",
    "examine",
    "examine_and_judge",
]
