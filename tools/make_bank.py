"""Draw a sample bank from an outcome profile: traces/synthetic-bank.csv, byte for byte.

python tools/make_bank.py --out traces/synthetic-bank.csv
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from ttsim_des.rng import Streams
from ttsim_des.workload.outcomes.draws import RIGHT
from ttsim_des.workload.outcomes.model import ModelOutcomes
from ttsim_des.workload.outcomes.profile import profile_path, read_profile


def main() -> None:
    """Write the bank."""
    parser = argparse.ArgumentParser(description="Draw a sample bank from an outcome profile.")
    parser.add_argument("--profile", default="r1distilqwen-aime2024")
    parser.add_argument("--problems", type=int, default=120)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--verifier-auc", type=float, default=0.85)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("traces/synthetic-bank.csv"))
    arguments = parser.parse_args()
    parameters = read_profile(profile_path(arguments.profile, Path(), "--profile"), "--profile")
    draws = ModelOutcomes(parameters, arguments.verifier_auc).draw(
        Streams(arguments.seed), 0, arguments.problems, arguments.samples
    )
    with arguments.out.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("problem", "sample", "output_tokens", "correct", "answer_id", "score"))
        for problem in range(arguments.problems):
            for sample in range(arguments.samples):
                place = problem, sample
                answer = int(draws.answer[place])
                row = (*place, int(draws.tokens[place]), int(answer == RIGHT), answer, f"{draws.score[place]:.3f}")
                writer.writerow(row)


if __name__ == "__main__":
    main()
