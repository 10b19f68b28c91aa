"""A scenario that takes a fraction of a second."""

SMALL = [
    "experiment.queries=60",
    "workload.output.mean=200",
    "workload.max_tokens=1000",
    "workload.arrivals.rate_per_s=3",
]
SETS = [part for change in SMALL for part in ("--set", change)]
