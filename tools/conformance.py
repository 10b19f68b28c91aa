"""Replay recordings of a real vLLM engine and compare the schedule step by step.

    python tools/conformance.py tests/recorded/vllm_cpu/golden/* tests/recorded/vllm_cpu/s4_fanout

A DIR holds one or more recordings: requests<SUFFIX>.jsonl.gz, steps<SUFFIX>.csv.gz, meta<SUFFIX>.json (layout:
docs/conformance.md). Each is simulated from its requests and meta alone; golden ones with the recorded formula of
step time, measured ones with the recorded step ends. Compared are, for every step, who was scheduled with how many
tokens on top of how many, preemption victims, running, waiting and free blocks, and times; for every request its
deliveries. Exit 0 only if all of it is equal; the first difference of each recording is printed.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.replica import Replica, Stepping
from ttsim_des.engine.request import Outcome, PromptSegment, Request, Scheduled, Status
from ttsim_des.engine.scheduler import Plan
from ttsim_des.latency.host import HostOverhead
from ttsim_des.latency.shape import Run, StepModel, StepShape
from ttsim_des.records.recorder import StepRecorder
from ttsim_des.timeline import Phase, Timeline
from ttsim_des.units import ns_to_s, s_to_ns

GOLDEN_TOLERANCE_NS = 100
MEASURED_TOLERANCE_NS = 2_000
_RUN_COLUMNS = {
    "decode_seqs": "decode_reqs",
    "prefill_seqs": "prefill_reqs",
    "prefill_tokens": "prefill_tokens",
    "running": "running",
    "waiting": "waiting",
    "preempted": "n_preempted",
}
csv.field_size_limit(1 << 30)


class MismatchError(Exception):
    """The first place where simulation and recording differ."""


@dataclass(frozen=True)
class Recording:
    """One recorded run as it lies on disk."""

    name: str
    meta: dict[str, Any]
    requests: list[dict[str, Any]]
    steps: list[dict[str, str]]

    @property
    def is_golden(self) -> bool:
        """Whether step times follow a formula instead of a measurement."""
        return "golden" in self.meta

    def time_ns(self, step: dict[str, str], which: str) -> int:
        """`which` ("start" or "end") of a step."""
        return s_to_ns(float(step[f"dev_{which}_s" if self.is_golden else f"{which}_s"]))


def read_recordings(folder: Path) -> Iterator[Recording]:
    """All recordings in a folder, by name."""
    metas = sorted(folder.glob("meta*.json"))
    if not metas:
        raise SystemExit(f"{folder}: no meta*.json here; expected a recording's folder")
    for meta_path in metas:
        suffix = meta_path.stem.removeprefix("meta")
        with gzip.open(folder / f"requests{suffix}.jsonl.gz", "rt") as lines:
            requests = [json.loads(line) for line in lines]
        with gzip.open(folder / f"steps{suffix}.csv.gz", "rt") as lines:
            steps = list(csv.DictReader(lines))
        yield Recording(
            f"{folder.resolve().parent.name}/{folder.name}{suffix}", json.loads(meta_path.read_text()), requests, steps
        )


class FormulaStepModel:
    """The golden recordings' time of the model: whole nanoseconds per step, token, context token, query-key pair."""

    def __init__(self, coefficients_s: dict[str, float]) -> None:
        to_ns = {name: s_to_ns(value) for name, value in coefficients_s.items()}
        self._step, self._token, self._ctx, self._qk = (to_ns[name] for name in ("a", "tok", "dctx", "pqk"))

    def step_ns(self, shape: StepShape) -> int:
        """The formula."""
        qk = sum(new * computed + new * (new + 1) // 2 for new, computed in shape.prefill_chunks)
        return self._step + self._token * shape.tokens + self._ctx * shape.decode_ctx_sum + self._qk * qk

    def decode_run(self, shape: StepShape, max_steps: int) -> Run:
        """Linear without end."""
        return Run(max_steps, self.step_ns(shape), self._ctx * shape.decode_seqs)

    def in_domain(self, shape: StepShape) -> bool:
        """A formula has no domain to leave."""
        return True


class RecordedStepModel:
    """Measured runs: the k-th step ends when the recording says."""

    def __init__(self, ends_ns: list[int], timeline: Timeline) -> None:
        self._ends = iter(ends_ns)
        self._timeline = timeline

    def step_ns(self, shape: StepShape) -> int:
        """From now to the recorded end."""
        return next(self._ends) - self._timeline.now_ns

    def decode_run(self, shape: StepShape, max_steps: int) -> Run:
        """One step: what comes after it is not a function of the shape."""
        return Run(1, self.step_ns(shape), 0)

    def in_domain(self, shape: StepShape) -> bool:
        """A recording has no domain to leave."""
        return True


def engine_config(meta: dict[str, Any]) -> EngineConfig:
    """The settings that the recorded engine had."""
    attrs, cache, scheduler = meta["scheduler_attrs"], meta["cache_config"], meta["scheduler_config"]
    return EngineConfig(
        num_gpu_blocks=attrs["num_gpu_blocks"],
        block_size=attrs["block_size"],
        max_num_seqs=attrs["max_num_running_reqs"],
        max_num_batched_tokens=attrs["max_num_scheduled_tokens"],
        max_model_len=meta["engine_args"]["max_model_len"],
        enable_prefix_caching=cache["enable_prefix_caching"],
        enable_chunked_prefill=scheduler["enable_chunked_prefill"],
        async_scheduling=scheduler["async_scheduling"],
        scheduling_policy=scheduler["policy"],
        long_prefill_token_threshold=scheduler["long_prefill_token_threshold"],
        scheduler_reserve_full_isl=attrs["scheduler_reserve_full_isl"],
        watermark_blocks=attrs["watermark_blocks"],
    )


@dataclass
class Replay:
    """One recording under simulation: feeds the engine, watches it, compares as it goes."""

    recording: Recording
    stepping: Stepping = "step"
    timeline: Timeline = field(default_factory=Timeline)
    requests: dict[int, Request] = field(default_factory=dict)
    deliveries_ns: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    num_steps: int = 0
    num_empty_preempting_steps: int = 0
    num_plans: int = 0

    def run(self) -> None:
        """Simulate and compare; raises MismatchError at the first difference."""
        recording, meta = self.recording, self.recording.meta
        self.rows = {row["id"]: row for row in recording.requests}
        self.children: dict[int, list[int]] = defaultdict(list)
        self.cancelled_groups: set[Any] = set()
        self.owners: dict[Any, int] = {}
        self.host = self._host(meta)
        self.tolerance_ns = GOLDEN_TOLERANCE_NS if recording.is_golden else MEASURED_TOLERANCE_NS
        model: StepModel
        if recording.is_golden:
            model = FormulaStepModel(meta["golden"]["coef"])
        else:
            model = RecordedStepModel([recording.time_ns(step, "end") for step in recording.steps], self.timeline)
        self.replica = Replica(
            0,
            engine_config(meta),
            model,
            self.host,
            self.timeline,
            self,
            recorder := StepRecorder("generator", 0),
            stepping=self.stepping,
            on_plan=self._compare_step if self.stepping == "step" else self._count_plan,
        )
        for row in recording.requests:
            if row["parent"] is None:
                self._send(row, s_to_ns(row["arrival_s"]))
            else:
                self.children[row["parent"]].append(row["id"])
        try:
            self.timeline.run()
        except StopIteration:
            raise MismatchError(f"the simulation wants a step after the {len(recording.steps)} recorded ones") from None
        if self.stepping == "leap":
            self._compare_runs(recorder)
        if self.num_steps != len(recording.steps):
            raise MismatchError(f"{self.num_steps} steps simulated, {len(recording.steps)} recorded")
        recorded_empty = meta.get("steps_with_preemption_and_no_tokens", self.num_empty_preempting_steps)
        if self.num_empty_preempting_steps != recorded_empty:
            raise MismatchError(
                f"{self.num_empty_preempting_steps} steps preempted and ran nothing, {recorded_empty} recorded"
            )
        for row in recording.requests:
            self._compare_request(row)

    @staticmethod
    def _host(meta: dict[str, Any]) -> HostOverhead:
        host = meta.get("golden", {}).get("host") or {}
        return HostOverhead(
            schedule_step_ns=s_to_ns(host.get("h_sched", 0.0)), update_step_ns=s_to_ns(host.get("h_upd", 0.0))
        )

    # ---- the world around the engine ----

    def _send(self, row: dict[str, Any], arrival_ns: int) -> None:
        prompt = self._prompt(row)
        request = Request(
            request_id=row["id"],
            prompt_tokens=row["prompt_tokens"],
            max_tokens=row["output_tokens_req"],
            prompt=prompt,
            arrival_ns=arrival_ns,
            priority=row.get("priority") or 0,
            name=row["rid"],
        )
        self.requests[row["id"]] = request
        every_token = range(1, row["output_tokens_req"] + 1) if self.stepping == "step" else ()
        outcome = Outcome(row["output_tokens_req"], list(every_token))
        self.timeline.at(arrival_ns, Phase.ARRIVAL, row["id"], lambda _: self.replica.submit(request, outcome))
        if row.get("cancel_s") is not None:
            cancel_ns = s_to_ns(row["cancel_s"])
            self.timeline.at(cancel_ns, Phase.ARRIVAL, row["id"], lambda _: self.replica.cancel(request))

    def _prompt(self, row: dict[str, Any]) -> tuple[PromptSegment, ...]:
        if row["parent"] is not None:
            parent = self.requests[row["parent"]]
            text = parent.prompt_tokens + parent.num_output_tokens
            segments = (*parent.prompt, (parent.output_owner, text))
            extra = self._owner(("extra", row["parent"]))
            return (*segments, (extra, row["prompt_tokens"])) if row["prompt_tokens"] > text else segments
        if row.get("prompt_id") is not None:
            owner = self._owner(("prompt", row["prompt_id"]))
        elif row["rid"] != row["group"]:
            owner = self._owner(("group", row["group"]))
        else:
            owner = self._owner(("request", row["id"]))
        return ((owner, row["prompt_tokens"]),)

    def _owner(self, key: tuple[str, Any]) -> int:
        return self.owners.setdefault(key, len(self.owners))

    def on_milestone(self, request: Request, delivered_ns: int) -> None:
        """A token has come out."""
        self.deliveries_ns[request.request_id].append(delivered_ns - self.host.update_step_ns)

    def on_finish(self, request: Request, delivered_ns: int) -> None:
        """A request is done: its children arrive, its siblings may be cancelled."""
        for child in self.children[request.request_id]:
            self._send(self.rows[child], delivered_ns)
        row = self.rows[request.request_id]
        group = row["group"]
        if row.get("abort_policy") == "first_finish" and group not in self.cancelled_groups:
            self.cancelled_groups.add(group)
            due_ns = delivered_ns + s_to_ns(row["abort_react_s"])
            for sibling in self.recording.requests:
                if sibling["group"] == group and sibling["id"] != row["id"]:
                    other = self.requests[sibling["id"]]
                    cancel = lambda _, other=other: self.replica.cancel(other)  # noqa: E731
                    self.timeline.at(due_ns, Phase.ARRIVAL, sibling["id"], cancel)

    # ---- comparing ----

    def _compare_step(self, plan: Plan, start_ns: int, end_ns: int) -> None:
        if not plan.entries:
            self.num_empty_preempting_steps += 1
            return
        if self.num_steps >= len(self.recording.steps):
            raise MismatchError(f"the simulation wants a step after the {len(self.recording.steps)} recorded ones")
        step = self.recording.steps[self.num_steps]
        scheduler = self.replica.scheduler
        simulated = {
            "scheduled": [_entry_text(entry) for entry in plan.entries],
            "preempted": sorted(request.request_id for request in plan.preempted),
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting),
            "free blocks": scheduler.kv.num_free_blocks,
        }
        recorded = {
            "scheduled": step["sched"].split(),
            "preempted": sorted(map(int, step["preempted"].split())),
            "running": int(step["running"]),
            "waiting": int(step["waiting"]),
            "free blocks": int(step["free_blocks"]),
        }
        for what, value in recorded.items():
            if simulated[what] != value:
                raise MismatchError(
                    f"step {self.num_steps}: {what}:\n    recorded  {value}\n    simulated {simulated[what]}"
                )
        for which, time_ns in (("start", start_ns), ("end", end_ns)):
            self._compare_time(f"step {self.num_steps}: {which}", self.recording.time_ns(step, which), time_ns)
        self.num_steps += 1

    def _count_plan(self, plan: Plan, start_ns: int, end_ns: int) -> None:
        self.num_plans += 1
        self.num_empty_preempting_steps += not plan.entries

    def _compare_runs(self, recorder: StepRecorder) -> None:
        """Leaps: the step records, expanded, against the recorded steps."""
        for run in recorder.steps_table().to_pylist():
            start_ns = run["start_ns"]
            for index in range(run["steps"]):
                if self.num_steps >= len(self.recording.steps):
                    raise MismatchError(f"the simulation has steps after the {len(self.recording.steps)} recorded ones")
                step = self.recording.steps[self.num_steps]
                what = f"step {self.num_steps}"
                self._compare_time(f"{what}: start", self.recording.time_ns(step, "start"), start_ns)
                end_ns = start_ns + run["duration_ns"] + index * run["increment_ns"]
                self._compare_time(f"{what}: end", self.recording.time_ns(step, "end"), end_ns)
                start_ns += run["period_ns"] + index * run["period_increment_ns"]
                for ours, theirs in _RUN_COLUMNS.items():
                    if run[ours] != int(step[theirs]):
                        raise MismatchError(f"{what}: {ours}: recorded {step[theirs]}, simulated {run[ours]}")
                self.num_steps += 1

    def _compare_time(self, what: str, recorded_ns: int, simulated_ns: int) -> None:
        if abs(recorded_ns - simulated_ns) > self.tolerance_ns:
            raise MismatchError(f"{what}: recorded {ns_to_s(recorded_ns)} s, simulated {ns_to_s(simulated_ns)} s")

    def _compare_request(self, row: dict[str, Any]) -> None:
        request = self.requests[row["id"]]
        what = f"request {row['id']}"
        facts = {
            "delivered tokens": (sum(n for _, n in row["chunks"]), request.num_output_tokens),
            "cached tokens": (row["cached_tokens"] or 0, max(request.first_hit_tokens, 0)),
            "preemptions": (row["preemptions"], request.preemptions),
            "finished": (row["finish_s"] is not None, request.status is Status.FINISHED),
        }
        for name, (recorded, simulated) in facts.items():
            if recorded != simulated:
                raise MismatchError(f"{what}: {name}: recorded {recorded}, simulated {simulated}")
        if self.stepping == "leap":
            if row["chunks"]:
                self._compare_time(f"{what}: first token", s_to_ns(row["chunks"][0][0]), request.first_token_ns)
                self._compare_time(f"{what}: last token", s_to_ns(row["chunks"][-1][0]), request.last_token_ns)
            return
        for index, ((time_s, _), time_ns) in enumerate(zip(row["chunks"], self.deliveries_ns[row["id"]], strict=True)):
            self._compare_time(f"{what}: delivery {index}", s_to_ns(time_s), time_ns)
        if row["finish_s"] is not None:
            self._compare_time(f"{what}: finish", s_to_ns(row["finish_s"]), request.last_token_ns)


def _entry_text(entry: Scheduled) -> str:
    kind = "d" if entry.is_decode else "p"
    return f"{entry.request.request_id}:{entry.num_tokens}:{entry.computed_before}:0:{kind}"


def main(arguments: list[str] | None = None) -> int:
    """Compare every recording in every DIR; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path)
    parser.add_argument(
        "--stepping", choices=["step", "leap"], default="step", help="how the engine gets from step to step"
    )
    options = parser.parse_args(arguments)
    num_exact = num_recordings = 0
    for folder in options.folders:
        for recording in read_recordings(folder):
            num_recordings += 1
            replay = Replay(recording, options.stepping)
            try:
                replay.run()
            except MismatchError as difference:
                print(f"{recording.name}: DIFFERS at {difference}")
                continue
            num_exact += 1
            preemptions = sum(request.preemptions for request in replay.requests.values())
            size = f"{replay.num_steps} steps, {len(replay.requests)} requests, {preemptions} preemptions"
            print(f"{recording.name}: exact: {size}")
    print(f"{num_exact} of {num_recordings} recordings exact")
    return 0 if num_exact == num_recordings else 1


if __name__ == "__main__":
    sys.exit(main())
