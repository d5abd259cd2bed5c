"""Bad usage ends with exit code 2 before any work, with one line that says what to give."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import call
from trust.faults import content, ct, save_ct

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]

USAGE = {
    "predict an absent path": (
        "predict",
        ["model={model}", "input={tmp}/absent", "output_dir={tmp}/o"],
        "absent is no file and no folder: check the path",
    ),
    "predict an empty folder": (
        "predict",
        ["model={model}", "input={tmp}/empty", "output_dir={tmp}/o"],
        "holds no .nii or .nii.gz file: give a folder of CTs in NIfTI, or one",
    ),
    "predict a folder of MetaImages": (
        "predict",
        ["model={model}", "input={tmp}/mha", "output_dir={tmp}/o"],
        "holds no .nii or .nii.gz file (but .mha): give a folder",
    ),
    "predict a MetaImage": (
        "predict",
        ["model={model}", "input={tmp}/mha/x.mha", "output_dir={tmp}/o"],
        "x.mha is no .nii or .nii.gz file: convert it to NIfTI",
    ),
    "predict a loop of links": (
        "predict",
        ["model={model}", "input={tmp}/loop", "output_dir={tmp}/o"],
        "loop is no file and no folder: check the path",
    ),
    "predict twins": (
        "predict",
        ["model={model}", "input={tmp}/twins", "output_dir={tmp}/o"],
        "holds a twice (a.nii and a.nii.gz): remove or rename one of them",
    ),
    "predict into a file": (
        "predict",
        ["model={model}", "input={tmp}/one", "output_dir={tmp}/one/a.nii.gz/o"],
        "a.nii.gz/o: Not a directory; give another one",
    ),
    "evaluate nothing": (
        "pancreas_mtl.evaluate",
        ["predictions={tmp}/empty", "references={tmp}/one", "output_dir={tmp}/o"],
        "no case is in both: check the two folders",
    ),
    "evaluate against nothing": (
        "pancreas_mtl.evaluate",
        ["predictions={tmp}/one", "references={tmp}/empty", "output_dir={tmp}/o"],
        "holds no masks and no subtypes.csv",
    ),
    "report nothing": (
        "pancreas_mtl.report",
        ["runs=[{tmp}/empty]", "output_dir={tmp}/o"],
        "no metrics.json, metrics.csv or run.json here: give the output folder",
    ),
    "audit a folder of another layout": (
        "pancreas_mtl.audit",
        ["data=quiz", "data.root={tmp}/one", "output_dir={tmp}/o"],
        "does not fit data=quiz: expected train/subtype",
    ),
    "train into the dataset": (
        "train",
        ["data=quiz", "data.root={tmp}/one", "output_dir={tmp}/one"],
        "holds the dataset, data.root=",
    ),
    "train into a folder around the dataset": (
        "train",
        ["data=quiz", "data.root={tmp}/one", "output_dir={tmp}"],
        "holds the dataset, data.root=",
    ),
    "phantoms over other files": (
        "pancreas_mtl.phantom",
        ["output_dir={tmp}/one", "num_cases=2"],
        "holds something else: give an empty or new output_dir",
    ),
    "convert into the dataset": (
        "pancreas_mtl.convert",
        ["from=quiz", "to=nnunet", "root={tmp}/one", "output_dir={tmp}/one/sub"],
        "lie in each other: give another output_dir",
    ),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("usage")
    (tmp / "empty").mkdir()
    save_ct(tmp / "one" / "a.nii.gz")
    for name in ("a.nii", "a.nii.gz"):
        save_ct(tmp / "twins" / name, ct((4, 4, 4)))
    (tmp / "mha").mkdir()
    (tmp / "mha" / "x.mha").write_text("ObjectType = Image\n")
    (tmp / "loop").symlink_to(tmp / "loop")
    return tmp


@pytest.mark.parametrize("kind", USAGE)
def test_bad_usage_is_refused_before_any_work(model, places, kind):
    module, arguments, message = USAGE[kind]
    before = content(places)
    values = {"tmp": places, "model": model}
    finished = call(module, *(argument.format(**values) for argument in arguments))
    assert finished.code == 2, finished.stderr
    assert message in finished.last_line
    assert "Traceback" not in finished.stderr
    assert content(places) == before


IS_ROOT = os.geteuid() == 0
PYTHON = Path(sys.base_prefix)


@pytest.mark.skipif(
    IS_ROOT and not all(path.stat().st_mode & 0o001 for path in (PYTHON, *PYTHON.parents)),
    reason="root has every permission, and nobody else may read this Python",
)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("input={tmp}/closed output_dir={tmp}/o", "cannot be listed (Permission denied): check"),
        ("input={tmp}/in output_dir={tmp}/closed/o", "Permission denied; give another one"),
        ("input={tmp}/in output_dir={tmp}/readonly", "may not be written to; give another one"),
    ],
)
def test_folders_without_permission(model, tmp_path, arguments, message):
    save_ct(tmp_path / "in" / "a.nii.gz")
    for name, mode in (("closed", 0o000), ("readonly", 0o555)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    for path in (tmp_path, *tmp_path.parents, model, *model.parents):
        if path.is_relative_to("/tmp") and path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o055)
    become_nobody = "os.setgroups([]); os.setgid(65534); os.setuid(65534); " if IS_ROOT else ""
    code = f"import os, sys, predict; {become_nobody}sys.argv[0] = 'predict'; predict.main()"
    options = [f"model={model}", "device=cpu", *arguments.format(tmp=tmp_path).split()]
    result = subprocess.run(
        [sys.executable, "-c", code, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    (tmp_path / "closed").chmod(0o755)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "o").exists()
