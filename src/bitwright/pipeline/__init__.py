"""The main job: all stages, in order, resumable."""

from bitwright.pipeline.compress import Result, compress, finish, load
from bitwright.pipeline.keep import PruneSettings
from bitwright.pipeline.methods import METHODS
from bitwright.pipeline.multibit import MultibitSettings, train_multibit
from bitwright.pipeline.prune import (
    Pruned,
    load_network,
    load_pruned,
    prune,
    prune_and_compress,
    run_prune,
)
from bitwright.pipeline.roundings import ROUNDINGS
from bitwright.pipeline.run import STAGES, Run
from bitwright.pipeline.settings import Settings
from bitwright.pipeline.training import convert, prepare

__all__ = [
    "METHODS",
    "ROUNDINGS",
    "STAGES",
    "MultibitSettings",
    "PruneSettings",
    "Pruned",
    "Result",
    "Run",
    "Settings",
    "compress",
    "convert",
    "finish",
    "load",
    "load_network",
    "load_pruned",
    "prepare",
    "prune",
    "prune_and_compress",
    "run_prune",
    "train_multibit",
]
