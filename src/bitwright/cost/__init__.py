"""What a plan costs beside its size: bit operations, and seconds measured on this machine."""

from bitwright.cost.bops import FLOAT_BITS, bops_per_bit, mac_pairs
from bitwright.cost.forms import Bench, Form, bench
from bitwright.cost.latency import measure
from bitwright.cost.profile import profile
from bitwright.cost.shapes import LayerShape, calls
from bitwright.cost.static_int8 import FORMATS, static_int8
from bitwright.cost.table import Machine, Profile, Row, Timing, Whole, latencies, read, write

__all__ = [
    "FLOAT_BITS",
    "FORMATS",
    "Bench",
    "Form",
    "LayerShape",
    "Machine",
    "Profile",
    "Row",
    "Timing",
    "Whole",
    "bench",
    "bops_per_bit",
    "calls",
    "latencies",
    "mac_pairs",
    "measure",
    "profile",
    "read",
    "static_int8",
    "write",
]
