"""bitwright makes trained PyTorch networks small with second-order information."""

from bitwright.allocate import Plan, Problem
from bitwright.curvature import Estimate, Sensitivity, traces
from bitwright.data import Data
from bitwright.deploy import IntegerNetwork, Verification
from bitwright.errors import BitwrightError
from bitwright.pipeline import (
    Result,
    Settings,
    compress,
    convert,
    load,
    load_pruned,
    prepare,
    prune,
)
from bitwright.report.compare import compare
from bitwright.task import Task
from bitwright.train import Trainable, hessian_norm, saga
from bitwright.version import installed

__version__ = installed()

__all__ = [
    "BitwrightError",
    "Data",
    "Estimate",
    "IntegerNetwork",
    "Plan",
    "Problem",
    "Result",
    "Sensitivity",
    "Settings",
    "Task",
    "Trainable",
    "Verification",
    "__version__",
    "compare",
    "compress",
    "convert",
    "hessian_norm",
    "load",
    "load_pruned",
    "prepare",
    "prune",
    "saga",
    "traces",
]
