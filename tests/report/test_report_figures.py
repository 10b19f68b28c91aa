import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from factory import S, World, best_of, context, step

from ttsim_des.metrics.gaps import Gaps
from ttsim_des.metrics.summary import summarise
from ttsim_des.report.curves import cdf, gap_cdf, over_time

PNG = b"\x89PNG"


def test_over_time_keeps_the_areas() -> None:
    tables = best_of(40, 4).tables()
    summary = summarise(tables, context(usable_blocks=1000, replicas=1))
    for bins in (7, 600):
        curves = over_time(tables, 16, bins)
        assert curves.running.size == bins
        assert curves.running.mean() == pytest.approx(summary["load"]["mean_running"], rel=1e-6)
        assert curves.held_blocks.mean() / 1000 == pytest.approx(summary["kv"]["mean_held_share"], rel=1e-2)


def test_over_time_adds_replicas_and_cuts_long_runs() -> None:
    steps = [step(0, 1000, S, running=2, held_blocks=0, decode_seqs=16), step(500 * S, 250, S, running=4, replica=1)]
    curves = over_time(World(steps=steps, end_ns=1000 * S).tables(), 16, 4)
    assert curves.running.tolist() == pytest.approx([2, 2, 6, 2])
    assert curves.held_blocks[:2] == pytest.approx([124.5, 374.5], rel=0.03)


def test_curves_are_thinned_without_losing_the_ends() -> None:
    values = np.random.default_rng(0).integers(0, 10**9, 50_000)
    x, y = cdf(values)
    assert x.size <= 1000
    assert (x[0], x[-1], y[-1]) == (values.min(), values.max(), 1.0)
    gaps, shares = gap_cdf(Gaps(best_of(20, 3).tables().token_gaps, None, 10**18))
    assert shares[-1] == 1.0
    assert set(gaps) == {10_000_000.0}
    assert gap_cdf(Gaps(World().tables().token_gaps, None, 1))[0].size == 0


def test_draws_what_it_can_and_says_what_is_missing(tmp_path: Path) -> None:
    from ttsim_des.report.figures import draw

    tables = best_of(40, 4).tables()
    summary = summarise(tables, context(kind="steady", usable_blocks=40))
    drawn = draw(tmp_path / "figures", summary=summary, tables=tables, has_steps=True)
    assert [path.name for path in drawn.paths] == ["latency_cdf.png", "load_over_time.png"]
    assert all(path.read_bytes().startswith(PNG) for path in drawn.paths)
    assert drawn.missing == []
    assert sorted(file.name for file in (tmp_path / "figures").iterdir()) == ["latency_cdf.png", "load_over_time.png"]
    without = draw(tmp_path / "figures", summary=summary, tables=tables, has_steps=False)
    assert [path.name for path in without.paths] == ["latency_cdf.png"]
    assert "output.steps=true" in without.missing[0]
    nothing = draw(
        tmp_path / "empty", summary=summarise(World().tables(), context()), tables=World().tables(), has_steps=True
    )
    assert nothing.paths == []
    assert len(nothing.missing) == 2


def test_a_run_without_figures_imports_neither_pandas_nor_seaborn() -> None:
    code = (
        "import sys; import ttsim_des.metrics.summary, ttsim_des.metrics.laws, ttsim_des.report.table, "
        "ttsim_des.report.rundir, ttsim_des.report.explain, ttsim_des.report.figures; "
        "sys.exit(', '.join({'pandas', 'seaborn', 'matplotlib', 'scipy'} & set(sys.modules)) or None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.00021, 0.0004], ["0.0002", "0.00025", "0.0003", "0.00035", "0.0004"]),
        ([0.3, 40], ["0.2", "0.5", "1", "2", "5", "10", "20", "50"]),
        ([8, 500_000], ["10", "100", "1,000", "10,000", "100,000", "1,000,000"]),
    ],
)
def test_logarithmic_axes_are_marked_with_plain_numbers(values: list[float], labels: list[str]) -> None:
    from ttsim_des.report.figures import log_scale, set_up

    set_up()
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots()
    panel.plot(values, values)
    log_scale(panel, y=True)
    figure.canvas.draw()
    for axis, (low, high) in ((panel.xaxis, panel.get_xlim()), (panel.yaxis, panel.get_ylim())):
        ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
        assert [label.get_text() for place, label in ticks if low <= place <= high] == labels
        assert low < values[0]
        assert high > values[1]
        assert not axis.get_minorticklocs().size
    plt.close(figure)
