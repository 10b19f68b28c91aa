"""The hooks of tools/record_vllm.py on a scheduler made up here (vLLM itself is not needed), and its sweep."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import record_vllm
from recorder.load import Query
from recorder.watch import CpuClock, Log, StepWatch, WallClock, Watched


class Scheduler:
    """Does as it is told: a plan a step, (id, tokens, computed before, drafts) each, and who is preempted."""

    max_num_running_reqs = 8
    block_size = 16

    def __init__(self) -> None:
        pool = SimpleNamespace(num_gpu_blocks=101, get_num_free_blocks=lambda: 60)
        self.kv_cache_manager = SimpleNamespace(block_pool=pool)
        self.running: list[str] = []
        self.waiting: list[str] = []
        self.known: set[str] = set()

    def add_request(self, request: Any) -> None:
        self.known.add(request.request_id)
        self.running.append(request.request_id)

    def schedule(self, plan: list[tuple[str, int, int, int]], preempted: set[str]) -> Any:
        new = [SimpleNamespace(req_id=name, num_computed_tokens=c) for name, _, c, _ in plan if name in self.known]
        cached = {name: computed for name, _, computed, _ in plan if name not in self.known}
        self.known -= {name for name, *_ in plan}
        return SimpleNamespace(
            num_scheduled_tokens={name: tokens for name, tokens, _, _ in plan},
            scheduled_spec_decode_tokens={name: [0] * drafts for name, _, _, drafts in plan if drafts},
            scheduled_new_reqs=new,
            scheduled_cached_reqs=SimpleNamespace(req_ids=list(cached), num_computed_tokens=list(cached.values())),
            preempted_req_ids=preempted,
        )

    def update_from_output(self, _: Any, told: list[tuple[str, int, str | None]]) -> Any:
        outputs = [
            SimpleNamespace(request_id=name, new_token_ids=[0] * tokens, finish_reason=reason)
            for name, tokens, reason in told
        ]
        return {0: SimpleNamespace(outputs=outputs)}


class Clock(CpuClock):
    """Every question takes a millisecond."""

    def __call__(self) -> float:
        self._elapsed += 0.001
        return self._elapsed


def test_what_is_noted_of_steps_and_requests() -> None:
    scheduler, log = Scheduler(), Log(Clock())
    watch = StepWatch(scheduler, log)
    scheduler.add_request(SimpleNamespace(request_id="warm-up"))  # Nobody asked for it: it is not noted.
    for index, name in enumerate(("a-1", "b-2")):
        watch.expect(Watched({"id": index}, prompt_tokens=10))
        scheduler.add_request(SimpleNamespace(request_id=name))
    scheduler.update_from_output(scheduler.schedule([("a-1", 6, 4, 0)], set()), [("a-1", 1, None)])
    scheduler.update_from_output(
        scheduler.schedule([("a-1", 3, 10, 2), ("b-2", 10, 0, 0)], set()), [("a-1", 2, None), ("b-2", 1, None)]
    )
    scheduler.update_from_output(scheduler.schedule([("a-1", 1, 12, 0)], {"b-2"}), [("a-1", 1, "length")])
    scheduler.update_from_output(scheduler.schedule([], set()), [])
    scheduler.update_from_output(scheduler.schedule([("b-2", 11, 0, 0)], set()), [("b-2", 1, "length")])
    assert [step["sched"] for step in log.steps] == ["0:6:4:0:p", "0:3:10:2:d 1:10:0:0:p", "0:1:12:0:d", "1:11:0:0:p"]
    assert [step["step"] for step in log.steps] == [0, 1, 2, 3]
    second = log.steps[1]
    assert (second["decode_reqs"], second["decode_tokens"], second["spec_tokens"], second["decode_ctx"]) == (
        1,
        3,
        2,
        13,
    )
    assert (second["prefill_reqs"], second["prefill_tokens"], second["prefill_qk"]) == (1, 10, 55)
    assert (second["spec_accepted"], second["out_tokens"]) == (1, 3)
    assert (second["running"], second["waiting"], second["free_blocks"], second["used_blocks"]) == (3, 0, 60, 40)
    assert log.steps[2]["preempted"] == "1"
    assert all(before["end_s"] <= after["start_s"] for before, after in zip(log.steps, log.steps[1:], strict=False))
    first, other = (request.row() for request in log.requests)
    assert first["cached_tokens"] == 4
    assert [tokens for _, tokens in first["chunks"]] == [1, 2, 1]
    assert (first["output_tokens"], first["spec_drafted"], first["spec_accepted"]) == (4, 2, 1)
    assert first["finish_s"] == log.steps[2]["end_s"]
    assert "finish_reason" not in first
    assert other["preemptions"] == 1
    assert [computed for _, computed in other["recomputes"]] == [0]


def test_steps_in_flight_are_told_apart() -> None:
    """Asynchronous scheduling: the second step is scheduled before the first one's result is there."""
    scheduler, log = Scheduler(), Log(WallClock())
    watch = StepWatch(scheduler, log)
    watch.expect(Watched({"id": 0}, prompt_tokens=4))
    scheduler.add_request(SimpleNamespace(request_id="a"))
    first = scheduler.schedule([("a", 4, 0, 0)], set())
    second = scheduler.schedule([("a", 1, 4, 0)], set())
    scheduler.update_from_output(first, [("a", 1, None)])
    scheduler.update_from_output(second, [("a", 1, "length")])
    assert [step["sched"] for step in log.steps] == ["0:4:0:0:p", "0:1:4:0:d"]
    assert log.steps[1]["start_s"] <= log.steps[0]["end_s"]


