"""What a client saw, as a recording in the native layout (docs/recordings.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recorder.client import Sample
from recorder.load import owner

SCHEMA = 1


def write_native(out: Path, samples: Sequence[Sample], meta: Mapping[str, Any]) -> None:
    """Write recording.json and requests.jsonl into `out`, which must be an empty directory."""
    owners: dict[str, int] = {}
    lines = []
    for sample in sorted(samples, key=lambda each: (each.query.arrival_s, each.query.index, each.index)):
        query = sample.query
        whose = owners.setdefault(owner(query), len(owners))
        row: dict[str, Any] = {
            "id": f"q{query.index}s{sample.index}",
            "query": f"q{query.index}",
            "arrival_s": round(sample.sent_s, 6),
            "prompt_tokens": query.prompt_tokens,
            "output_tokens": sample.tokens,
            "prompt": [[whose, query.prompt_tokens]],
        }
        if sample.chunks:
            row["first_token_s"] = round(sample.chunks[0][0], 6)
            row["finish_s"] = round(sample.chunks[-1][0], 6)
            row["token_times_s"] = [round(time_s, 6) for time_s, tokens in sample.chunks for _ in range(tokens)]
        if sample.status != "finished":
            row["status"] = sample.status
            row["asked_tokens"] = query.output_tokens
        if query.cancel_s is not None:
            row["cancel_s"] = round(sample.sent_s + query.cancel_s, 6)
        if sample.error:
            row["error"] = sample.error
        lines.append(json.dumps(row))
    (out / "recording.json").write_text(json.dumps({"schema": SCHEMA, **meta}, indent=2) + "\n", encoding="utf-8")
    (out / "requests.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
