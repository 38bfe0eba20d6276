"""The small file: the packed artefact, the ONNX graph, the integer reference and the proof."""

from bitwright.deploy.integer import IntegerNetwork
from bitwright.deploy.verify import Verification, agree, verify

__all__ = ["IntegerNetwork", "Verification", "agree", "verify"]
