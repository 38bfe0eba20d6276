"""The main job: all stages, in order, resumable."""

from bitwright.pipeline.compress import Result, compress, finish, load
from bitwright.pipeline.methods import METHODS
from bitwright.pipeline.run import STAGES, Run
from bitwright.pipeline.settings import Settings
from bitwright.pipeline.training import convert, prepare

__all__ = [
    "METHODS",
    "STAGES",
    "Result",
    "Run",
    "Settings",
    "compress",
    "convert",
    "finish",
    "load",
    "prepare",
]
