"""Write outcome profiles of models of which only means are published.

    python tools/published_outcomes.py profiles/outcomes

Mean length and pass@1 (and the vote of 64 where it is known) are met; everything else, how much problems and samples
differ and how much longer wrong answers are, is that of a model whose samples are known, and the profile says so.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from ttsim_des.workload.outcomes.accuracy import majority, pass_at_1
from ttsim_des.workload.outcomes.fit import fresh_draws
from ttsim_des.workload.outcomes.model import Parameters
from ttsim_des.workload.outcomes.profile import profile_path, profile_toml, read_profile

R1 = "arXiv 2501.12948 (pass@1, cons@64)"
R1_SMALL = f"{R1}, arXiv 2510.10207 (mean tokens)"
R1_7B = f"{R1}, arXiv 2507.03704 (mean tokens)"
REASONING = "arXiv 2507.03704 (accuracy, mean tokens)"
INSTRUCT = "arXiv 2502.06703 (accuracies), repository of arXiv 2509.09864 (mean tokens)"
CONTEXT = 32_768


@dataclass(frozen=True)
class Published:
    """What is known of a model on a data set; `tokens_of` says where the mean length comes from when not published."""

    model: str
    dataset: str
    donor: str
    mean_tokens: float
    pass_at_1: float
    vote_of_64: float | None
    source: str
    tokens_of: str = ""
    within_sigma: float | None = None
    """Another spread of a problem's samples than the donor's."""


PUBLISHED = (
    Published("DeepSeek-R1-Distill-Qwen-1.5B", "math500", "r1-math500", 4802, 0.839, None, R1_SMALL),
    Published("DeepSeek-R1-Distill-Qwen-7B", "math500", "r1-math500", 3404, 0.928, None, R1_7B),
    Published("DeepSeek-R1-Distill-Qwen-14B", "math500", "r1-math500", 3404, 0.939, None, R1, "the 7B model"),
    Published("DeepSeek-R1-Distill-Qwen-32B", "math500", "r1-math500", 3404, 0.943, None, R1, "the 7B model"),
    Published("DeepSeek-R1-Distill-Qwen-1.5B", "aime2024", "r1distilqwen-aime2024", 12290, 0.289, 0.527, R1_SMALL),
    Published("DeepSeek-R1-Distill-Qwen-7B", "aime2024", "r1distilqwen-aime2024", 12451, 0.555, 0.833, R1_7B),
    Published(
        "DeepSeek-R1-Distill-Qwen-14B", "aime2024", "r1distilqwen-aime2024", 12451, 0.697, 0.800, R1, "the 7B model"
    ),
    Published("s1.1-1.5B", "math500", "r1-math500", 4802, 0.839, None, R1, "R1-Distill-Qwen-1.5B, and its accuracy"),
    Published("s1.1-7B", "math500", "r1-math500", 3404, 0.928, None, R1, "R1-Distill-Qwen-7B, and its accuracy"),
    Published("s1.1-14B", "math500", "r1-math500", 3404, 0.939, None, R1, "R1-Distill-Qwen-14B, and its accuracy"),
    Published("Qwen3-8B", "math500", "r1-math500", 5456, 0.968, None, REASONING),
    Published("Qwen3-8B", "aime2024", "r1distilqwen-aime2024", 14754, 0.75, None, REASONING),
    Published("QwQ-32B", "math500", "r1-math500", 4305, 0.974, None, REASONING),
    Published("Qwen2.5-1.5B-Instruct", "math500", "qwen2.5-math-7b-math100", 526, 0.544, 0.684, INSTRUCT, "", 0.15),
    Published(
        "Qwen2.5-7B-Instruct", "math500", "qwen2.5-math-7b-math100", 526, 0.768, 0.836, INSTRUCT, "the 1.5B model", 0.15
    ),
)


def main() -> None:
    """Write one file for each."""
    parser = argparse.ArgumentParser(description="Outcome profiles from published means.")
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    for known in PUBLISHED:
        donor = read_profile(profile_path(known.donor, Path(), "donor"), "donor")
        parameters = met(known, donor)
        tokens, answer = fresh_draws(parameters, 64)
        rows = {
            "mean_tokens": f"published {known.mean_tokens:.0f}, model {tokens.mean():.0f}",
            "pass_at_1": f"published {known.pass_at_1:.3f}, model {pass_at_1(answer):.3f}",
        }
        if known.vote_of_64 is not None:
            rows["majority_at_64"] = f"published {known.vote_of_64:.3f}, model {majority(answer):.3f}"
        assumed = f"assumed: spreads, and lengths of wrong answers, of {known.donor}"
        if known.within_sigma is not None:
            assumed += "; within_sigma fitted to six latencies of majority voting (docs/studies/majority-and-prm.md)"
        if known.tokens_of:
            assumed += f"; mean length of {known.tokens_of}"
        source = f"{known.source}; {assumed}"
        path = out / f"{known.model.lower()}-{known.dataset}.toml"
        path.write_text(profile_toml(known.model, known.dataset, source, parameters, rows), encoding="utf-8")
        print(path.name, rows)


def met(known: Published, donor: Parameters) -> Parameters:
    """The donor with mean length and pass@1 as published; with another spread of ease too, where votes are known."""
    free = ["mu", "ease"] if known.vote_of_64 is None else ["mu", "ease", "ease_spread", "repeat"]
    base = donor._replace(max_tokens=CONTEXT, cut_answers=False, within_sigma=known.within_sigma or donor.within_sigma)

    def moved(place: np.ndarray) -> Parameters:
        return base._replace(**dict(zip(free, place.tolist(), strict=True)))

    def misfit(place: np.ndarray) -> np.ndarray:
        tokens, answer = fresh_draws(moved(place), 8 if known.vote_of_64 is None else 64)
        found = [np.log(tokens.mean() / known.mean_tokens), pass_at_1(answer) - known.pass_at_1]
        if known.vote_of_64 is not None:
            found += [
                majority(answer) - known.vote_of_64,
                0.02 * (place[2] - donor.ease_spread),
                0.01 * (place[3] - 0.3),
            ]
        return np.array(found)

    start = np.array([getattr(base, name) for name in free], dtype=float)
    start[0] = np.log(known.mean_tokens) - 0.3
    low = np.array([0, -8, 0.05, 0.01][: len(free)])
    high = np.array([15, 12, 12, 0.9][: len(free)])
    start = np.clip(start, low + 0.01, high - 0.01)
    found = least_squares(misfit, start, bounds=(low, high), diff_step=0.01, max_nfev=30)
    return moved(np.round(found.x, 4))


if __name__ == "__main__":
    main()
