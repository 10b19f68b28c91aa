"""Measured against simulated: distributions side by side, and the errors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ttsim_des.recordings.recording import Recording
from ttsim_des.records.long_table import whole
from ttsim_des.records.recorder import gaps_table
from ttsim_des.units import NS_PER_S, ns_to_s
from ttsim_des.validation.replay import Replayed

STATISTICS = ("mean", "p50", "p90", "p95", "p99")
Values = NDArray[np.float64]


def compare(recording: Recording, replayed: Replayed) -> dict[str, dict[str, float | None]]:
    """Metrics by name, each measured, simulated and the error in percent; all from the true arrival on."""
    found: dict[str, dict[str, float | None]] = {}
    distances: dict[str, dict[str, float | None]] = {}
    measured, simulated = latencies(recording, replayed)
    for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s", "query_s"):
        if name not in measured:
            continue
        for statistic in STATISTICS:
            found[f"{name}.{statistic}"] = _pair(_of(measured[name], statistic), _of(simulated[name], statistic))
        distances |= _distances(name, measured[name], simulated[name])
    found |= _totals(recording, replayed)
    errors = simulated["e2e_s"] / measured["e2e_s"] - 1
    found["per_request_e2e_mae_pct"] = {
        "measured": 0.0,
        "simulated": 100 * float(np.abs(errors).mean()),
        "error_pct": None,
    }
    return found | distances


def latencies(recording: Recording, replayed: Replayed) -> tuple[dict[str, Values], dict[str, Values]]:
    """Measured and simulated latencies in seconds by metric, of requests in their order (of ITL: of all tokens)."""
    return _measured(recording), _simulated(recording, replayed)


def _measured(recording: Recording) -> dict[str, Values]:
    requests = recording.requests
    spans = [(row.group, row.arrival_s, row.first_token_s, row.finish_s, row.output_tokens) for row in requests]
    found = _latencies(spans)
    if all(row.token_times_s for row in requests):
        found["itl_s"] = np.concatenate([np.diff(row.token_times_s) for row in requests])
    return found


def _simulated(recording: Recording, replayed: Replayed) -> dict[str, Values]:
    spans = [
        (
            row.group,
            ns_to_s(done.arrival_ns),
            ns_to_s(done.first_token_ns),
            ns_to_s(done.last_token_ns),
            row.output_tokens,
        )
        for row, done in zip(recording.requests, replayed.requests, strict=True)
    ]
    found = _latencies(spans)
    gaps = whole(gaps_table([replayed.recorder]))
    n, first, growth, seqs = (gaps[name].to_numpy() for name in ("steps", "gap_ns", "increment_ns", "seqs"))
    within = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
    found["itl_s"] = np.repeat((np.repeat(first, n) + within * np.repeat(growth, n)) / NS_PER_S, np.repeat(seqs, n))
    return found


def _latencies(spans: Iterable[tuple[str, float, float, float, int]]) -> dict[str, Values]:
    """From (group, arrival, first token, finish, output tokens) of each request, in seconds."""
    spans = list(spans)
    _, arrival, first, finish, output = (np.array(column) for column in zip(*spans, strict=True))
    arrival, first, finish = (column.astype(float) for column in (arrival, first, finish))
    several = output > 1
    found = {
        "ttft_s": first - arrival,
        "tpot_s": (finish - first)[several] / (output[several] - 1),
        "e2e_s": finish - arrival,
    }
    groups: dict[str, list[float]] = defaultdict(list)
    for group, start, _, end, _ in spans:
        groups[group] += [start, end]
    if len(groups) < len(spans):
        found["query_s"] = np.array([max(times) - min(times) for times in groups.values()])
    return found


def _totals(recording: Recording, replayed: Replayed) -> dict[str, dict[str, float | None]]:
    asked, done = recording.requests, replayed.requests
    tokens = sum(row.output_tokens for row in asked)
    spans = (
        max(row.finish_s for row in asked) - min(row.arrival_s for row in asked),
        ns_to_s(max(request.last_token_ns for request in done) - min(request.arrival_ns for request in done)),
    )
    found = {"output_tokens_per_s": _pair(tokens / spans[0], tokens / spans[1]), "makespan_s": _pair(*spans)}
    preemptions = sum(request.preemptions for request in done)
    known = [row.preemptions for row in asked if row.preemptions is not None]
    found["preemptions"] = _pair(sum(known) if len(known) == len(asked) else None, preemptions)
    hits = [row.cached_tokens for row in asked if row.cached_tokens is not None]
    cached = sum(max(request.first_hit_tokens, 0) for request in done)
    found["cached_tokens"] = _pair(sum(hits) if len(hits) == len(asked) else None, cached)
    return found


def _of(values: Values, statistic: str) -> float:
    """The mean, or the smallest value that a share of all does not exceed."""
    if statistic == "mean":
        return float(values.mean())
    return float(np.quantile(values, float(statistic[1:]) / 100, method="inverted_cdf"))


def _pair(measured: float | None, simulated: float) -> dict[str, float | None]:
    error = 100 * (simulated - measured) / measured if measured else None
    return {"measured": measured, "simulated": simulated, "error_pct": error}


def _distances(name: str, measured: Values, simulated: Values) -> dict[str, dict[str, float | None]]:
    """Kolmogorov-Smirnov (largest difference of shares) and Wasserstein (mean shift, in seconds) distances."""
    from scipy.stats import ks_2samp, wasserstein_distance

    return {
        f"{name}.ks": {
            "measured": 0.0,
            "simulated": float(ks_2samp(measured, simulated, method="asymp").statistic),
            "error_pct": None,
        },
        f"{name}.wasserstein_s": {
            "measured": 0.0,
            "simulated": float(wasserstein_distance(measured, simulated)),
            "error_pct": None,
        },
    }


def worst(metrics: Mapping[str, Mapping[str, Any]]) -> float:
    """The largest error of all metrics, in percent."""
    return max((abs(row["error_pct"]) for row in metrics.values() if row["error_pct"] is not None), default=0.0)
