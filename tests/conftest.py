"""What holds for every test: hypothesis draws the same examples each time, so that a verdict can be repeated.

`tools/differential.py` explores at random; a fault that it finds becomes a test.
"""

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
