import pytest

from ttsim_des.errors import InputError
from ttsim_des.scenario.places import format_key
from ttsim_des.scenario.toml_source import parse, parse_value


def problem_of(text: str) -> str:
    with pytest.raises(InputError) as caught:
        parse(text, "f.toml")
    assert len(caught.value.problems) == 1
    return str(caught.value)


def test_every_kind_of_key_has_its_place():
    text = (
        "top = 1\n"
        "a.b = 2\n"
        "[t]\n"
        "  inner = { x = 1, deep = { y = 2 } }\n"
        "  list = [10,\n    20]\n"
        '"odd key" = 3\n'
        "[t.sub]\n"
        "[[phase]]\n"
        "rate = 1\n"
        "[[phase]]\n"
        "rate = 2\n"
        "[phase.more]\n"
    )
    places = parse(text, "f.toml").map
    expected = {
        "top": "1:1",
        "a.b": "2:1",
        "t": "3:2",
        "t.inner": "4:3",
        "t.inner.x": "4:13",
        "t.inner.deep.y": "4:29",
        "t.list.0": "5:11",
        "t.list.1": "6:5",
        't."odd key"': "7:1",
        "t.sub": "8:2",
        "phase.0.rate": "10:1",
        "phase.1.rate": "12:1",
        "phase.1.more": "13:2",
    }
    assert {key: places.where(key) for key in expected} == {key: f"f.toml:{at}" for key, at in expected.items()}


def test_a_key_that_is_not_there_is_at_its_table():
    places = parse("a = 1\n[t]\nx = 1\n[u.v]\n", "f.toml").map
    assert places.where("t.missing") == "f.toml:2:2"
    assert places.where("u.missing") == "f.toml:4:2"
    assert places.where("nowhere.at.all") == "f.toml:1:1"


def test_columns_count_characters_not_bytes():
    assert parse('t = { "é" = 1, x = 2 }\n', "f.toml").map.where("t.x") == "f.toml:1:16"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a = 1\nb = = 2\n", "f.toml:2:5: not valid TOML: invalid value"),
        ('a = "open\n', "f.toml:1:10: not valid TOML"),
        ("a = [1,\n", "f.toml:2:1: not valid TOML: "),
        ("[t\nx = 1\n", "f.toml:1:3: not valid TOML"),
        ("a = 1\na = 2\n", "f.toml:2:1: a: given twice, first on line 1"),
        ("[t]\nx = 1\n[u]\n[t]\n", "f.toml:4:2: t: given twice, first on line 1"),
        ("t = { x = 1, x = 2 }\n", "f.toml:1:14: t.x: given twice, first on line 1"),
        ("a = 1\nb = 2024-02-30\n", "f.toml:2:5: not valid TOML"),
        ("a = 1\nb = " + "9" * 5000 + "\n", "f.toml:2:5: not valid TOML: exceeds the limit"),
        ("a = " + "[" * 5000 + "]" * 5000, "f.toml: is nested too deeply"),
        (".".join(["a"] * 5000) + " = 1", "f.toml:1:1: a key of 5000 parts"),
    ],
)
def test_syntax_errors_have_a_place_and_a_plain_message(text: str, place: str):
    assert problem_of(text).startswith(place)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e3", 1000.0),
        ("true", True),
        ('"x y"', "x y"),
        ("poisson", "poisson"),
        ("Qwen2.5-7B", "Qwen2.5-7B"),
        ("../a.toml", "../a.toml"),
        ("{ a = 1, b.c = 2 }", {"a": 1, "b": {"c": 2}}),
        ("[1, 2", "[1, 2"),
        ("1\nb = 2", "1\nb = 2"),
        ("{" + "a." * 100_000 + "a = 1}", "{" + "a." * 100_000 + "a = 1}"),
    ],
)
def test_command_line_values_are_toml_or_bare_strings(text: str, value: object):
    assert parse_value(text) == value


def test_format_key_quotes_what_toml_quotes():
    assert format_key(("a", "b c", 0, 'x"y')) == 'a."b c".0."x\\"y"'
