"""SAGA with arbitrary sampling: problems, samplings, the steps they allow, the solver."""

from bitwright.train.saga.constants import Moments, Rate, curvature, moments, step_size
from bitwright.train.saga.penalty import Penalty
from bitwright.train.saga.problem import Problem
from bitwright.train.saga.proper import (
    importance,
    independent,
    nice,
    partition,
    singles,
    uniform,
    user_sets,
)
from bitwright.train.saga.samplings import Independent, Nice, Sets, Singles
from bitwright.train.saga.solver import Solution, saga
from bitwright.train.saga.state import State, load_state, start

__all__ = [
    "Independent",
    "Moments",
    "Nice",
    "Penalty",
    "Problem",
    "Rate",
    "Sets",
    "Singles",
    "Solution",
    "State",
    "curvature",
    "importance",
    "independent",
    "load_state",
    "moments",
    "nice",
    "partition",
    "saga",
    "singles",
    "start",
    "step_size",
    "uniform",
    "user_sets",
]
