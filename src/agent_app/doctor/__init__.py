"""The command `doctor`: whether a run would work here, and if not, what to do about it."""
