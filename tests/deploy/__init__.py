"""A package, so that `deploy` is this folder and not `benchmarks/deploy.py`."""
