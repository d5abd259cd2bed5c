"""Nothing goes out, nothing comes in, and what is installed is pinned and may be used."""

import os
import re
import socket
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
from commands import call
from packaging.requirements import Requirement
from trust.faults import predict, save_ct

ROOT = Path(__file__).resolve().parents[2]


def test_predicting_opens_no_connection(model, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise AssertionError(f"a connection to {arguments[1:]}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    save_ct(tmp_path / "in" / "a.nii.gz")
    assert predict(model, tmp_path / "in", tmp_path / "out").finished.code == 0
    runs = f"runs=[{tmp_path / 'out'}]"
    assert call("pancreas_mtl.report", runs, f"output_dir={tmp_path}", "workers=1").code == 0


@pytest.mark.slow
def test_neither_wandb_nor_a_reporter_of_crashes_is_loaded_unless_asked_for():
    code = (
        "import sys, train, predict, pancreas_mtl.evaluate; "
        "print([n for n in ('wandb', 'sentry_sdk', 'openvino_telemetry', 'litlogger') "
        "if sys.modules.get(n)])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.slow
def test_openvino_finds_no_telemetry():
    pytest.importorskip("openvino", reason="needs the extra openvino")
    code = (
        "import pancreas_mtl, openvino; from openvino.tools.ovc import telemetry_utils as t; "
        "print(t.tm.__name__)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "openvino.tools.ovc.telemetry_stub"


@pytest.mark.parametrize("said", [None, "1"])
def test_ray_is_told_to_report_nothing_unless_its_user_says_so(said):
    environment = {k: v for k, v in os.environ.items() if k != "RAY_USAGE_STATS_ENABLED"}
    environment |= {} if said is None else {"RAY_USAGE_STATS_ENABLED": said}
    code = "import os, pancreas_mtl; print(os.environ['RAY_USAGE_STATS_ENABLED'])"
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == (said or "0")


def test_the_tools_that_look_after_packages_are_pinned():
    names = {normal(line.split("==")[0]) for line in pinned()}
    assert {"pip-audit", "pip-licenses"} <= names
    install = re.search(
        r"pip install(.|\n)*?pip-audit pip-licenses", (ROOT / "Makefile").read_text()
    )
    assert "-c constraints.txt" in install[0].splitlines()[-1]


def test_no_code_downloads():
    for path in (ROOT / "pancreas_mtl").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for word in ("urllib.request", "requests", "torch.hub", "load_state_dict_from_url", "wget"):
            assert not re.search(rf"^\s*(import|from) {re.escape(word)}\b", text, re.M), path
            assert f"{word}(" not in text, path


# Packages


def pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_every_constraint_pins_one_version():
    for line in pinned():
        assert re.match(r"[A-Za-z0-9._-]+==[\w.+!]+(; .*)?$", line), line
    assert len(pinned()) > 100


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def installed():
    """The packages that this project needs, directly or not, of those that are installed."""
    known = {normal(found.metadata["Name"]): found for found in distributions()}
    todo, needed = ["pancreas-mtl"], {}
    while todo:
        name = todo.pop()
        if name in needed or name not in known:
            continue
        needed[name] = known[name]
        for requirement in map(Requirement, known[name].requires or []):
            of_an_extra = name == "pancreas-mtl" and "extra ==" in str(requirement.marker)
            if requirement.marker is None or of_an_extra or requirement.marker.evaluate():
                todo.append(normal(requirement.name))
    return needed


def test_everything_that_is_installed_is_pinned():
    names = {normal(line.split("==")[0]) for line in pinned()}
    assert len(installed()) > 60
    loose = set(installed()) - names - {"pancreas-mtl", "pip", "setuptools", "wheel"}
    assert loose - {"types-pyyaml"} == set(), "pin these in constraints.txt"


FORBIDDEN = re.compile(r"\b(A?GPL|Affero|SSPL|BUSL|Commons Clause|Non-?Commercial)\b", re.I)


def test_no_package_forbids_use_or_claims_this_code():
    """As `make licences`: no licence that spreads to code which only imports the package."""
    for name, found in installed().items():
        meta = found.metadata
        texts = [meta.get("License-Expression"), *(meta.get_all("Classifier") or [])]
        texts += [(meta.get("License") or "")[:200]]
        licences = " ".join(t for t in texts if t and ("License" in t or "::" not in t))
        spread = FORBIDDEN.search(licences) and "LGPL" not in licences and " OR " not in licences
        assert not spread, f"{name}: {licences[:200]}"
