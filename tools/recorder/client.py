"""An open-loop client of an OpenAI-compatible streaming endpoint: sends on time, notes when every token came."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from recorder.load import Query, token_ids


@dataclass(slots=True)
class Sample:
    """What became of one request, on the client's clock. `chunks`: (time, tokens) of every delivery."""

    query: Query
    index: int
    sent_s: float = 0.0
    chunks: list[tuple[float, int]] = field(default_factory=list)
    status: str = "unfinished"
    """finished, cancelled or failed in the end."""
    error: str = ""

    @property
    def tokens(self) -> int:
        """Output tokens delivered."""
        return sum(tokens for _, tokens in self.chunks)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where and how to ask."""

    url: str
    """Of the server, without /v1."""
    model: str
    vocabulary: int
    seed: int
    timeout_s: float


async def drive(endpoint: Endpoint, queries: Sequence[Query], progress: Any) -> list[Sample]:
    """Send every query when it is due, whatever became of earlier ones, and wait for all.

    `progress(done, of)` is called when a query ends. Times start at the first arrival's due time.
    """
    samples: list[Sample] = []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    # trust_env off: a proxy of the environment has no business between a client and its own server.
    async with httpx.AsyncClient(timeout=endpoint.timeout_s, limits=limits, trust_env=False) as client:
        await _warm_up(client, endpoint)
        start_s = time.perf_counter() - queries[0].arrival_s
        done = 0

        async def one(query: Query) -> None:
            nonlocal done
            prompt = token_ids(query, endpoint.vocabulary, endpoint.seed)
            await asyncio.sleep(max(0.0, query.arrival_s + start_s - time.perf_counter()))
            own = [Sample(query, index) for index in range(query.samples)]
            samples.extend(own)
            await _ask(client, endpoint, query, prompt, own, start_s)
            done += 1
            progress(done, len(queries))

        async with asyncio.TaskGroup() as group:
            for query in queries:
                group.create_task(one(query))
    return samples


async def _warm_up(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
    """One short request, so that the first measured one does not pay for connections and lazy imports."""
    query = Query(-1, 0.0, 4, 2)
    await _ask(client, endpoint, query, token_ids(query, endpoint.vocabulary, endpoint.seed), [Sample(query, 0)], 0.0)


async def _ask(
    client: httpx.AsyncClient,
    endpoint: Endpoint,
    query: Query,
    prompt: list[int],
    own: list[Sample],
    start_s: float,
) -> None:
    """One call of /v1/completions with all samples of a query."""
    body = {
        "model": endpoint.model,
        "prompt": prompt,
        "max_tokens": query.output_tokens,
        "min_tokens": query.output_tokens,
        "ignore_eos": True,
        "temperature": 1.0,
        "n": query.samples,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    sent_s = time.perf_counter() - start_s
    for sample in own:
        sample.sent_s = sent_s
    try:
        async with (
            asyncio.timeout(query.cancel_s),
            client.stream("POST", f"{endpoint.url}/v1/completions", json=body) as reply,
        ):
            if reply.status_code != httpx.codes.OK:
                text = (await reply.aread()).decode(errors="replace")
                _end(own, "failed", f"HTTP {reply.status_code}: {text[:200]}")
                return
            async for line in reply.aiter_lines():
                _take(line, own, time.perf_counter() - start_s)
        short = [sample for sample in own if sample.tokens < query.output_tokens]
        _end(short, "failed", "the stream ended early")
        _end(own, "finished", "")
    except TimeoutError:
        _end(own, "cancelled", "")
    except (httpx.HTTPError, ValueError, KeyError) as error:
        _end(own, "failed", f"{type(error).__name__}: {error}")


def _end(own: Sequence[Sample], status: str, error: str) -> None:
    for sample in own:
        if sample.status == "unfinished":
            sample.status, sample.error = status, error


def _take(line: str, own: list[Sample], now_s: float) -> None:
    """One line of the stream: tokens of a sample, counted by the server where it says, else one a chunk."""
    if not line.startswith("data:"):
        return
    text = line.removeprefix("data:").strip()
    if text == "[DONE]":
        return
    event = json.loads(text)
    if "error" in event:
        raise ValueError(str(event["error"]))
    usage = event.get("usage")
    for choice in event.get("choices", ()):
        sample = own[choice["index"]]
        if usage is None:
            tokens = 1 if choice.get("text") or choice.get("finish_reason") is None else 0
        else:
            tokens = usage["completion_tokens"] - sample.tokens
        if tokens > 0:
            sample.chunks.append((now_s, tokens))
