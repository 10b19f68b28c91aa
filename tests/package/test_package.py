"""What is shipped: versions agree, bundled data is found inside an installed package, NOTICE names what it must."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WHEEL = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]


def test_versions_agree() -> None:
    version = PROJECT["project"]["version"]
    assert importlib.metadata.version("ttsim-des") == version
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)", changes, re.MULTILINE)
    assert newest is not None
    assert newest[1] == version


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package laid out as the wheel is, without a checkout around it."""
    site = tmp_path_factory.mktemp("installed")
    ignore = shutil.ignore_patterns("__pycache__")
    for package in WHEEL["packages"]:
        shutil.copytree(ROOT / package, site / Path(package).name, ignore=ignore)
    for source, target in WHEEL["force-include"].items():
        shutil.copytree(ROOT / source, site / target, ignore=ignore)
    return site


def python(site: Path, folder: Path, code: str) -> str:
    """Run code against the package in `site` from another folder; its stdout."""
    code = f"import sys; sys.path.insert(0, {str(site)!r})\n{code}"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    return done.stdout


def test_an_installed_package_finds_its_own_data(installed: Path, tmp_path: Path) -> None:
    told = python(
        installed,
        tmp_path,
        "import ttsim_des.assets as a\n"
        "print(a.__file__)\n"
        "for kind in ('profiles', 'scenarios', 'traces'): print(a.root(kind))\n"
        "print(*(a.names(c) for c in ('gpus', 'models', 'engines', 'outcomes', 'scenarios')))",
    ).splitlines()
    assert all(line.startswith(str(installed)) for line in told[:4])
    from ttsim_des.assets import names

    assert told[4] == " ".join(
        str(names(catalogue)) for catalogue in ("gpus", "models", "engines", "outcomes", "scenarios")
    )


def test_an_installed_package_runs_a_bundled_scenario(installed: Path, tmp_path: Path) -> None:
    python(
        installed,
        tmp_path,
        "from ttsim_des.cli import main\n"
        "main(['run', 'best-of-n', '--set', 'experiment.queries=5', '--out', 'out', '--format', 'json'])",
    )
    assert (tmp_path / "out" / "summary.json").is_file()


def test_the_interface_is_typed_for_its_users() -> None:
    assert (ROOT / WHEEL["packages"][0] / "py.typed").is_file()


def test_notice_names_every_profile_of_others() -> None:
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    metas = sorted((ROOT / "profiles" / "gpus").glob("*/meta.toml"))
    assert metas
    for meta in metas:
        licence = tomllib.loads(meta.read_text(encoding="utf-8"))["licence"]
        named = meta.parent.relative_to(ROOT).as_posix() in notice
        assert named == ("NVIDIA" in licence), f"{meta.parent.name}: licence {licence!r}, in NOTICE: {named}"
    for path in re.findall(r"\b(?:profiles|traces|tests|tools)/[\w./-]*\w", notice):
        assert (ROOT / path).exists(), f"NOTICE: {path} is not there"


def test_the_ci_script_is_sound() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
