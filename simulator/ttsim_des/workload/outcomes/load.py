"""The outcomes that a scenario names."""

from __future__ import annotations

from pathlib import Path

from ttsim_des.scenario.schema import OutcomeTokens
from ttsim_des.workload.columns import SUFFIXES, locate_file
from ttsim_des.workload.outcomes.bank import BankOutcomes, read_bank
from ttsim_des.workload.outcomes.draws import Outcomes
from ttsim_des.workload.outcomes.model import ModelOutcomes
from ttsim_des.workload.outcomes.profile import profile_path, read_profile


def outcome_file(table: OutcomeTokens, base_dir: Path, key: str) -> Path:
    """The file that the outcomes are read from; InputError under `key`.source where there is none."""
    where = f"{key}.source"
    if Path(table.source).suffix.lower() in SUFFIXES:
        return locate_file(table.source, base_dir, where)
    return profile_path(table.source, base_dir, where)


def load_outcomes(table: OutcomeTokens, base_dir: Path, key: str) -> Outcomes:
    """A sample bank where `source` is a table of samples, else a parametric profile; InputError under `key`.source."""
    where, path = f"{key}.source", outcome_file(table, base_dir, key)
    if path.suffix.lower() in SUFFIXES:
        return BankOutcomes(read_bank(path, where, model=table.model, dataset=table.dataset), table.verifier_auc)
    return ModelOutcomes(read_profile(path, where), table.verifier_auc)
