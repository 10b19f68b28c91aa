"""The hand-made worlds of tests/metrics serve the reports too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "metrics"))
