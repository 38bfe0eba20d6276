"""Trained graph networks of 8 bits on bytes: integer products and sums on the CPU."""

from bitwright.graph.integer.network import ByteNetwork, on_bytes

__all__ = ["ByteNetwork", "on_bytes"]
