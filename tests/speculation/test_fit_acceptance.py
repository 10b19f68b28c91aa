"""Fits find the process that steps were drawn from, and say so at the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ttsim_des.cli import main
from ttsim_des.errors import InputError
from ttsim_des.rng import Streams
from ttsim_des.speculation.acceptance import Acceptance, CopyingAcceptance, OutputAcceptance, PositionAcceptance
from ttsim_des.speculation.fit import Fit, fit_acceptance
from ttsim_des.speculation.steps import RecordedSteps, read_steps

TOKENS = 500


def recorded(process: Acceptance, requests: int = 60, asked: int = 3) -> RecordedSteps:
    rows = []
    for query in range(requests):
        luck, known = process.drafting(Streams(7), query, 0, TOKENS), 1
        while known < TOKENS - asked:
            drafts = luck.drafts(known, asked)
            rows.append((query, drafts, luck.accepted(known, drafts), known))
            known += 1 + rows[-1][2]
    return RecordedSteps(*np.array(rows, dtype=np.int64).T)


def fitted(process: Acceptance) -> tuple[dict[str, Fit], str]:
    fits, _ = fit_acceptance(recorded(process))
    return {fit.process: fit for fit in fits}, fits[0].process


def test_iid() -> None:
    fits, best = fitted(PositionAcceptance(3, (0.7,)))
    assert best == "iid"
    assert fits["iid"].keys["rate"] == pytest.approx(0.7, abs=0.01)
    assert fit_acceptance(recorded(PositionAcceptance(3, (0.7,))))[1].chi2_p > 0.01  # type: ignore[operator]


def test_positions() -> None:
    fits, best = fitted(PositionAcceptance(3, (0.8, 0.6, 0.4)))
    assert best == "positions"
    assert fits["positions"].keys["rates"] == pytest.approx([0.8, 0.6, 0.4], abs=0.02)


def test_beta() -> None:
    fits, best = fitted(PositionAcceptance(3, (0.7,), 20.0))
    assert best == "beta"
    assert fits["beta"].keys["rate"] == pytest.approx(0.7, abs=0.03)
    assert 8 < float(fits["beta"].keys["concentration"]) < 45  # type: ignore[arg-type]
    goodness = fit_acceptance(recorded(PositionAcceptance(3, (0.7,), 20.0)))[1]
    assert goodness.request_cv == pytest.approx((0.21 / 21) ** 0.5 / 0.7, rel=0.3)


def test_along_the_output() -> None:
    fits, best = fitted(OutputAcceptance(3, (0, TOKENS), (0.2, 0.9)))
    assert best == "output"
    found = fits["output"].keys
    assert np.interp([100, 400], found["tokens"], found["rates"]) == pytest.approx([0.34, 0.76], abs=0.05)  # type: ignore[arg-type]


def test_copying() -> None:
    fits, best = fitted(CopyingAcceptance(3, 0.4, 0.85, 0.3))
    assert best == "copying"
    found = fits["copying"].keys
    assert [found[key] for key in ("enter", "stay", "offer")] == pytest.approx([0.4, 0.85, 0.3], abs=0.04)


def test_a_refit_of_what_was_fitted_gives_the_same() -> None:
    rates = fitted(PositionAcceptance(3, (0.75, 0.6, 0.45)))[0]["positions"].keys["rates"]
    again = fitted(PositionAcceptance(3, tuple(rates)))[0]["positions"].keys["rates"]  # type: ignore[arg-type]
    assert again == pytest.approx(rates, abs=0.03)


def cli(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["fit", "acceptance", *arguments])


def test_command(tmp_path: Path) -> None:
    result = cli("draft-model-steps.csv")
    assert result.exit_code == 0
    assert '[engine.speculative.acceptance]\nprocess = "beta"' in result.stdout
    document = json.loads(cli("draft-model-steps.csv", "--json").stdout)
    assert document["schema"] == 1
    assert document["steps"]["requests"] == 18
    assert document["fits"][0]["process"] == "beta"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("drafts,accepted\n3,4\n", "data row 1"),
        ("drafts\n3\n", "no column 'accepted'"),
        ("drafts,accepted\n3,x\n", "holds string"),
        ("drafts,accepted\n99,1\n", "whole number from 0 to 64"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "steps.csv").write_text(text)
    result = cli(str(tmp_path / "steps.csv"))
    assert result.exit_code == 2
    assert said in result.stderr


def test_positions_are_counted_where_the_table_has_none(tmp_path: Path) -> None:
    path = tmp_path / "steps.csv"
    path.write_text("stream,drafts,accepted\nb,3,2\na,3,0\nb,3,3\na,3,1\n")
    steps = read_steps(path, "STEPS")
    assert steps.by_stream() == (((3, 2), (3, 3)), ((3, 0), (3, 1)))
    assert steps.position.tolist() == [1, 4, 1, 2]
    with pytest.raises(InputError):
        read_steps(tmp_path / "none.csv", "STEPS")
