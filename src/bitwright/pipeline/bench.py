"""The workbench: everything that plans of one network are made of, judged by and built with."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from bitwright import overflow, quantize
from bitwright.allocate import Limit, Plan, Problem, Product
from bitwright.curvature import Sensitivity
from bitwright.curvature.divergence import per_sample
from bitwright.deploy import onnx_file
from bitwright.errors import BitwrightError
from bitwright.network import Network, outputs
from bitwright.pipeline.accumulators import Sums
from bitwright.pipeline.roundings import ROUNDINGS
from bitwright.quantize import (
    EdgeGrid,
    EdgeTable,
    Moments,
    Predicted,
    Quantized,
    QuantizedLayer,
    WeightTable,
)
from bitwright.quantize.scores import EIGENVALUE_ROWS, WIDTHS

#: rows the correction looks at, and rows that judge a plan
CORRECTION_ROWS, HELD_OUT_ROWS = 256, 768
#: rows an evaluation of CW-HAWQ corrects on, and is rewarded on
REWARD_CORRECTION_ROWS, REWARD_ROWS = 64, 512
#: logits are divided by it before the KL of the reward
REWARD_TEMPERATURE = 8.0


@dataclass(frozen=True)
class Bounds:
    """What overrides leave to choose.

    Attributes:
        allowed: layer name -> widths, for layers that may not take all.
        root: int64 [layers], for each layer the first one it is tied to (itself if to none).
    """

    allowed: dict[str, tuple[int, ...]]
    root: np.ndarray

    @classmethod
    def of(
        cls, network: Network, allowed: dict[str, tuple[int, ...]], ties: list[list[str]]
    ) -> Bounds:
        """Tied layers may take what all of them allow.

        Raises:
            BitwrightError: tied layers whose bounds have no width in common.
        """
        names = [layer.name for layer in network.layers]
        root = np.arange(len(names))
        for group in ties:
            members = np.isin(root, root[[names.index(n) for n in group]])
            root[members] = root[members].min()
        common = dict(allowed)
        for first in np.unique(root):
            tied = [names[i] for i in np.flatnonzero(root == first)]
            widths = [set(allowed[n]) for n in tied if n in allowed]
            if len(tied) == 1 or not widths:
                continue
            both = tuple(sorted(set.intersection(*widths)))
            if not both:
                raise BitwrightError(
                    f"the tied layers {', '.join(tied)} allow no common width; loosen their bounds"
                )
            common |= dict.fromkeys(tied, both)
        return cls(common, root)

    def least(self, network: Network) -> dict[str, int]:
        """The smallest width of each layer."""
        return {la.name: min(self.allowed.get(la.name, WIDTHS)) for la in network.layers}

    def most(self, network: Network) -> dict[str, int]:
        """The largest width of each layer."""
        return {la.name: max(self.allowed.get(la.name, WIDTHS)) for la in network.layers}

    def range(self, network: Network) -> tuple[int, int]:
        """The least and the largest cost of any plan, in bits."""
        least, most = self.least(network), self.most(network)
        return (
            sum(least[la.name] * la.weights for la in network.layers),
            sum(most[la.name] * la.weights for la in network.layers),
        )


def onnx_bytes(
    network: Network,
    tables: dict[str, WeightTable],
    edges: dict[int, EdgeGrid],
    bits: dict[str, np.ndarray],
) -> int:
    """Size of the ONNX file of a plan's widths (corrections do not change it)."""
    layers = quantize.round_weights(network, tables, bits)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx_file.save(Quantized(network, layers, edges), path)
        return path.stat().st_size


