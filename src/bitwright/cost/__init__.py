"""What a plan costs beside its size: bit operations, and seconds measured on this machine."""

from bitwright.cost.bops import bops_per_bit
from bitwright.cost.latency import measure
from bitwright.cost.profile import profile
from bitwright.cost.shapes import LayerShape, calls
from bitwright.cost.table import Machine, Profile, Row, Timing, Whole, latencies, read, write

__all__ = [
    "LayerShape",
    "Machine",
    "Profile",
    "Row",
    "Timing",
    "Whole",
    "bops_per_bit",
    "calls",
    "latencies",
    "measure",
    "profile",
    "read",
    "write",
]
