"""tools/record_server.py against a small server on loopback that speaks OpenAI's streaming completions."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import record_server
from ttsim_des.recordings.native import read_native

TOKEN_S = 0.004


class Handler(BaseHTTPRequestHandler):
    """Streams max_tokens tokens for each of n choices; the prompt's length chooses what goes wrong."""

    protocol_version = "HTTP/1.1"
    usage = True
    tokens_per_chunk = 1
    seen: list[dict[str, Any]]

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._reply(200, {"data": [{"id": "the-model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body | {"at_s": time.perf_counter()})
        if len(body["prompt"]) == 13:
            self._reply(400, {"error": {"message": "thirteen is too many"}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        told = 0
        wanted = body["max_tokens"] if len(body["prompt"]) != 17 else 2
        try:
            while told < wanted:
                time.sleep(TOKEN_S)
                told = min(wanted, told + self.tokens_per_chunk)
                for choice in range(body["n"]):
                    event: dict[str, Any] = {"choices": [{"index": choice, "text": " t", "finish_reason": None}]}
                    if self.usage:
                        event["usage"] = {"completion_tokens": told}
                    self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                self.wfile.flush()
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.seen[-1]["gone"] = True
        self.close_connection = True

    def _reply(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serving(**more: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    seen: list[dict[str, Any]] = []
    handler = type("Configured", (Handler,), {"seen": seen, **more})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


SETTINGS = ("max_num_seqs=64", "max_num_batched_tokens=2048", "max_model_len=4096", "num_gpu_blocks=1000")


def record(url: str, load: Path, out: Path, *more: str) -> int:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return record_server.main([url, str(load), "--out", str(out), "--engine", "vllm-0.32", *settings, *more])


def load(tmp_path: Path, *rows: str) -> Path:
    file = tmp_path / "load.csv"
    file.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens,samples,prompt_id,cancel_s", *rows]) + "\n")
    return file


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "requests.jsonl").read_text().splitlines()]


def test_fan_out_shared_prompts_and_token_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = load(tmp_path, "0.0,20,5,3,,", "0.05,30,4,,7,", "0.1,40,4,,7,")
    with serving() as (url, seen):
        assert record(url, asked, tmp_path / "out", "--vocabulary", "50") == 0
    assert "5 finished" in capsys.readouterr().out
    rows = rows_of(tmp_path / "out")
    assert [row["id"] for row in rows] == ["q0s0", "q0s1", "q0s2", "q1s0", "q2s0"]
    assert [row["output_tokens"] for row in rows] == [5, 5, 5, 4, 4]
    assert all(len(row["token_times_s"]) == row["output_tokens"] for row in rows)
    assert rows[0]["prompt"] == rows[1]["prompt"] != rows[3]["prompt"]
    assert rows[3]["prompt"][0][0] == rows[4]["prompt"][0][0]
    prompts = {len(body["prompt"]): body["prompt"] for body in seen}
    assert prompts[40][:30] == prompts[30]
    assert prompts[20] != prompts[30][:20]
    assert max(prompts[40]) < 50
    first = rows[0]
    assert first["first_token_s"] - first["arrival_s"] >= TOKEN_S
    assert first["finish_s"] - first["arrival_s"] >= 5 * TOKEN_S  # the client may see the first token late, never early
    recording = read_native(tmp_path / "out")
    assert len(recording.requests) == 5
    assert {request.group for request in recording.requests} == {"q0", "q1", "q2"}


def test_arrivals_are_open_loop(tmp_path: Path) -> None:
    """The second is sent while the first still runs, and neither waits for the other."""
    with serving() as (url, seen):
        assert record(url, load(tmp_path, "0.0,20,100,,,", "0.1,21,2,,,"), tmp_path / "out") == 0
    sent = {len(body["prompt"]): body["at_s"] for body in seen}
    assert 0.08 < sent[21] - sent[20] < 0.4  # The first takes as long at least.
    rows = rows_of(tmp_path / "out")
    assert rows[1]["finish_s"] < rows[0]["finish_s"]


def test_several_tokens_a_chunk(tmp_path: Path) -> None:
    with serving(tokens_per_chunk=3) as (url, _):
        assert record(url, load(tmp_path, "0.0,20,7,,,"), tmp_path / "out") == 0
    times = rows_of(tmp_path / "out")[0]["token_times_s"]
    assert len(times) == 7
    assert len(set(times)) == 3


def test_servers_that_count_nothing(tmp_path: Path) -> None:
    with serving(usage=False) as (url, _):
        assert record(url, load(tmp_path, "0.0,20,6,2,,"), tmp_path / "out") == 0
    assert [row["output_tokens"] for row in rows_of(tmp_path / "out")] == [6, 6]


def test_cancels_and_failures_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = load(tmp_path, "0.0,20,500,,,0.5", "0.0,13,5,,,", "0.01,17,5,,,", "0.02,20,5,,,", "0.03,22,5,,,0.0")
    with serving() as (url, seen):
        assert record(url, asked, tmp_path / "out") == 0
        time.sleep(0.1)
    rows = {row["id"]: row for row in rows_of(tmp_path / "out")}
    assert rows["q0s0"]["status"] == "cancelled"
    assert 0 < rows["q0s0"]["output_tokens"] < 200
    assert rows["q0s0"]["asked_tokens"] == 500
    assert "thirteen is too many" in rows["q1s0"]["error"]
    assert rows["q2s0"]["status"] == "failed"
    assert rows["q4s0"]["output_tokens"] == 0
    assert any(body.get("gone") for body in seen), "a cancel closes the connection"
    told = capsys.readouterr().out
    assert "2 cancelled, 2 failed, 1 finished" in told
    assert "HTTP 400" in told
    recording = read_native(tmp_path / "out")
    assert [request.name for request in recording.requests] == ["q0s0", "q3s0"]
    assert recording.derived["left out"] == "2 failed, 1 cancelled"
    assert recording.derived["cancelled"].startswith("1 requests")


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("arrival_s,prompt_tokens", "0,1", "no column output_tokens"),
        ("arrival_s,prompt_tokens,output_tokens,sample", "0,1,1,2", "unknown column 'sample'"),
        ("arrival_s,prompt_tokens,output_tokens", "0,1,many", ":2: output_tokens = 'many'"),
        ("arrival_s,prompt_tokens,output_tokens", "-1,1,1", "at least 0"),
        ("arrival_s,prompt_tokens,output_tokens", "0,1.5,1", "whole number"),
        ("arrival_s,prompt_tokens,output_tokens", "", "no query"),
    ],
)
def test_bad_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str], header: str, row: str, message: str) -> None:
    (tmp_path / "load.csv").write_text(f"{header}\n{row}\n")
    assert record("http://127.0.0.1:9", tmp_path / "load.csv", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--set", "max_seqs=3"), "max_seqs"),
        (("--set", "max_num_seqs"), "is no setting"),
        (("--engine", "vllm-9"), "vllm-9"),
        (("--speed", "0"), "above 0"),
    ],
)
def test_bad_settings_show_before_anything_is_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    with serving() as (url, seen):
        assert record(url, load(tmp_path, "0.0,20,5,,,"), tmp_path / "out", *more) == 2
        assert not seen
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_server_and_no_overwriting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = load(tmp_path, "0.0,20,5,,,")
    assert record("http://127.0.0.1:9", asked, tmp_path / "out") == 2
    assert "no server answers" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    assert record("http://127.0.0.1:9", asked, tmp_path / "out") == 2
    assert "exists already" in capsys.readouterr().err


def test_a_server_that_serves_nothing_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as (url, _):
        assert record(url, load(tmp_path, "0.0,13,5,,,"), tmp_path / "out") == 4
    assert "no request was served" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
