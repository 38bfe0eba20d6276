"""So that `prune` is this package, not the benchmark of that name."""
