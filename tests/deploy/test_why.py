"""Why a verification failed, in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bitwright.deploy import Verification
from bitwright.deploy.differences import Difference

GOOD = Verification(
    rows=200, tensors=3, equal=2, differing=(), same_class=1.0, same_class_given=1.0,
    output_error=0.0, strayed=3, changed=3, fused=True, qlinear_convolutions=2, convolutions=2,
    integer_linears=1, linears=1, unsigned=(), operations={}, runtime="onnxruntime",
)  # fmt: skip
ROUNDING = Difference("mean_1", "mean", 1e-4, 1, (0, 1), 4, 5, "added in another order")
WRONG = Difference("conv_2", "conv", 0.5, 9, (0, 1), 4, 13, "")


@pytest.mark.parametrize(
    ("check", "says"),
    [
        (GOOD, ""),
        (replace(GOOD, differing=(ROUNDING, WRONG)), str(WRONG)),
        (replace(GOOD, differing=(ROUNDING,), same_class_given=0.99),
         "2 of 200 rows have another class behind the same integers"),
        (replace(GOOD, strayed=4, changed=4),
         "4 of 200 rows have other outputs behind the same integers"),
        (replace(GOOD, changed=4),
         "4 of 200 rows answered otherwise by the file as it is"),
        (replace(GOOD, differing=(ROUNDING,)), ""),
        (replace(GOOD, differing=(WRONG,), lost=(ROUNDING,)), str(ROUNDING)),
        (replace(GOOD, differing=(ROUNDING,), fused=False),
         "a layer was not fused into an integer kernel"),
    ],
)  # fmt: skip
def test_the_first_reason_is_named(check: Verification, says: str):
    assert check.why == says
    assert check.ok is (not says)
