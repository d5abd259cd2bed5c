import json

import numpy as np
import pytest
from commands import call


@pytest.fixture
def quiz(tmp_path, write_nifti):
    rng = np.random.default_rng(0)
    mask = np.zeros((12, 10, 8), np.uint8)
    mask[2:8, 2:8, 2:6] = 1
    mask[4:6, 4:6, 3:5] = 2
    folder = tmp_path / "data set" / "train" / "subtype1"
    for name in ("quiz_1_001", "quiz_1_002"):
        image = rng.normal(60, 20, mask.shape) - 150 * (rng.random(mask.shape) < 0.2)
        write_nifti(folder / f"{name}_0000.nii.gz", image.astype(np.int16))
        write_nifti(folder / f"{name}.nii.gz", mask)
    return tmp_path / "data set"


def test_a_sound_dataset(quiz, tmp_path):
    common = "data=quiz", f"data.root={quiz}", f"output_dir={tmp_path / 'out'}", "workers=1"
    code, text, _ = call("pancreas_mtl.audit", *common)
    assert (code, text.splitlines()[-1]) == (
        0, "2 cases (2 train, 0 validation, 0 test): 0 errors, 0 warnings",
    )  # fmt: skip
    assert json.loads((tmp_path / "out" / "audit.json").read_text())["n_errors"] == 0


def test_errors_give_exit_code_1_and_fix_a_mended_copy(quiz, tmp_path):
    bad = quiz / "train" / "subtype1" / "quiz_1_002_0000.nii.gz"
    bad.write_bytes(b"")
    out = tmp_path / "out"
    common = "data=quiz", f"data.root={quiz}", f"output_dir={out}", "workers=1"
    code, text, error = call("pancreas_mtl.audit", *common)
    assert code == 1
    assert f"quiz_1_002: {bad} is truncated or damaged" in text
    assert "1 errors in 1 cases, 0 warnings: mend them, or write" in error.splitlines()[-1]
    assert not (out / "fixed").exists()

    code, text, error = call("pancreas_mtl.audit", *common, "fix=true")
    assert code == 1
    assert "left out: unreadable_image (1): quiz_1_002" in text
    assert error.splitlines()[-1] == "audit: 1 of 2 cases, or their masks, had to be left out"
    repairs = json.loads((out / "audit.json").read_text())["repairs"]
    assert repairs == {"quiz_1_001": "copied", "quiz_1_002": "left out: unreadable_image"}

    fixed = f"data.root={out / 'fixed'}"
    again = f"output_dir={tmp_path / 'again'}"
    assert call("pancreas_mtl.audit", "data=quiz", fixed, again).code == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=quiz"], "audit: data.root is not set: give data.root=VALUE"),
        (["data=qiuz", "data.root=x"], "choose one of: msd, nnunet, phantom, quiz"),
        (["data=quiz", "data.root=nowhere"], "nowhere is no folder: give the dataset's"),
        (["data=nnunet", "data.root={quiz}"], "the layout quiz would fit {quiz}"),
        (["data=quiz", "data.root={quiz}", "fixx=true"], "fixx: no such key; did you mean fix?"),
        (["data=quiz", "data.root={quiz}", "fix=true", "output_dir={quiz}"], "give output_dir"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(monkeypatch, quiz, tmp_path, overrides, message):
    monkeypatch.chdir(tmp_path)
    code, _, error = call("pancreas_mtl.audit", *(item.format(quiz=quiz) for item in overrides))
    assert code == 2
    assert message.format(quiz=quiz) in error.splitlines()[-1]
