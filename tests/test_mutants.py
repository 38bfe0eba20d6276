"""The helper that damages our code on purpose: everywhere, for a while, or not at all."""

from __future__ import annotations

import pytest

from bitwright import curvature, quantize
from bitwright.curvature import divergence
from bitwright.pipeline import measured as stages
from mutants import mutant, mutated


def test_a_snippet_must_stand_there_exactly_once():
    with pytest.raises(ValueError, match=r"curvature\.divergence has 0 times"):
        mutant("curvature.divergence", "no such line", "")
    with pytest.raises(ValueError, match=r"has [2-9] times"):
        mutant("curvature.divergence", "squared", "")
    with pytest.raises(SyntaxError):
        mutant("curvature.divergence", 'KINDS = ("kl", "squared")', "KINDS = (")


def test_the_original_is_left_as_it_is():
    copy = mutant("curvature.divergence", 'KINDS = ("kl", "squared")', 'KINDS = ("js",)')
    assert copy.KINDS == ("js",) and divergence.KINDS == ("kl", "squared")
    copy.check("js")
    divergence.check("kl")


def test_the_whole_package_uses_the_mutant_and_then_no_longer():
    ours = curvature.make_key
    one = curvature.make_key("a", "b")
    with mutated("curvature.estimate", "digest.update(content)", "pass"):
        assert stages.make_key is curvature.make_key is not ours
        assert curvature.make_key("a") == curvature.make_key("b")
        assert quantize.scores.Estimate is curvature.Estimate
    assert stages.make_key is curvature.make_key is ours
    assert curvature.make_key("a", "b") == one
    with (
        pytest.raises(ZeroDivisionError),
        mutated("curvature.estimate", "SCHEMA = 1", "SCHEMA = 2"),
    ):
        1 / 0  # noqa: B018
    assert stages.make_key is curvature.make_key is ours
