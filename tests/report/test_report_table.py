from factory import MS, S, best_of, context, one_at_a_time

from ttsim_des.metrics.summary import summarise
from ttsim_des.report.table import WIDTH, render
from ttsim_des.report.units import duration, number, percent, time_unit, usd


def line_with(text: str, label: str) -> str:
    return next(line for line in text.splitlines() if label in line)


def test_table_is_narrow_plain_and_repeatable() -> None:
    summary = summarise(best_of(150, 4).tables(), context(kind="steady", slo_query_latency_s=1.8, slo_ttft_s=10.0))
    text = render(summary)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "\x1b" not in text
    assert text == render(summary)
    assert "\x1b" in render(summary, colour=True)


def test_dash_where_too_few_observations() -> None:
    text = render(summarise(best_of(150, 4).tables(), context(kind="steady")))
    cells = line_with(text, "query latency").split()
    assert cells[2] == "s"
    assert cells[-1] == "135"
    assert cells[-4:-1] == ["-", "-", "-"]
    assert cells[-5] != "-"


def test_slo_marks() -> None:
    text = render(summarise(best_of(150, 4).tables(), context(slo_query_latency_s=0.1, slo_ttft_s=10.0)))
    assert "✗" in line_with(text, "query latency within 100 ms")
    assert "✓" in line_with(text, "query first token within 10.0 s")
    assert "100.0 %" in line_with(text, "query first token within")
    assert "✗" in line_with(text, "goodput 0 queries/s")


def test_warnings_name_the_key_to_change() -> None:
    text = render(summarise(one_at_a_time(range(200), [3] * 200).tables(), context(kind="steady", gpu_hour_usd=None)))
    flat = " ".join(text.split())
    assert "warning: the queue grows" in flat
    assert "workload.arrivals.rate_per_s" in flat
    assert line_with(text, "query latency").split()[-7:-1] == ["-"] * 6
    assert line_with(text, "cost per query").split()[3] == "-"


def test_brackets_in_names_are_text_not_markup() -> None:
    text = render(summarise(best_of(30, 2).tables(), context(model="[bold]m[/bold]", name="a[red]b")))
    assert "[bold]m[/bold]" in text
    assert "a[red]b" in text


def test_units_are_chosen_readably() -> None:
    assert time_unit([0.005, None, 0.9, 0.01]) == ("ms", 1e3)
    assert time_unit([2.0, 30.0]) == ("s", 1.0)
    assert time_unit([]) == ("s", 1.0)
    assert [number(x) for x in (None, 0, 0.01234, 0.1234, 1.234, 12.34, 123.4, 1234.5, 7)] == [
        "-", "0", "0.0123", "0.123", "1.23", "12.3", "123", "1,234", "7",
    ]  # fmt: skip
    assert (duration(12 * MS / S), duration(3.0), duration(None), duration(0.0)) == ("12.0 ms", "3.00 s", "-", "0 s")
    assert (percent(0.1234), percent(None)) == ("12.3 %", "-")
    assert (usd(0.001234), usd(12.5), usd(None), usd(0.00000123)) == ("$0.00123", "$12.50", "-", "$1.23e-06")
