"""`python -m bitwright`, and the command `bitwright`."""

from importlib import import_module

from bitwright.interrupts import watch


def main() -> None:
    """Import what the commands share, which takes seconds, then do what was asked."""
    watch()
    import_module("bitwright.pipeline")
    import_module("bitwright.cli").main()


if __name__ == "__main__":  # processes that a run starts import this module, too
    main()