def test_the_cpu_clock_runs_in_steps_alone() -> None:
    clock = CpuClock()
    clock.skip_to(5.0)
    assert clock() == 5.0
    sum(range(200_000))
    assert clock() == 5.0
    with clock.stepping():
        sum(range(200_000))
        now = clock()
        assert clock.step_start() == 5.0 < now
        clock.stop_at(now)
        sum(range(200_000))
    assert clock() == now
    clock.skip_to(1.0)
    assert clock() == now


def test_a_sweep_covers_the_grid_within_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = record_vllm.Engine.__new__(record_vllm.Engine)
    engine.core = SimpleNamespace(scheduler=Scheduler())
    engine.config = SimpleNamespace(model_config=SimpleNamespace(max_model_len=512))
    engine._seed = 3
    batches = engine.sweep_batches([64, 400])
    sizes = {(len(batch), 64 if batch[0].prompt_tokens < 200 else 400) for batch in batches}
    assert {size for size, context in sizes if context == 64} == {1, 2, 3, 4, 5, 6, 8}
    assert max(size for size, context in sizes if context == 400) == 3  # 100 blocks of 16 hold no more.
    assert sum(len(batch) == 1 for batch in batches) == 2 * record_vllm.SWEEP_REPEATS
    queries: list[Query] = [query for batch in batches for query in batch]
    assert len({query.prompt_id for query in queries}) == len(queries)
    assert {query.output_tokens for query in queries} == {record_vllm.SWEEP_STEPS}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x"], "give a load and --out"),
        (["load.csv"], "give a load and --out"),
        ([], "give a load and --out"),
        (["load.csv", "--out", "x", "--sweep", "y"], "would delay it"),
        (["none.csv", "--out", "x"], "cannot be read"),
        (["load.csv", "--out", "x", "--speed", "0"], "above 0"),
        (["--sweep", "x", "--engine-args", "{"], "--engine-args"),
        (["--sweep", ".", "--clock", "cpu"], "exists already"),
    ],
)
def test_usage(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "load.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,1,1\n")
    assert record_vllm.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["load.csv"]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert record_vllm.main(["--sweep", str(tmp_path / "x")]) == 2
    assert "vLLM is not installed" in capsys.readouterr().err
