"""Compare leap, step and a naive oracle in random small worlds.

    python tools/differential.py --worlds 1000 --seed 3
    python tools/differential.py --replay world.json

Every record must be equal: requests, queries, each step, each token gap (docs/differential.md). Prints how often the
rare things happened. At a difference it prints a world made as small as possible, which `--replay` takes, and exits 1.
The last line is the verdict.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "differential"))
import differ  # type: ignore[import-not-found]
import worlds  # type: ignore[import-not-found]

_SHRUNK_KINDS = 3
_CHUNK = 20

Checked = tuple[int, str, str, dict[str, int], float]


def check(seed: int, index: int) -> Checked:
    """World `index` of `seed`: its index, the kind and text of its first difference, its counts, CPU seconds."""
    clock_s = time.process_time()
    verdict = differ.check(worlds.make_world(seed, index))
    return index, verdict.kind, verdict.text, verdict.counts, time.process_time() - clock_s


def run(seed: int, first: int, count: int, jobs: int, *, as_json: bool) -> int:
    """Check worlds `first` .. `first` + `count` - 1; the exit status."""
    indices = range(first, first + count)
    if jobs > 1:
        with ProcessPoolExecutor(jobs) as pool:
            results = list(pool.map(functools.partial(check, seed), indices, chunksize=_CHUNK))
    else:
        results = [check(seed, index) for index in indices]
    counts: Counter[str] = Counter()
    kinds: dict[str, list[int]] = {}
    for index, kind, _, counted, _ in results:
        counts.update(counted)
        if kind:
            kinds.setdefault(kind, []).append(index)
    wrong = sum(len(found) for found in kinds.values())
    cpu_s = sum(result[4] for result in results)
    if as_json:
        summary = {"worlds": count, "seed": seed, "first": first, "mismatches": wrong, "kinds": kinds}
        speed = {"cpu_s": round(cpu_s, 3), "worlds_per_cpu_s": round(count / cpu_s, 1)}
        print(json.dumps(summary | speed | {"counts": dict(sorted(counts.items()))}))
    else:
        for name, number in sorted(counts.items()):
            print(f"{name}: {number}")
        print(f"{count / cpu_s:.0f} worlds per CPU second")
        for kind, found in list(kinds.items())[:_SHRUNK_KINDS]:
            world = min((worlds.make_world(seed, index) for index in found), key=worlds.num_requests)
            print(f"\n{kind}: {len(found)} worlds, such as {found[:5]}; one of them, made smaller:")
            show(differ.shrink(world, kind))
    if not wrong:
        print(f"{count} worlds: leap = step = oracle")
        return 0
    most = sorted(kinds, key=lambda kind: -len(kinds[kind]))
    print(f"MISMATCH in {wrong} of {count} worlds: {', '.join(most)}")
    return 1


def show(world: dict[str, Any]) -> None:
    """A world, as a file for `--replay`, and what differs in it."""
    print(json.dumps(world))
    print(differ.check(world).text)


def replay(path: Path) -> int:
    """Check the world in a file; the exit status."""
    try:
        world = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: not a world: {error}") from None
    verdict = differ.check(world)
    if not verdict.kind:
        print("1 world: leap = step = oracle")
        return 0
    print(verdict.text)
    print(f"MISMATCH in 1 of 1 worlds: {verdict.kind}")
    return 1


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=1000, metavar="N", help="how many worlds (default 1000)")
    parser.add_argument("--seed", type=int, default=3, metavar="S", help="which worlds (default 3)")
    parser.add_argument("--first", type=int, default=0, metavar="I", help="index of the first world (default 0)")
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="processes (default 1)")
    parser.add_argument("--json", action="store_true", help="one line of JSON before the verdict")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="check the world in FILE only")
    arguments = parser.parse_args()
    if arguments.worlds < 1 or arguments.jobs < 1:
        parser.error("--worlds and --jobs must be at least 1")
    if arguments.replay is not None:
        return replay(arguments.replay)
    return run(arguments.seed, arguments.first, arguments.worlds, arguments.jobs, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
