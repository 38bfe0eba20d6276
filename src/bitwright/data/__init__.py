"""Calibration and test rows from `npz:PATH`, `folder:PATH`, `FILE.py:factory` or `demo`."""

from bitwright.data.load import load_data, names_code
from bitwright.data.loaders import gather
from bitwright.task import Data, check_labels, checked

__all__ = ["Data", "check_labels", "checked", "gather", "load_data", "names_code"]