@dataclass
class Workbench:
    """Everything a plan needs to become a network, computed once.

    Attributes:
        network: captured float network; sensitivity, tables, edges: of it.
        calibration: [n, ...] rows.
        kind, class_axis: of the divergence.
        bounds: what overrides leave to choose.
        pool: [m, ...] further calibration rows, which a search is rewarded on.
        limits: bounds beside the budget.
        predicted: what every channel would lose at each width; by trace where not given.
        free: grids of all activations at all widths and the bound on BOPs, where plans choose
            those widths as well; `edges` is empty then.
        rounding: of the weights, one of :data:`~bitwright.pipeline.roundings.ROUNDINGS`.
        sums: what accumulators must fit.
        bases: tables with multi-bit grids, and what channels would lose on them (by trace where not
            given), where rows may have those.
        spare: keep half of the calibration rows from the rounding, to judge plans on.
    """

    network: Network
    sensitivity: Sensitivity
    tables: dict[str, WeightTable]
    edges: dict[int, EdgeGrid]
    calibration: Tensor
    kind: str
    class_axis: int
    bounds: Bounds
    pool: Tensor
    limits: tuple[Limit, ...] = ()
    predicted: Predicted | None = None
    free: tuple[Mapping[int, EdgeTable], Product] | None = None
    rounding: str = "nearest"
    spare: bool = True
    sums: Sums | None = None
    bases: tuple[dict[str, WeightTable], Predicted | None] | None = None
    _eigenvalues: dict[str, float] | None = None
    _references: dict[int, tuple[Tensor, dict[str, Tensor]]] = field(default_factory=dict)
    _target: Tensor | None = None
    _reward: Tensor | None = None
    _moments: dict[str, Moments] | None = None
    _that_fit: dict[str, WeightTable] | None = None

    def problem(self, budget_bits: int, bases: bool = True) -> Problem:
        """One item a channel, behind them the activations where they are free."""
        problem = self.weights(budget_bits, bases)
        if self.free is None:
            return problem
        return quantize.with_activations(problem, self._activations(), self.free[1])

    def weights(self, budget_bits: int, bases: bool = True) -> Problem:
        """One item a channel, ties of the overrides and the limits applied; `bases` where rows may.

        Which widths have bases is a matter of the budget: they cost bytes.
        """
        problem = quantize.channel_problem(
            self.network,
            self.sensitivity,
            self.tables,
            budget_bits,
            self.bounds.allowed,
            score=self.prediction().losses,
        )
        count = np.bincount(self.bounds.root, minlength=len(self.network.layers))
        owner = self.bounds.root[quantize.layer_ties(self.network)]
        tie = np.arange(len(problem.names))
        for first in np.flatnonzero(count > 1):
            tie[owner == first] = tie[owner == first].min()
        problem = problem.with_ties(tie).with_limits(*self.limits)
        if self.bases is None or not bases:
            return problem
        return quantize.multibit_problem(problem, self.network, self._bases_losses())

    def _bases_losses(self) -> Mapping[str, np.ndarray]:
        """What every channel would lose with bases of each width."""
        assert self.bases is not None
        tables, predicted = self.bases
        if predicted is None:
            predicted = quantize.predict("trace", self.network, self.sensitivity, tables)
            self.bases = tables, predicted
        return predicted.losses

    def tables_of(self, plan: Plan) -> dict[str, WeightTable]:
        """The grids that a plan's rows are rounded on."""
        if self.bases is None:
            return self.tables
        return quantize.tables_of(self.network, plan, self.tables, self.bases[0])

    def prediction(self) -> Predicted:
        """What every channel would lose at each width."""
        if self.predicted is not None:
            return self.predicted
        return quantize.predict("trace", self.network, self.sensitivity, self._priced())

    def _priced(self) -> dict[str, WeightTable]:
        """The tables whose errors are priced: of grids that cannot overflow, if that is asked."""
        if self.sums is None or not self.sums.guaranteed:
            return self.tables
        if self._that_fit is None:
            self._that_fit = overflow.fitted_tables(
                self.network, self.tables, self.edges, self.sums.accumulator
            )
        return self._that_fit

    def _activations(self) -> Problem:
        assert self.free is not None
        return quantize.edge_problem(self.network, self.sensitivity, self.free[0], 8)

    def layer_ties(self) -> np.ndarray:
        """One tie id for all channels of a layer and of those tied to it; activations each one."""
        ties = self.bounds.root[quantize.layer_ties(self.network)]
        count = 0 if self.free is None else len(self.free[0])
        return np.concatenate([ties, len(self.network.layers) + np.arange(count)])

    def order(self) -> np.ndarray:
        """Items by falling sensitivity: channels, then activations.

        By the predicted loss at 4 bits of a weight: with the score `trace`, trace times squared
        step, which rescaling a channel does not change.
        """
        loss = self.prediction().losses
        each = [loss[la.name][:, WIDTHS.index(4)] / la.fan_in for la in self.network.layers]
        order = np.argsort(-np.concatenate(each), kind="stable")
        if self.free is None:
            return order
        return np.concatenate([order, len(order) + quantize.edge_order(self._activations())])

    def eigenvalues(self) -> dict[str, float]:
        """Layer -> top eigenvalue of its block."""
        if self._eigenvalues is None:
            rows = quantize.Rows(
                self.calibration[:EIGENVALUE_ROWS], None, self.kind, self.class_axis
            )
            self._eigenvalues = quantize.layer_eigenvalues(self.network, rows)
        return self._eigenvalues

    def grids(self, plan: Plan) -> dict[int, EdgeGrid]:
        """Grids of the activations under a plan."""
        return self.edges if self.free is None else quantize.edge_grids(self.free[0], plan)

    def _reference(self, rows: int) -> tuple[Tensor, dict[str, Tensor]]:
        rows = min(rows, quantize.rows_that_fit(self.network), max(4, len(self.calibration) // 2))
        if rows not in self._references:
            x = self.calibration[:rows]
            self._references[rows] = (x, quantize.float_outputs(self.network, x))
        return self._references[rows]

    def build(self, plan: Plan) -> Quantized:
        """Round, widen the steps of rows that kernels could saturate on, and correct."""
        bits, tables = quantize.plan_bits(self.network, plan), self.tables_of(plan)
        grids, rounding = self.grids(plan), ROUNDINGS[self.rounding]
        layers = rounding.round(self, tables, bits, grids)
        layers = quantize.narrowed(self.network, layers, grids)
        if self.sums is not None:
            return self._fitted(layers, grids)
        if rounding.corrected:
            return Quantized(self.network, layers, grids)
        return self.corrected(layers, grids)

    def _fitted(self, layers: dict[str, QuantizedLayer], grids: dict[int, EdgeGrid]) -> Quantized:
        """Rounded so that accumulators hold their sums, and corrected."""
        assert self.sums is not None

        def correct(rounded: Mapping[str, QuantizedLayer]) -> Quantized:
            return self.corrected(dict(rounded), grids)

        nearest = ROUNDINGS[self.rounding].nearest
        found = correct(self.sums.rounded(self.network, layers, grids, nearest))
        return self.sums.fitted(found, self.calibration, correct)

    def corrected(
        self,
        layers: dict[str, QuantizedLayer],
        grids: dict[int, EdgeGrid],
        rows: int = CORRECTION_ROWS,
    ) -> Quantized:
        """Scales and biases fitted to what the float network computes on so many rows."""
        x, reference = self._reference(rows)
        return quantize.correct(self.network, layers, grids, x, reference)

    @property
    def seen(self) -> Tensor:
        """Rows that the rounding may look at; where plans are judged on such rows too, not all."""
        most = max(8, len(self.calibration) // 2) if self.spare else len(self.calibration)
        return self.calibration[: min(ROUNDINGS[self.rounding].rows, most)]

    @property
    def moments(self) -> dict[str, Moments]:
        """Of the float network's inputs on those rows."""
        if self._moments is None:
            self._moments = quantize.float_moments(self.network, self.seen)
        return self._moments

    def _rounded_in_a_search(self, plan: Plan) -> dict[str, QuantizedLayer]:
        bits, tables = quantize.plan_bits(self.network, plan), self.tables_of(plan)
        own, grids = ROUNDINGS[self.rounding], self.grids(plan)
        used = own if own.in_search else ROUNDINGS["nearest"]
        found = (used.in_search or used.round)(self, tables, bits, grids)
        if self.sums is None:
            return found
        return self.sums.rounded(self.network, found, grids, used.nearest)

    def held_out(self) -> Tensor:
        """Calibration rows that neither correction nor the rounding sees."""
        used = max(len(self._reference(CORRECTION_ROWS)[0]), len(self.seen))
        rows = self.calibration[used : used + HELD_OUT_ROWS]
        return rows if len(rows) else self.calibration[-HELD_OUT_ROWS:]

    def divergence(self, plan: Plan) -> float:
        """Mean divergence of the corrected network on held-out calibration rows."""
        return float(self.samples(plan)[0].mean())

    def reward(self, plan: Plan) -> float:
        """What searches minimize: `T² E[KL(softmax(y/T) ‖ softmax(y_q/T))]` over pool rows, T = 8.

        A few rows whose answer flips decide the plain mean of the KL; softened answers, as in
        distillation, show on every row how far the logits moved. Among good plans it correlates
        at 0.96 with unseen images' mean KL, where the plain mean over as many rows does at 0.2
        (docs/decisions/0004-reward.md). Divergences other than the KL are taken as they are.
        """
        rows = self.pool[:REWARD_ROWS]
        if self._reward is None:
            self._reward = outputs(self.network.module, rows)
        found = quantize.simulate(
            self.corrected(
                self._rounded_in_a_search(plan), self.grids(plan), REWARD_CORRECTION_ROWS
            ),
            rows,
        )
        soft = REWARD_TEMPERATURE if self.kind == "kl" else 1.0
        values = per_sample(self._reward / soft, found / soft, self.kind, self.class_axis)
        return soft**2 * float(values.mean())

    @property
    def reward_name(self) -> str:
        """What :meth:`reward` is, for people."""
        if self.kind != "kl":
            return "squared difference on calibration rows"
        return f"softened divergence on calibration rows, T² KL at T = {REWARD_TEMPERATURE:g}"

    def samples(self, plan: Plan) -> tuple[Tensor, Tensor]:
        """Divergence of each held-out row, and the outputs there."""
        held_out = self.held_out()
        if self._target is None:
            self._target = outputs(self.network.module, held_out)
        found = quantize.simulate(self.build(plan), held_out)
        return per_sample(self._target, found, self.kind, self.class_axis), found

    def onnx_bytes(self, plan: Plan) -> int:
        """Size of the ONNX file of a plan (corrections do not change it)."""
        bits = quantize.plan_bits(self.network, plan)
        return onnx_bytes(self.network, self.tables_of(plan), self.grids(plan), bits)
