"""The embedded default: a trained network and 2,000 images, so that everything runs offline."""

from bitwright.demo.net import CLASSES, SmallResNet, data, network

__all__ = ["CLASSES", "SmallResNet", "data", "network"]
