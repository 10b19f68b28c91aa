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
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttsim_des.engine.replica import Replica, Stepping
from ttsim_des.engine.request import Outcome, Request, Scheduled, Status
from ttsim_des.engine.scheduler import Plan
from ttsim_des.errors import InputError
from ttsim_des.latency.shape import Run, StepModel, StepShape
from ttsim_des.recordings.vllm_cpu import PromptOwners, RunFiles, drafting, engine_config, host_overhead, read_runs
from ttsim_des.records.long_table import whole
from ttsim_des.records.recorder import StepRecorder, steps_table
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


class MismatchError(Exception):
    """The first place where simulation and recording differ."""


class FormulaStepModel:
    """The golden recordings' time of the model: whole nanoseconds per step, token, context token, query-key pair."""

    def __init__(self, coefficients_s: dict[str, float], drafts: int) -> None:
        to_ns = {name: s_to_ns(value) for name, value in coefficients_s.items()}
        self._step, self._token, self._ctx, self._qk = (to_ns[name] for name in ("a", "tok", "dctx", "pqk"))
        self._step += drafts * to_ns.get("spec_k", 0)

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


@dataclass
class Replay:
    """One recording under simulation: feeds the engine, watches it, compares as it goes."""

    recording: RunFiles
    stepping: Stepping = "step"
    timeline: Timeline = field(default_factory=Timeline)
    requests: dict[int, Request] = field(default_factory=dict)
    deliveries: dict[int, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    num_steps: int = 0
    num_empty_preempting_steps: int = 0
    num_plans: int = 0

    def run(self) -> None:
        """Simulate and compare; raises MismatchError at the first difference."""
        recording, meta = self.recording, self.recording.meta
        self.rows = {row["id"]: row for row in recording.requests}
        self.children: dict[int, list[int]] = defaultdict(list)
        self.cancelled_groups: set[Any] = set()
        self.owners = PromptOwners(recording.requests)
        self.host = host_overhead(meta)
        self.tolerance_ns = GOLDEN_TOLERANCE_NS if recording.is_golden else MEASURED_TOLERANCE_NS
        model: StepModel
        if recording.is_golden:
            model = FormulaStepModel(meta["golden"]["coef"], meta["golden"].get("k_spec") or 0)
        else:
            model = RecordedStepModel([recording.time_ns(step, "end") for step in recording.steps], self.timeline)
        config = engine_config(meta)
        self.drafting = drafting(recording, config)
        self.replica = Replica(
            0,
            config,
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

    # ---- the world around the engine ----

    def _send(self, row: dict[str, Any], arrival_ns: int) -> None:
        prompt = self.owners.prompt(row["id"])
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
        outcome = Outcome(row["output_tokens_req"], tuple(every_token), self.drafting.get(row["id"]))
        self.timeline.at(arrival_ns, Phase.ARRIVAL, row["id"], lambda _: self.replica.submit(request, outcome))
        if row.get("cancel_s") is not None:
            cancel_ns = s_to_ns(row["cancel_s"])
            self.timeline.at(cancel_ns, Phase.ARRIVAL, row["id"], lambda _: self.replica.cancel(request))

    def on_milestone(self, request: Request, delivered_ns: int) -> None:
        """Tokens have come out."""
        new = request.num_output_tokens - sum(tokens for _, tokens in self.deliveries[request.request_id])
        self.deliveries[request.request_id].append((delivered_ns - self.host.update_step_ns, new))

    def on_finish(self, request: Request, delivered_ns: int, *, is_alone: bool) -> None:
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
        for run in whole(steps_table([recorder])).to_pylist():
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
                decode_tokens = run["decode_seqs"] + run["draft_tokens"]
                if decode_tokens != int(step["decode_tokens"]):
                    message = f"recorded {step['decode_tokens']}, simulated {decode_tokens}"
                    raise MismatchError(f"{what}: tokens of decodes, drafts included: {message}")
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
        deliveries = self.deliveries[row["id"]]
        if [tokens for _, tokens in row["chunks"]] != [tokens for _, tokens in deliveries]:
            raise MismatchError(f"{what}: delivered: recorded {row['chunks']}, simulated {deliveries}")
        for index, ((time_s, _), (time_ns, _)) in enumerate(zip(row["chunks"], deliveries, strict=True)):
            self._compare_time(f"{what}: delivery {index}", s_to_ns(time_s), time_ns)
        if row["finish_s"] is not None:
            self._compare_time(f"{what}: finish", s_to_ns(row["finish_s"]), request.last_token_ns)


def _entry_text(entry: Scheduled) -> str:
    kind = "d" if entry.is_decode else "p"
    return f"{entry.request.request_id}:{entry.num_tokens}:{entry.computed_before}:{entry.num_drafts}:{kind}"


def _all_runs(folders: list[Path]) -> Iterator[RunFiles]:
    try:
        for folder in folders:
            yield from read_runs(folder)
    except InputError as error:
        raise SystemExit(str(error)) from None


def main(arguments: list[str] | None = None) -> int:
    """Compare every recording in every DIR; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path)
    parser.add_argument(
        "--stepping", choices=["step", "leap"], default="step", help="how the engine gets from step to step"
    )
    options = parser.parse_args(arguments)
    num_exact = num_recordings = 0
    for recording in _all_runs(options.folders):
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
