"""Random small worlds, as plain data (JSON), made so that rare things happen often; and how to make one smaller.

A world:
    engine     arguments of EngineConfig
    host       ns: schedule per step, per sequence; update per step, per sequence; front end per request
    model      coefficients of a step model (see `step_model`)
    replicas, router, turnaround_ns, max_tokens
    concurrency  queries in flight of a closed loop, or None: each query has its arrival_ns
    strategy   [samples, first] of best_of_n, or None: each query has a script, or
    bundled    the settings of one of the product's own strategies, which both sides then play; queries have `worth`
    queries    arrival_ns, prompt [[owner, end], ...], outputs (true length per sample, used in turn), script, answer,
               worth [[answer, score], ...] (used in turn)

A script is a list of operations (see `play_script`), the same for product and oracle.
"""

from __future__ import annotations

import copy
import random

from ttsim_des.latency.affine import AffineStepModel
from ttsim_des.latency.shape import Run

GRID_SHARE = 0.4
GRID_NS = 1_000
MOST_REQUESTS = 60
MOST_DRAFTS = 8
SPECULATING_SHARE = 0.4
BUNDLED_SHARE = 0.6
"""Of the worlds without scripts."""


class KnottedStepModel:
    """Linear in the mean context between knots, with a term that is constant in pieces of the longest context.

    `knots`: [context, ns at it, ns per unit behind it], the first at 0. `max_piece_ns` for each whole `piece` tokens of
    the longest context. Contexts above `domain` count as extrapolated.
    """

    def __init__(self, knots, flat_token_ns, pair_ns, piece, max_piece_ns, domain):
        self.knots, self.token_ns, self.pair_ns = knots, flat_token_ns, pair_ns
        self.piece, self.max_piece_ns, self.domain = piece, max_piece_ns, domain

    def _knot(self, shape):
        return max(k for k, knot in enumerate(self.knots) if knot[0] * shape.decode_seqs <= shape.decode_ctx_sum)

    def step_ns(self, shape):
        pairs = sum(new * computed + new * (new + 1) // 2 for new, computed in shape.prefill_chunks)
        time_ns = self.knots[0][1] + self.token_ns * shape.tokens + self.pair_ns * pairs
        if shape.decode_seqs:
            context, base_ns, slope_ns = self.knots[self._knot(shape)]
            over = shape.decode_ctx_sum - shape.decode_seqs * context
            time_ns += base_ns - self.knots[0][1] + slope_ns * over // shape.decode_seqs
            time_ns += self.max_piece_ns * (shape.decode_ctx_max // self.piece)
        return time_ns

    def decode_run(self, shape, max_steps):
        knot = self._knot(shape)
        steps = min(max_steps, self.piece - shape.decode_ctx_max % self.piece)
        if knot + 1 < len(self.knots):
            left = self.knots[knot + 1][0] * shape.decode_seqs - shape.decode_ctx_sum
            steps = min(steps, -(-left // shape.decode_seqs))
        if shape.decode_ctx_max <= self.domain:
            steps = min(steps, self.domain - shape.decode_ctx_max + 1)
        return Run(steps, self.step_ns(shape), self.knots[knot][2], self.in_domain(shape))

    def in_domain(self, shape):
        return shape.decode_ctx_max <= self.domain


def step_model(world):
    """The step model of a world: `affine` or `knotted` coefficients."""
    model = dict(world["model"])
    return {"affine": AffineStepModel, "knotted": KnottedStepModel}[model.pop("kind")](**model)


# ---- scripts ----


def play_script(script, answer, delay):
    """A strategy that performs `script` on a query handle (the product's or the oracle's).

    ["spawn", count, parent, priority, cap, tell_at]   parent: a sample's index, "winner" or None
    ["join", samples, count]   its first result is the new "winner"
    ["reach", sample, tokens]  ["delay", ns]  ["cancel", samples]
    `delay` makes the product's Delay.
    """

    def play(query):
        samples, winner = [], None
        for operation, *arguments in script:
            if operation == "spawn":
                count, parent, priority, cap, tell_at = arguments
                parent = winner if parent == "winner" else None if parent is None else samples[parent]
                for _ in range(count):
                    sample = query.spawn(parent=parent, tell_at=tell_at)
                    sample.request.priority, sample.request.max_tokens = priority, cap
                    samples.append(sample)
            elif operation == "join":
                indices, count = arguments
                winner = (yield query.join([samples[index] for index in indices], count))[0]
            elif operation == "reach":
                yield query.reach(samples[arguments[0]], arguments[1])
            elif operation == "delay":
                yield delay(arguments[0])
            else:
                query.cancel([samples[index] for index in arguments[0]])
        return None if answer is None else samples[answer]

    return play


def _script(rng, world, step_ns, on_grid):
    """Operations, and the longest text that they can lead to beyond the prompt."""
    most = world["max_tokens"]
    cap = lambda: most if rng.random() < 0.6 else rng.randint(1, most)  # noqa: E731
    priority = lambda: rng.choice([0, 0, 0, 1, 2, -1])  # noqa: E731
    wait_ns = lambda: step_ns * rng.randint(0, 30) if on_grid else rng.randint(0, step_ns * 30)  # noqa: E731
    kind = rng.choice(["priorities", "winner", "tree", "milestones", "delays", "scores"])
    n = rng.randint(1, 6)
    if kind == "priorities":
        script = [["spawn", 1, None, priority(), cap(), []] for _ in range(n)]
        return [*script, ["join", list(range(n)), n]], most
    if kind == "winner":
        m = rng.randint(1, n)
        script = [["spawn", n, None, priority(), cap(), []], ["join", list(range(n)), m], ["cancel", list(range(n))]]
        children = rng.randint(0, 3)
        if children:
            script += [["spawn", children, "winner", priority(), cap(), []]]
            script += [["join", list(range(n, n + children)), children]]
        return script, 2 * most
    if kind == "tree":
        n = rng.randint(1, 3)
        script, last, total = [["spawn", n, None, priority(), cap(), []], ["join", list(range(n)), n]], range(n), n
        depth = rng.randint(1, 3)
        for _ in range(depth):
            parents = rng.sample(list(last), rng.randint(1, min(2, len(last))))
            fan = rng.randint(1, 3)
            script += [["spawn", fan, parent, priority(), cap(), []] for parent in parents]
            last = range(total, total + fan * len(parents))
            total = last[-1] + 1
            script += [["join", list(last), len(last)]]
        return script, most * (1 + depth)
    if kind == "milestones":
        marks = sorted(rng.sample(range(1, most + 1), min(most, rng.randint(1, 4))))
        script = [["spawn", n, None, priority(), cap(), marks]]
        for _ in range(rng.randint(1, 3)):
            script += [["reach", rng.randrange(n), rng.choice(marks)]]
            if rng.random() < 0.5:
                script += [["cancel", rng.sample(range(n), rng.randint(1, n))]]
        script += [["spawn", 1, None, priority(), cap(), []], ["join", list(range(n + 1)), n + 1]]
        return script, most
    if kind == "delays":
        script, total = [["spawn", n, None, priority(), cap(), []]], n
        for _ in range(rng.randint(1, 4)):
            script += [["delay", wait_ns()]]
            script += [["cancel", rng.sample(range(total), rng.randint(1, total))]] if rng.random() < 0.6 else []
            if rng.random() < 0.5 and total < 8:
                script += [["spawn", 1, None, priority(), cap(), []]]
                total += 1
        return [*script, ["join", list(range(total)), rng.randint(1, total)], ["cancel", list(range(total))]], most
    n = rng.randint(1, 4)
    script = [["spawn", n, None, priority(), cap(), []], ["join", list(range(n)), n]]
    script += [["spawn", 1, sample, priority(), 0, []] for sample in range(n)]
    return [*script, ["join", list(range(n, 2 * n)), n]], most


# ---- speculation ----


def luck(world, query, sample):
    """What becomes of the drafts of a sample, by output tokens known: how many are right, how many are offered."""
    asked = world["luck"]
    rng = random.Random(f"{asked['seed']}/{query}/{sample}")
    accepts = []
    if is_by_position(world):
        right = 0
        for _ in range(world["max_tokens"] + 200):
            right = min(right + 1, 64) if rng.random() < asked["accept"] else 0
            accepts.append(right)
        return accepts[::-1], None
    for _ in range(world["max_tokens"] + 200):
        right = 0
        while right < MOST_DRAFTS and rng.random() < asked["accept"]:
            right += 1
        accepts.append(right)
    if asked["offer"] is None:
        return accepts, None
    return accepts, [rng.choice([0, rng.randint(0, MOST_DRAFTS)]) for _ in accepts]


def is_by_position(world):
    """Whether a draft is right or wrong by its position alone."""
    return world["luck"]["offer"] is None and world["luck"]["seed"] < 0.5


def _speculation(rng, is_async, budget):
    """How a world's engine speculates, and what becomes of drafts."""
    drafts = min(rng.choice([1, 2, 3, 3, 5, MOST_DRAFTS]), max(1, budget - 2))
    method = rng.choice(["draft_model", "eagle", "ngram"]) if not is_async else rng.choice(["draft_model", "eagle"])
    by_batch_size = []
    if rng.random() < 0.25:
        by_batch_size = [[rng.randint(1, 3), drafts], [rng.randint(4, 6), drafts // 2]]
        if rng.random() < 0.7:
            by_batch_size.append([100, rng.choice([0, 1])])
    luck = {"seed": rng.random(), "accept": rng.choice([0, 0.3, 0.7, 0.9, 1]), "offer": None}
    if method == "ngram":
        luck["offer"] = 0.5
    return {
        "num_speculative_tokens": drafts,
        "num_lookahead_tokens": 0 if method == "ngram" else drafts,
        "draft_slots": 1 if method == "draft_model" else 0,
        "by_batch_size": by_batch_size,
    }, luck


# ---- the product's own strategies ----


def uniform(query, name, index):
    """A variate that belongs to these, for both sides."""
    return random.Random(f"{query}/{name}/{index}").uniform(0.001, 0.999)


def _bundled(rng, max_tokens, step_ns):
    """Settings of a strategy, and by how much texts may grow beyond prompt and cap."""
    samples = rng.randint(1, 5)
    scored = {} if rng.random() < 0.5 else {"verifier": "generator", "score_tokens": rng.choice([0, 0, 3])}
    width, iterations = rng.randint(1, samples), rng.randint(1, 3)
    tree = {"samples": samples, "step_tokens": rng.choice([1, 3, 10, 40]), "iterations": iterations, **scored}
    rounds, append = rng.randint(1, 4), rng.choice([0, 1, 7, 16])
    name = rng.choice(
        [
            *("best_of_n", "self_consistency", "adaptive_consistency", "first_finish", "beam_search", "dvts", "rebase"),
            *("sequential_revision", "budget_forcing", "agent_loop"),
        ]
    )
    first = rng.choice([None, rng.randint(1, samples)])
    settings = {
        "best_of_n": {"samples": samples, "first": first, **scored, "score_when": rng.choice(["all", "each"])},
        "self_consistency": {"samples": samples},
        "adaptive_consistency": {"samples": samples, "wave": rng.randint(1, 3), "threshold": rng.choice([0.6, 0.9])},
        "first_finish": {"samples": samples, "first": first},
        "beam_search": {**tree, "width": width},
        "dvts": {**tree, "width": width},
        "rebase": {**tree, "temperature": rng.choice([0.1, 1.0])},
        "sequential_revision": {"rounds": rounds, "append_tokens": append},
        "budget_forcing": {"min_tokens": rng.randint(1, max_tokens), "rounds": rounds, "answer_tokens": 3},
        "agent_loop": {"rounds": rounds, "append_tokens": append, "think_s": rng.choice([0, step_ns * 3]) / 1e9},
    }
    growth = {"sequential_revision": (rounds - 1) * (max_tokens + append), "budget_forcing": 2 * rounds + 8}
    growth["agent_loop"] = growth["sequential_revision"]
    if name in ("beam_search", "dvts", "rebase"):
        growth[name] = iterations * tree["step_tokens"] + 3
    return {"name": name, **settings[name]}, growth.get(name, 3)


def _most_requests(settings):
    rounds = settings.get("rounds", 1) + 2
    scored = 2 if "verifier" in settings else 1
    return max(settings.get("samples", 1) * settings.get("iterations", 1) * scored, rounds)


# ---- worlds ----


def make_world(seed, index):
    """World number `index` of a seed; any two are independent."""
    rng = random.Random(f"{seed}/{index}")
    on_grid = rng.random() < GRID_SHARE
    block_size = rng.choice([1, 2, 3, 4, 4, 8, 16])
    length = lambda most: min(most, 1 + int(rng.expovariate(1 / rng.choice([4, 15, 40]))))  # noqa: E731
    max_tokens = length(100)
    world = {
        "max_tokens": max_tokens,
        "replicas": rng.choice([1, 1, 1, 1, 2, 2, 3]),
        "router": rng.choice(["round_robin", "least_loaded", "query_affinity"]),
    }
    world["model"], step_ns = _model(rng, on_grid)
    world["host"] = _host(rng, on_grid, step_ns)
    world["turnaround_ns"] = rng.choice([0, 0, 0, 1, 3]) * (step_ns if on_grid else rng.randint(1, 2 * step_ns))
    scripted = rng.random() < 0.6
    samples = rng.randint(1, 8)
    world["strategy"] = None if scripted else [samples, rng.choice([None, None, 1, rng.randint(1, samples)])]
    count = rng.choice([1, 2, 4, 6, 10, 16]) if scripted or samples < 4 else rng.choice([1, 2, 4, 7])
    is_closed = rng.random() < 0.15
    world["concurrency"] = rng.randint(1, count) if is_closed else None
    world["bundled"], growth = None, 0
    special = random.Random(f"{seed}/{index}/bundled")
    if not scripted and special.random() < BUNDLED_SHARE:
        world["bundled"], growth = _bundled(special, max_tokens, step_ns)
    world["queries"] = []
    shared = block_size * rng.randint(1, 5) if rng.random() < 0.3 else 0
    time_ns, longest_prompt, longest_text = 0, 1, 1
    gap = rng.choice([0, 0.5, 2, 10, 40])
    for number in range(count):
        own = length(80)
        if rng.random() < 0.5:
            own = -(-own // block_size) * block_size
        owner = rng.randint(1, 3) if rng.random() < 0.15 else number + 10
        end = 32 if owner < 10 else shared + own
        prompt = [[owner, end]] if owner < 10 or not shared else [[0, shared], [owner, end]]
        query = {"arrival_ns": time_ns, "prompt": prompt, "script": None, "answer": None}
        query["worth"] = [[special.randint(-1, 3), special.gauss(0, 1)] for _ in range(special.randint(1, 6))]
        query["outputs"] = [length(120) if rng.random() < 0.8 else 120 for _ in range(rng.randint(1, 8))]
        extra = max_tokens + growth
        if scripted:
            query["script"], extra = _script(rng, world, step_ns, on_grid)
            query["answer"] = 0 if rng.random() < 0.3 else None
        longest_prompt, longest_text = max(longest_prompt, end), max(longest_text, end + extra)
        world["queries"].append(query)
        if on_grid:
            time_ns += rng.choice([GRID_NS, step_ns]) * rng.randint(0, int(gap * 2))
        else:
            time_ns += int(rng.expovariate(1) * gap * step_ns)
    while num_requests(world) > MOST_REQUESTS:
        world["queries"].pop()
    has_children = world["bundled"] is not None or any(
        operation[0] == "spawn" and operation[2] is not None
        for query in world["queries"]
        for operation in query["script"] or []
    )
    world["engine"] = engine = _engine(rng, block_size, longest_prompt, longest_text, has_children)
    engine["speculation"], world["luck"] = None, None
    special = random.Random(f"{seed}/{index}/speculation")
    if special.random() < SPECULATING_SHARE and engine["max_num_batched_tokens"] > 2:
        is_async, budget = engine["async_scheduling"], engine["max_num_batched_tokens"]
        engine["speculation"], world["luck"] = _speculation(special, is_async, budget)
        drafts = engine["speculation"]["num_speculative_tokens"]
        lookahead = -(-2 * drafts // block_size) + 1
        engine["num_gpu_blocks"] += lookahead if special.random() < 0.8 else 0
        if special.random() < 0.8:
            engine["long_prefill_token_threshold"] = 0
        if special.random() < 0.7:
            engine["max_num_seqs"] = min(engine["max_num_seqs"], max(1, budget // (drafts + 2)))
    return world


def _engine(rng, block_size, longest_prompt, longest_text, has_children):
    budget = rng.choice([1, 4, 16, 32, 64, 200, 1000])
    chunked = rng.random() < 0.85 or budget < 16
    if not chunked:
        budget = longest_text + rng.randint(0, 40)
    max_model_len = longest_text + rng.randint(1, 20)
    if not has_children and rng.random() < 0.2:
        max_model_len = rng.randint(longest_prompt + 1, longest_text + 1)
    blocks = -(-longest_text // block_size) + rng.choice([0, 0, 1, 3, 8, 20, 400])
    return {
        "num_gpu_blocks": 1 + blocks,
        "block_size": block_size,
        "max_num_seqs": min(budget, rng.choice([1, 2, 3, 4, 8, 16, 64])),
        "max_num_batched_tokens": budget,
        "max_model_len": max_model_len,
        "enable_prefix_caching": rng.random() < 0.75,
        "enable_chunked_prefill": chunked,
        "async_scheduling": rng.random() < 0.5,
        "scheduling_policy": rng.choice(["fcfs", "fcfs", "priority"]),
        "long_prefill_token_threshold": rng.choice([0, 0, 0, rng.randint(1, 40)]),
        "scheduler_reserve_full_isl": rng.random() < 0.75,
        "watermark_blocks": rng.choice([0, 0, 0, rng.randint(1, 1 + blocks // 4)]),
        "free_unhashed_first": rng.random() < 0.75,
    }


def _model(rng, on_grid):
    """Coefficients, and about how long a step takes."""
    if on_grid:
        constant = GRID_NS * rng.choice([1, 1, 5, 10])
        model = {"kind": "affine", "constant_ns": constant}
        if rng.random() < 0.3:
            model["per_token_ns"] = GRID_NS
        if rng.random() < 0.2:
            model["per_decode_ctx_token_ns"] = GRID_NS
        return model, constant
    constant = rng.randint(500, 20_000)
    if rng.random() < 0.5:
        return {
            "kind": "affine",
            "constant_ns": constant,
            "per_token_ns": rng.choice([0, rng.randint(1, 500)]),
            "per_decode_seq_ns": rng.choice([0, rng.randint(1, 300)]),
            "per_decode_ctx_token_ns": rng.choice([0, rng.randint(1, 40), rng.randint(1, 4000) / 1000]),
            "per_prefill_qk_pair_ns": rng.choice([0, rng.randint(1, 9)]),
        }, constant
    knots, context = [[0, constant, rng.randint(0, 20)]], 0
    for _ in range(rng.randint(1, 4)):
        context += rng.randint(3, 60)
        last = knots[-1]
        jump = rng.choice([0, 0, rng.randint(1, 500)])
        knots.append([context, last[1] + last[2] * (context - last[0]) + jump, rng.randint(0, 40)])
    return {
        "kind": "knotted",
        "knots": knots,
        "flat_token_ns": rng.choice([0, rng.randint(1, 300)]),
        "pair_ns": rng.choice([0, rng.randint(1, 9)]),
        "piece": rng.choice([8, 16, 64]),
        "max_piece_ns": rng.choice([0, rng.randint(1, 300)]),
        "domain": rng.choice([10**9, *[rng.randint(5, 80)] * 3]),
    }, constant


def _host(rng, on_grid, step_ns):
    if rng.random() < 0.45:
        return [0, 0, 0, 0, 0]
    most = step_ns * rng.choice([0.2, 0.2, 0.6, 2])
    unit = GRID_NS if on_grid else 1
    amount = lambda ns: rng.choice([0, rng.randint(0, max(1, int(ns) // unit))]) * unit  # noqa: E731
    return [amount(most), amount(most / 8), amount(most), amount(most / 8), amount(most * 3)]


def num_requests(world):
    """Requests that a world has."""
    if world["bundled"]:
        return _most_requests(world["bundled"]) * len(world["queries"])
    if world["strategy"]:
        return world["strategy"][0] * len(world["queries"])
    spawns = (operation for query in world["queries"] for operation in query["script"] if operation[0] == "spawn")
    return sum(operation[1] for operation in spawns)


# ---- shrinking ----

_SIMPLE = {
    "replicas": 1,
    "router": "round_robin",
    "turnaround_ns": 0,
    "concurrency": None,
    "host": [0, 0, 0, 0, 0],
    "model": {"kind": "affine", "constant_ns": 1000},
}
_SIMPLE_ENGINE = {
    "enable_prefix_caching": False,
    "enable_chunked_prefill": True,
    "async_scheduling": False,
    "scheduling_policy": "fcfs",
    "long_prefill_token_threshold": 0,
    "scheduler_reserve_full_isl": True,
    "watermark_blocks": 0,
    "free_unhashed_first": True,
    "speculation": None,
    "max_num_batched_tokens": 1000,
    "max_num_seqs": 64,
    "max_model_len": 1000,
    "num_gpu_blocks": 1000,
}


def shrink(world, fails, tries=600):
    """A smaller world for which `fails` still holds, by trying ever so many simplifications."""
    progress = True
    while progress and tries > 0:
        progress = False
        for smaller in _simplifications(world):
            tries -= 1
            if smaller != world and fails(smaller):
                world, progress = smaller, True
                break
            if tries <= 0:
                break
    return world


def _simplifications(world):
    def changed(change):
        other = copy.deepcopy(world)
        change(other)
        return other

    for number in range(len(world["queries"])):
        if len(world["queries"]) > 1:
            yield changed(lambda w, n=number: w["queries"].pop(n))
    for key, value in _SIMPLE.items():
        if world[key] != value:
            yield changed(lambda w, k=key, v=value: w.update({k: v}))
    for key, value in _SIMPLE_ENGINE.items():
        if world["engine"][key] != value:
            yield changed(lambda w, k=key, v=value: w["engine"].update({k: v}))
    for place in range(5):
        if world["host"][place]:
            yield changed(lambda w, p=place: w["host"].__setitem__(p, 0))
    for key, value in world["model"].items():
        if key.endswith("_ns") and value and key != "constant_ns":
            yield changed(lambda w, k=key: w["model"].update({k: 0}))
    if world["strategy"]:
        samples, first = world["strategy"]
        for smaller in ([samples, None], [samples - 1, first], [1, None]):
            if smaller[0] >= max(1, smaller[1] or 1) and smaller != world["strategy"]:
                yield changed(lambda w, s=smaller: w.update({"strategy": s}))
    for number, query in enumerate(world["queries"]):
        yield from _simpler_queries(number, query, changed)


def _simpler_queries(number, query, changed):
    def put(key, value):
        return changed(lambda w: w["queries"][number].update({key: value}))

    if query["arrival_ns"]:
        yield changed(
            lambda w: [
                q.update(arrival_ns=max(0, q["arrival_ns"] - query["arrival_ns"])) for q in w["queries"][number:]
            ]
        )
    if len(query["prompt"]) > 1:
        yield put("prompt", query["prompt"][1:])
    owner, end = query["prompt"][-1]
    start = query["prompt"][-2][1] if len(query["prompt"]) > 1 else 0
    for smaller in {start + (end - start) // 2, end - 1}:
        if start < smaller < end:
            yield put("prompt", [*query["prompt"][:-1], [owner, smaller]])
    if len(query["outputs"]) > 1:
        yield put("outputs", query["outputs"][:1])
        yield put("outputs", query["outputs"][:-1])
    for place, tokens in enumerate(query["outputs"]):
        for smaller in {1, tokens // 2, tokens - 1}:
            if 0 < smaller < tokens:
                yield put("outputs", [*query["outputs"][:place], smaller, *query["outputs"][place + 1 :]])
    for place, (operation, *arguments) in enumerate(query["script"] or []):
        script = query["script"]
        if operation in ("cancel", "delay", "reach"):
            yield put("script", [*script[:place], *script[place + 1 :]])
        if operation == "delay" and arguments[0]:
            yield put("script", [*script[:place], ["delay", arguments[0] // 2], *script[place + 1 :]])
        if operation == "spawn" and arguments[2]:
            yield put("script", [*script[:place], ["spawn", *arguments[:2], 0, *arguments[3:]], *script[place + 1 :]])
