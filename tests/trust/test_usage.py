"""Bad usage ends with exit code 2 before any work, with one line that says what to give."""

import os
import shutil
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
        "does not fit the layout quiz: expected train/subtype",
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
    "a precision that Lightning lacks": (
        "train",
        ["data=quiz", "data.root={tmp}/one", "output_dir={tmp}/o", "trainer.precision=7-mixed"],
        "trainer: Precision '7-mixed' is invalid",
    ),
    "a value that Lightning refuses": (
        "train",
        ["data=quiz", "data.root={tmp}/one", "output_dir={tmp}/o", "trainer.devices=0"],
        "trainer: ",
    ),
    "a profiler that does not exist": (
        "train",
        ["data=quiz", "data.root={tmp}/one", "output_dir={tmp}/o", "+trainer.profiler=fast"],
        "trainer.profiler=fast: choose one of simple, advanced, pytorch",
    ),
    "stages that the given plan lacks": (
        "train",
        ["data=quiz", "data.root={tmp}/one", "plan.bundle={model}", "model.stages=[7]"],
        "model.stages=[7]: choose of this plan's stages, 0 to 2",
    ),
    "damaged weights to start from": (
        "train",
        ["data=quiz", "data.root={tmp}/one", "output_dir={tmp}/o", "model.pretrained={tmp}/one"],
        "plan.json: not found; give a folder",
    ),
    "a plan of nowhere": (
        "train",
        ["data=quiz", "data.root={tmp}/one", "output_dir={tmp}/o", "plan.bundle={tmp}/empty"],
        "empty/plan.json: not found",
    ),
    "phantoms over other files": (
        "pancreas_mtl.phantom",
        ["output_dir={tmp}/one", "num_cases=2"],
        "holds something else: give an empty or new folder",
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


OBEYING = [
    "setpriv",
    "--bounding-set=-dac_override,-dac_read_search",
    "--inh-caps=-dac_override,-dac_read_search",
]
"""Makes root obey the modes of files, as everybody else does."""


@pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("setpriv") is None,
    reason="root has every permission, and setpriv is not there to take them away",
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
    options = [f"model={model}", "device=cpu", *arguments.format(tmp=tmp_path).split()]
    result = subprocess.run(
        [*(OBEYING if os.geteuid() == 0 else []), sys.executable, "predict.py", *options],
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
