"""What holds for all tests."""

import os

from hypothesis import HealthCheck, settings

# No test depends on the speed of the machine. In CI the examples are the same in each run, so that a
# change is judged by what it changes; everywhere else they are new ones.
settings.register_profile(
    "project",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("project")
