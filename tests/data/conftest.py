"""How many cases each fuzz test tries: 30, 200 with CI set, or what FUZZ_CASES says."""

import os

from hypothesis import HealthCheck, settings

BY_HAND = os.environ.get("FUZZ_CASES")

settings.register_profile(
    "lmbench",
    max_examples=int(BY_HAND or (200 if os.environ.get("CI") else 30)),
    derandomize=not BY_HAND,  # the same cases each time, but new ones when someone asks for more
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("lmbench")
