"""What the page is made of goes along when the package is installed."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REPORT = Path("pancreas_mtl/evaluation/report")


@pytest.mark.slow
def test_a_wheel_holds_templates_styles_viewer_and_licences(tmp_path):
    pytest.importorskip("setuptools", reason="needs the extra dev")
    source = tmp_path / "source"
    shutil.copytree(ROOT / "pancreas_mtl", source / "pancreas_mtl")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = source.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith(str(REPORT))}
    needed = [*(ROOT / REPORT).glob("templates/*"), *(ROOT / REPORT).glob("assets/*")]
    needed = {path.relative_to(ROOT).as_posix() for path in needed}
    needed -= {(REPORT / "assets" / name).as_posix() for name in ("README.md", "update_niivue.sh")}
    assert {Path(name).suffix for name in needed} == {".jinja", ".css", ".js", ".txt"}
    assert needed <= held
