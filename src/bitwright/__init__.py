"""bitwright makes trained PyTorch networks small with second-order information."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same names as in _HOMES, for those who read types
    from bitwright.allocate import Plan, Problem
    from bitwright.curvature import Estimate, Sensitivity, traces
    from bitwright.data import Data
    from bitwright.deploy import IntegerNetwork, Verification
    from bitwright.errors import BitwrightError
    from bitwright.pipeline import Settings, convert, load_pruned, prepare

    # from the very modules: mypy meets the names of these two in bitwright.pipeline as modules
    from bitwright.pipeline.compress import Result, compress, load
    from bitwright.pipeline.prune import prune
    from bitwright.report.compare import compare
    from bitwright.task import Task
    from bitwright.train import Trainable, hessian_norm, saga

__version__: str

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

#: module -> the public names that come from there, when first asked for: torch takes seconds to
#: import, and Control-C meanwhile should find the command line ready (`bitwright.interrupts`)
_HOMES = {
    "allocate": ("Plan", "Problem"),
    "curvature": ("Estimate", "Sensitivity", "traces"),
    "data": ("Data",),
    "deploy": ("IntegerNetwork", "Verification"),
    "errors": ("BitwrightError",),
    "pipeline": ("Settings", "convert", "load_pruned", "prepare"),
    "pipeline.compress": ("Result", "compress", "load"),
    "pipeline.prune": ("prune",),
    "report.compare": ("compare",),
    "task": ("Task",),
    "train": ("Trainable", "hessian_norm", "saga"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


class _Package(ModuleType):
    """A package whose public names and modules are imported when first asked for (PEP 562)."""

    def __getattr__(self, name: str) -> object:
        found: object
        if name == "__version__":
            found = import_module("bitwright.version").installed()
        elif name in _HOME:
            found = getattr(import_module(f"bitwright.{_HOME[name]}"), name)
        elif name.startswith("_"):
            raise AttributeError(f"module 'bitwright' has no attribute {name!r}")
        else:
            try:
                return import_module(f"bitwright.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"bitwright.{name}":
                    raise
            raise AttributeError(f"module 'bitwright' has no attribute {name!r}")
        vars(self)[name] = found
        return found

    def __setattr__(self, name: str, value: object) -> None:
        # Python puts the package `bitwright.prune` here once it is imported; the function stays
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*vars(self), *__all__})


sys.modules[__name__].__class__ = _Package
