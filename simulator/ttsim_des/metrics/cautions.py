"""What a reader should know before believing the numbers: the likely cause and the key to change."""

from __future__ import annotations

from typing import Any

from ttsim_des.metrics.columns import is_in
from ttsim_des.metrics.context import RunContext
from ttsim_des.metrics.window import Window
from ttsim_des.records.tables import Tables


def cautions(tables: Tables, window: Window, context: RunContext, summary: dict[str, Any]) -> list[str]:
    """What a reader should know before believing the numbers, with the likely cause and the key to change."""
    found: list[str] = []
    if summary["stability"]["stable"] is False:
        found.append(
            "the queue grows: offered load is above what this cluster can serve, so latencies only say how long the "
            "run was and are withheld; lower workload.arrivals.rate_per_s or raise cluster.replicas or cluster.tp"
        )
    if window.length_ns == 0:
        found.append(
            "all queries arrive together, so there is no window to average over; set experiment.kind = 'terminating'"
        )
    latency_s = summary["query"]["latency_s"]["mean"]
    if context.kind == "steady" and latency_s and 0 < window.length_s < 3 * latency_s:
        found.append(
            f"the window ({window.length_s:.3g} s) is short against a query's latency ({latency_s:.3g} s): the system "
            "may not have settled; raise experiment.queries"
        )
    refused = int((is_in(tables.queries, "status", "refused") & window.queries).sum())
    if refused:
        found.append(f"{refused} queries were refused and are in no latency; raise engine.max_model_len")
    still_open = int((is_in(tables.queries, "status", "open") & window.queries).sum())
    if still_open:
        found.append(f"{still_open} queries were still open at the end and are in no latency")
    outside = summary["steps"]["outside_domain_share"]
    if outside is not None and outside > 0.01:
        found.append(
            f"{outside:.1%} of the steps lie outside the profile's measured domain and are extrapolated; "
            "lower engine.max_num_seqs or the context lengths to stay inside"
        )
    per_request = summary["preemption"]["per_request"]
    if per_request is not None and per_request > 0.05:
        found.append(
            f"{per_request:.2f} preemptions per request: KV blocks run out; raise engine.gpu_memory_utilization, "
            "cluster.tp or cluster.replicas, or lower engine.max_num_seqs"
        )
    if context.gpu_hour_usd is None:
        found.append("no price is known for this GPU, so costs are left out; set cluster.gpu_hour_usd")
    return found
