"""ResNet-20 with accumulators that do not overflow on data: ours, OAQ's rule, the released one."""

from __future__ import annotations

import harness
import overflow_base
from overflow_base import Case

from bitwright import overflow
from bitwright.overflow import Accumulator, Fitted, Rule

#: largest loss of KL against plain 8-bit with 32-bit accumulators
BAR = 0.01
OURS = "a factor a channel in closed form (ours)"


def _row(
    rows: harness.Rows, case: Case, name: str, found: Fitted, accumulator: Accumulator, seen: int
) -> None:
    plain = case.kl_computed(case.plain, Accumulator(32))
    six, six_error = case.kl(case.correct(case.edges(6))(case.rounded(6)))
    kl, error = case.kl_computed(found.quantized, accumulator), case.kl(found.quantized)[1]
    counts = overflow.overflows(found.quantized, case.test, accumulator)
    ours = name == OURS
    rows.add(
        f"KL increase, ResNet-20, {accumulator.bits}-bit accumulators ({accumulator.kind}) free of "
        f"overflow on {seen} images, {name}",
        kl - plain,
        f"<= {BAR}, below uniform 6-bit" if ours else "",
        kl - plain <= BAR and kl < six if ours and not rows.quick else None,
        "uniform 6-bit, 32-bit accumulators, increase",
        six - plain,
        kl=round(kl, 5),
        stderr=round(error, 5),
        plain_8_bit=round(plain, 5),
        simulated_with_32_bits=round(case.kl(found.quantized)[0], 5),
        eight_bit_that_overflows=round(case.kl_computed(case.plain, accumulator), 5),
        six_bit=[round(six, 5), round(six_error, 5)],
        overflows=list(found.history),
        left_on_test=[
            sum(c.total for c in counts.values()),
            sum(c.sums * len(c.over) for c in counts.values()),
        ],
    )


def data(kind: str, rows: harness.Rows, quick: bool) -> None:
    """Factors in closed form."""
    case, accumulator = overflow_base.resnet20(quick), Accumulator(16, kind)
    seen = case.x[: 16 if quick else 256]
    correct = case.correct(case.edges())
    found = overflow.fit_to_data(case.plain, seen, accumulator, correct=correct)
    _row(rows, case, OURS, found, accumulator, len(seen))


#: of OAQ's rule: name -> what moves
RULES = {
    "OAQ's rule, one factor a layer": Rule(rate=0.2, steps=16, raising=16),
    "OAQ's rule, weights alone": Rule(rate=0.2, steps=16, raising=16, inputs=False),
}


def rules(rows: harness.Rows, quick: bool) -> None:
    """OAQ's rule and the released one, on fewer rows: they take many passes."""
    case, accumulator = overflow_base.resnet20(quick), Accumulator(16)
    seen = case.x[: 16 if quick else 64]
    for name, rule in RULES.items():
        found = overflow.learn_ranges(case.plain, seen, accumulator, rule)
        _row(rows, case, name, found, accumulator, len(seen))
        if quick:
            return
    found = overflow.one_clamp(case.plain, seen[:16], accumulator)
    _row(rows, case, "the released rule, one clamp a layer", found, accumulator, 16)
