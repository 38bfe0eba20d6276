"""Mutants that no input can tell from the original, each with the reason."""

from __future__ import annotations

#: (file, line of code, column in it, what is done) of mutants that compute the same: the reason
EQUIVALENT: dict[tuple[str, str, int, str], str] = {
    (
        "curvature/row_squares.py",
        "floats = groups * (positions * fan_in + (positions**2 if grams else r * fan_in))",
        52,
        "2+1",
    ): "only how many rows are multiplied at once; tests/curvature/test_chunks.py: any number does",
    (
        "curvature/row_squares.py",
        "fan_in = inputs(placed, slice(0, 1)).shape[-1]",
        33,
        "1+1",
    ): "one row more or less: only the last axis is looked at",
    (
        "curvature/row_squares.py",
        "size = max(1, _BLOCK // floats)",
        14,
        "FloorDiv->Mult",
    ): "only how many rows are multiplied at once",
    (
        "curvature/hutchinson.py",
        "totals = table.sum((1, 2))",
        9,
        "sum->mean",
    ): "a relative error is the same of a mean",
    (
        "allocate/exact.py",
        "rounding = 1e-12 * (float(np.abs(least).sum()) + float(multipliers @ np.abs(bounds)))",
        26,
        "sum->mean",
    ): "a tolerance for rounding, a hundred times what sums are off by",
    (
        "curvature/layout.py",
        "for axis in [0] if channel == 1 and t.ndim > 2 else range(t.ndim):",
        36,
        "Gt->GtE",
    ): "of two axes without the channel's, the first is left either way",
    (
        "allocate/multipliers.py",
        "if np.abs(proposed - point).max() <= 1e-12:",
        3,
        "LtE->Lt",
    ): "one more cutting plane where two points differ by the tolerance to the last bit",
    (
        "curvature/visits.py",
        "keep = a + some < len(directions) or bool(passed.loose)",
        7,
        "Add->Sub",
    ): "only when the graph's memory is given back",
    (
        "allocate/joint.py",
        "for _ in range(60):",
        15,
        "60+1",
    ): "a factor of 2^60 on the prices has long met every bound that has a price",
    (
        "curvature/selection.py",
        "whole = plan.final or len(rows) >= chunk or size <= 2",
        52,
        "2+1",
    ): "only which directions of a sample share a pass",
    (
        "arith/multibit.py",
        "return torch.where((now <= was)[:, None], found, alpha)",
        20,
        "LtE->Lt",
    ): "of two solutions with one error, either",
    (
        "allocate/knapsack.py",
        "costs.reshape(len(bounds), -1) / unit[:, None], -np.inf, bounds / unit",
        28,
        "1+1",
    ): "to numpy's reshape every negative length is the one to be found",
    (
        "allocate/cw_hawq.py",
        "self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)",
        52,
        "1.0+1",
    ): "the state is always 0, and is not scaled by its bounds",
    (
        "allocate/haq.py",
        "self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (width,), np.float32)",
        51,
        "1.0+1",
    ): "states are not scaled by their bounds",
    (
        "curvature/row_squares.py",
        "found = g.new_zeros(len(g), count + 1)",
        36,
        "1+1",
    ): "one more row for padding, which is cut off",
    (
        "curvature/row_squares.py",
        "zero = g.new_zeros(len(g), count + 1, g.shape[-1])  # one row more, for padding",
        35,
        "1+1",
    ): "one more row for padding, which is cut off",
    (
        "curvature/row_squares.py",
        "size = max(1, _LIMIT // max(numbers, 1))",
        24,
        "max->min",
    ): "only how many rows are multiplied at once",
    (
        "curvature/losses.py",
        "if classes <= 32 or count > classes // 4:",
        20,
        "Gt->GtE",
    ): "which of two ways to the same eigenvectors is cheaper",
    (
        "allocate/knapsack.py",
        "open_ = whole.allowed & (columns > current[:, None]) & (gain > 0) & (extra > 0)",
        56,
        "Gt->GtE",
    ): "a choice that costs no more and loses less would have been taken before",
    (
        "arith/narrow_sums.py",
        "total[:], least[:], most[:] = 0, 0, 0",
        33,
        "0+1",
    ): "what is met has 0 in it either way, and no limit lies between 0 and 1",
    (
        "allocate/states.py",
        "elif len(states.loss) <= _PAIRS:",
        5,
        "LtE->Lt",
    ): "only whether so many states are searched for what others match in everything",
    (
        "allocate/states.py",
        "order = np.lexsort((*states.costs[::-1], states.loss))  # whatever dominates comes before",
        36,
        "no USub",
    ): "in any order of the costs whatever dominates comes before",
    (
        "curvature/visits.py",
        "_MOST = 16",
        8,
        "16+1",
    ): "only how many directions share a pass",
    (
        "allocate/haq.py",
        "while run.left > 0 and idle < _PATIENCE:",
        6,
        "Gt->GtE",
    ): "sixty rounds of nothing at the end",
    (
        "curvature/forms.py",
        "last = i + 1 == len(directions)",
        7,
        "Add->Sub",
    ): "only when the graph's memory is given back",
    (
        "arith/grid.py",
        "return self.coordinates[:, 0] > 0",
        27,
        "0+1",
    ): "of bases there are two at least, and none is 0",
    (
        "arith/feedback.py",
        "gains = step * (step + 2 * pull) < 0",
        8,
        "Lt->LtE",
    ): "of two codes with one error, either",
    (
        "arith/project.py",
        "kept = torch.ceil(t - threshold[:, None]) - 1",
        7,
        "ceil->floor",
    ): "the same steps at a threshold that is lower by one",
    (
        "arith/project.py",
        "below = (t - nearest).amin(1) - 1  # nothing is taken",
        32,
        "1+1",
    ): "the lower end of a bisection, lower",
    (
        "allocate/multipliers.py",
        "unit = np.where(counts, most / np.where(counts, room, 1), 0.0)",
        54,
        "1+1",
    ): "what stands in for a division that is not looked at",
    (
        "allocate/brute_force.py",
        "LIMIT = 2_000_000",
        8,
        "2000000+1",
    ): "two million and one is no product of numbers of widths: 3 · 666,667",
    (
        "arith/packing.py",
        "columns = [(packed >> np.uint8(plane * j)) & mask for j in range(8 // plane)]",
        65,
        "FloorDiv->Mult",
    ): "columns beyond the last value are cut off",
}
