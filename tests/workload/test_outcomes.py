"""Outcomes: draws that belong to (query, sample), moments that are what the parameters say, banks, fits, scores."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from ttsim_des import assets
from ttsim_des.cli import main
from ttsim_des.errors import InputError
from ttsim_des.rng import Streams
from ttsim_des.workload.outcomes import accuracy
from ttsim_des.workload.outcomes.bank import Bank, BankOutcomes, read_bank, read_banks
from ttsim_des.workload.outcomes.draws import NO_ANSWER, RIGHT
from ttsim_des.workload.outcomes.fit import Cut, fit, fresh_draws, moments, possible_cuts
from ttsim_des.workload.outcomes.fit_report import fit_bank
from ttsim_des.workload.outcomes.model import ModelOutcomes, Parameters, skewed_t4, wrong_answers
from ttsim_des.workload.outcomes.profile import profile_path, profile_toml, read_profile

ROOT = Path(__file__).parents[2]
BANK = ROOT / "traces" / "synthetic-bank.csv"
PLAIN = Parameters(8.0, 0.6, 0.3, 0.2, 0.4, 0.5, 0.5, 1.5, 0.5, 30_000)


def test_draws_belong_to_query_and_sample() -> None:
    for outcomes in (ModelOutcomes(PLAIN, 0.8), BankOutcomes(read_bank(BANK, "k"), 0.8)):
        many, few = outcomes.draw(Streams(3), 0, 50, 40), outcomes.draw(Streams(3), 20, 10, 3)
        for name in ("tokens", "answer", "score"):
            np.testing.assert_array_equal(getattr(many, name)[20:30, :3], getattr(few, name))


def test_the_t_of_four_degrees() -> None:
    p = np.array([0.001, 0.02, 0.3, 0.5, 0.8, 0.999])
    np.testing.assert_allclose(skewed_t4(p, 0.0), stats.t.ppf(p, 4), rtol=1e-9, atol=1e-7)
    np.testing.assert_allclose(skewed_t4(p, 0.5)[[0, -1]], stats.t.ppf(p, 4)[[0, -1]] * [0.5, 1.5], rtol=1e-9)


def test_popular_wrong_answers() -> None:
    ids = wrong_answers((np.arange(1000) + 0.5) / 1000, 0.25)
    shares = np.bincount(ids.astype(int), minlength=4)[1:4] / 1000
    np.testing.assert_allclose(shares, [0.25, 0.25 * 0.75, 0.25 * 0.75**2], atol=2e-3)


def test_the_moments_are_what_the_parameters_say() -> None:
    draws = ModelOutcomes(PLAIN._replace(max_tokens=10**7), 0.8).draw(Streams(1), 0, 20_000, 8)
    right = draws.answer == RIGHT
    # P(right) = Phi(ease / sqrt(1 + spread^2)); of the normal law of p.
    assert right.mean() == pytest.approx(stats.norm.cdf(0.5 / np.hypot(1, 1.5)), abs=0.01)
    logs = np.log(draws.tokens) - 0.5 * ~right
    within = logs.var(axis=1, ddof=1).mean()
    assert logs.mean(axis=1).var() - within / 8 == pytest.approx(0.36, rel=0.05)
    # Of a t of 4: variance 2; each half of it stretched by 1.2 and 0.8, with the mean that this gives.
    spread = 0.09 * (2 * (1.2**2 + 0.8**2) / 2 - (0.4 * stats.t.expect(lambda x: x * (x > 0), (4,))) ** 2)
    assert within == pytest.approx(spread, rel=0.1)
    ease = right.mean(axis=1)
    assert np.corrcoef(ease, logs.mean(axis=1))[0, 1] < -0.2  # harder problems have longer chains
    assert accuracy.auc(draws.answer[:2000], draws.score[:2000]) == pytest.approx(0.8, abs=0.01)


def test_chains_that_are_cut_have_no_answer() -> None:
    draws = ModelOutcomes(PLAIN._replace(max_tokens=2000), 0.8).draw(Streams(1), 0, 500, 8)
    assert draws.tokens.max() == 2000
    assert (draws.answer[draws.tokens == 2000] == NO_ANSWER).mean() > 0.99
    assert (draws.answer[draws.tokens < 1999] != NO_ANSWER).all()


def test_a_bank_is_drawn_without_replacement() -> None:
    bank = read_bank(BANK, "k")
    draws = BankOutcomes(bank, 0.8).draw(Streams(1), 0, 200, 16)
    known = {tuple(sorted(row)) for row in bank.matrix()[0].tolist()}
    assert {tuple(sorted(row)) for row in draws.tokens.tolist()} <= known
    assert draws.tokens.mean() == pytest.approx(BankOutcomes(bank, 0.8).mean(10**7), rel=0.1)


def test_accuracies_by_hand() -> None:
    answer = np.array([[0, 0, 1, 2], [1, 1, 0, 0], [-1, -1, -1, 0], [-1, -1, -1, -1]], dtype=np.int32)
    assert accuracy.pass_at_1(answer) == 5 / 16
    assert accuracy.pass_at_n(answer) == 3 / 4
    assert accuracy.majority(answer) == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    score = np.array([[1, 2, 3, 0], [0, 1, 2, 0], [9, 0, 0, 5], [0, 0, 0, 0]], dtype=float)
    assert accuracy.best_of_n(answer, score) == 1 / 4
    # Pairs: 2 x 2 (1 > 3 no, 1 > 0 yes, 2 > 3 no, 2 > 0 yes); 2 x 2 (2 > 0, 2 > 1 yes; 0 > 0 half, 0 > 1 no); 1 x 3.
    assert accuracy.auc(answer, score) == pytest.approx((2 + 2.5 + 2) / 11)


def test_a_fit_gives_back_the_moments_of_its_bank() -> None:
    tokens, answer = fresh_draws(PLAIN, 8)
    found = moments(
        *fresh_draws(fit(tokens[:1500], answer[:1500], Cut(PLAIN.max_tokens, keeps_answers=False)).parameters, 8)
    )
    wanted = moments(tokens[:1500], answer[:1500])
    for name in ("max_over_mean", "min_over_mean", "wrong_over_right"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=0.05), name
    for name in ("pass_at_1", "pass_at_n", "majority"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), abs=0.02), name


def test_cuts_are_found() -> None:
    """Chains that pile up at their longest were cut; where some of them are right they may have answered before."""
    tokens, answer = fresh_draws(PLAIN._replace(max_tokens=3000, cut_answers=True), 8)
    assert possible_cuts(tokens, answer) == [Cut(3000, keeps_answers=False), Cut(3000, keeps_answers=True)]
    answer[tokens >= 2999] = NO_ANSWER
    assert possible_cuts(tokens, answer) == [Cut(3000, keeps_answers=False)]
    tokens, answer = fresh_draws(PLAIN._replace(max_tokens=10**7), 8)
    assert possible_cuts(tokens, answer) == [Cut(None, keeps_answers=False)]


def test_the_better_reading_of_a_cut_stays() -> None:
    """Of a bank whose cut chains had answered, and of one whose had not."""
    for truth in (False, True):
        tokens, answer = fresh_draws(PLAIN._replace(max_tokens=5000, cut_answers=truth), 8)
        count = 8 * 400
        bank = Bank(tokens[:400].ravel(), answer[:400].ravel(), None, np.arange(0, count + 1, 8))
        assert fit_bank(bank).parameters.cut_answers is truth


LIMITS = {
    "max_over_mean": 5,
    "min_over_mean": 5,
    "wrong_over_right": 10,
    "pass_at_1": 2,
    "pass_at_n": 5,
    "majority": 5,
    "best_of_n": 2.5,
}


def test_the_bundled_bank_is_reproduced() -> None:
    report = fit_bank(read_bank(BANK, "k"))
    found = {row.name: row.error for row in report.rows}
    assert {name: error for name, error in found.items() if name in LIMITS and abs(error) > LIMITS[name]} == {}


def test_the_bundled_bank_is_its_tools(tmp_path: Path) -> None:
    made = tmp_path / "bank.csv"
    subprocess.run([sys.executable, ROOT / "tools/make_bank.py", "--out", made], check=True)
    assert made.read_bytes() == BANK.read_bytes()


@pytest.mark.parametrize("name", assets.names("outcomes"))
def test_bundled_profiles_say_what_they_stand_for(name: str) -> None:
    parameters = read_profile(profile_path(name, Path(), "k"), "k")
    draws = ModelOutcomes(parameters, 0.9).draw(Streams(5), 0, 200, 4)
    assert 0.03 < (draws.answer == RIGHT).mean() < 0.999
    assert 100 < draws.tokens.mean() < 40_000


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(profile_toml("m", "d", 'a "source"', PLAIN, {"x": "y"}))
    assert read_profile(path, "k") == PLAIN
    path.write_text(path.read_text().replace("rho = 0.4", "rho = 4"))
    with pytest.raises(InputError, match=r"length\.rho"):
        read_profile(path, "k")


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("correct", "2", "data row 3"),
        ("output_tokens", "0", "data row 3"),
        ("problem", None, "no column 'problem'"),
        ("output_tokens", None, "no column 'output_tokens'"),
    ],
)
def test_bad_banks_are_named(tmp_path: Path, column: str, value: str | None, says: str) -> None:
    rows = list(csv.DictReader(BANK.open()))[:40]
    for row in rows:
        if value is None:
            del row[column]
    if value is not None:
        rows[2][column] = value
    path = tmp_path / "bank.csv"
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(InputError, match=says):
        read_banks(path, "k")


def test_banks_of_several_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "bank.csv"
    path.write_text("model,problem,sample,tokens,correct\na,p,0,10,1\na,p,1,20,0\nb,p,0,30,1\nb,p,1,40,0\nb,p,2,50,0\n")
    banks = read_banks(path, "k", [{"model": ["b"], "sample": ["1"]}])
    assert {names: bank.tokens.tolist() for names, bank in banks.items()} == {("a",): [10, 20], ("b",): [30, 50]}
    assert len(set(banks[("b",)].answer.tolist())) == 2
    with pytest.raises(InputError, match="2 banks"):
        read_bank(path, "k")
    assert read_bank(path, "k", model="a").tokens.tolist() == [10, 20]


def test_the_command_fits_and_writes(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["fit", "outcomes", str(BANK), "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "KS of lengths" in done.output
    read_profile(tmp_path / "bank.toml", "k")
    bad = CliRunner().invoke(main, ["fit", "outcomes", str(BANK), "--drop", "nothing"])
    assert bad.exit_code == 2
    assert "is no condition" in bad.output
