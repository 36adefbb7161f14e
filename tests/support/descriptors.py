"""What a test has open, and did not leave so."""

import os

__all__ = ["open_descriptors"]


def open_descriptors() -> set[str]:
    """The numbers that are open in this process.

    What earlier tests have left to the garbage collector may be closed at any moment. So a test that leaves
    nothing open ends with what it began with, or with less.
    """
    names = os.listdir("/proc/self/fd")  # noqa: PTH208 - names are all that is wanted
    return {name for name in names if os.path.lexists(f"/proc/self/fd/{name}")}  # not that of the look itself
