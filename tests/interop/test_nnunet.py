"""Against answers that nnU-Net itself gave, stored by make_nnunet_pair.py."""

import json
import logging
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pancreas_mtl import Predictor
from pancreas_mtl.errors import UsageError
from pancreas_mtl.inference.bundle import load_bundle
from pancreas_mtl.inference.engines import make_engine
from pancreas_mtl.inference.writer import NO_SUBTYPES, CaseRecord, close_output, run_facts
from pancreas_mtl.interop.nnunet import import_nnunet
from pancreas_mtl.interop.nnunet_plans import read_plan
from pancreas_mtl.models.network import MultitaskUNet, NetworkConfig
from pancreas_mtl.training.warm_start import WarmStart, warm_start

STORED = Path(__file__).parent / "nnunet"
MODELS = ("isotropic", "anisotropic")


@pytest.fixture
def model(request, tmp_path):
    """A copy of a stored model, to be spoiled."""
    return Path(shutil.copytree(STORED / getattr(request, "param", "isotropic"), tmp_path / "m"))


def imported(folder, output_dir, *, fold=0, overwrite=False):
    name = "checkpoint_final.pth"
    return import_nnunet(folder, fold, name, output_dir, overwrite=overwrite)


def edit(path, **changes):
    """Replace values of a JSON file, given by dotted keys."""
    content = json.loads(path.read_text())
    for key, value in changes.items():
        *parents, last = key.split("__")
        inner = content
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", MODELS)
def test_a_training_starts_from_an_imported_network(name, tmp_path, caplog):
    """Its mask at once, with a subtype head that has still to learn."""
    imported(STORED / name, tmp_path / "bundle")
    bundle, answers = load_bundle(tmp_path / "bundle"), np.load(STORED / name / "answers.npz")
    network = MultitaskUNet(bundle.plan, NetworkConfig())
    config = WarmStart(pretrained=str(tmp_path / "bundle"))
    with caplog.at_level(logging.INFO):
        run = {"data": {"layout": "quiz", "root": "DIR"}, "fold": 0}
        warm_start(network, config, bundle.plan, run=run)
    taken = re.findall(r"(\w+) (\d+) of (\d+)", caplog.text)
    assert [(part, got == wanted) for part, got, wanted in taken] == [
        ("encoder", True),
        ("decoder", True),
        ("head", False),
    ]
    assert "not in the bundle, started at random: subtype_head" in caplog.text
    with torch.no_grad():
        logits = network.eval().window(torch.from_numpy(answers["window"])[None, None])[0]
    assert np.abs(logits[0].numpy() - answers["logits"]).max() < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_nnunets(name, tmp_path):
    imported(STORED / name, tmp_path / "bundle")
    bundle, answers = load_bundle(tmp_path / "bundle"), np.load(STORED / name / "answers.npz")
    window = torch.from_numpy(answers["window"])[None, None]
    with torch.no_grad():
        logits = bundle.network.window(window)[0]
    assert np.abs(logits[0].numpy() - answers["logits"]).max() < 1e-4
    engine = make_engine("torch", bundle.network, bundle.plan, device="cpu", precision="fp32")
    assert np.abs(engine(window)[0][0].numpy() - answers["logits"]).max() < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_labels_from_hu_are_nnunets(name, tmp_path):
    imported(STORED / name, tmp_path / "bundle")
    answers = np.load(STORED / name / "answers.npz")
    predictor = Predictor.from_bundle(tmp_path / "bundle", device="cpu", precision="fp32")
    prediction = predictor(answers["image_hu"], tuple(answers["spacing_mm"]))
    assert set(np.unique(answers["labels"])) == {0, 1, 2}
    # nnU-Net adds windows up in float16: near the image's corners it is off by up to half a logit
    assert (prediction.labels == answers["labels"]).mean() > 0.996
    assert prediction.subtype_probabilities is None


def test_the_plan_is_in_the_images_axes(tmp_path):
    origin = imported(STORED / "anisotropic", tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.plan.spacing_mm == (1.2, 1.0, 5.0)
    assert bundle.plan.patch_size == (16, 16, 8)
    assert bundle.plan.kernels[0] == (3, 3, 1)
    assert bundle.mirror_axes == (0, 1, 2)
    assert origin["dataset"] == "Dataset999_Benchmark"
    assert bundle.config["nnunet"] == origin


def test_an_imported_decoder_has_nnunets_own_kernels(tmp_path):
    imported(STORED / "anisotropic", tmp_path / "bundle")
    blocks = [up.conv_block for up in load_bundle(tmp_path / "bundle").network.upsamples]
    assert [block.conv1.conv.kernel_size for block in blocks] == [(3, 3, 1), (3, 3, 1)]


@pytest.mark.parametrize(("axes", "expected"), [(None, ()), ((0, 1), (0, 2))])
def test_axes_that_nnunet_may_not_mirror(tmp_path, axes, expected):
    folder = Path(shutil.copytree(STORED / "anisotropic", tmp_path / "m"))
    change_checkpoint(folder, inference_allowed_mirroring_axes=axes)
    imported(folder, tmp_path / "bundle")
    assert load_bundle(tmp_path / "bundle").mirror_axes == expected


def test_the_subtype_column_is_empty_and_run_json_says_so(tmp_path):
    imported(STORED / "isotropic", tmp_path / "bundle")
    predictor = Predictor.from_bundle(tmp_path / "bundle", device="cpu")
    close_output(tmp_path, [CaseRecord("a", "a.nii.gz")], run_facts(predictor, {}))
    assert (tmp_path / "subtype_results.csv").read_text() == "Names,Subtype\na.nii.gz,\n"
    assert (tmp_path / "subtype_probabilities.csv").read_text() == "Names,p0,p1,p2\n"
    assert json.loads((tmp_path / "run.json").read_text())["subtypes"] == NO_SUBTYPES


def change_checkpoint(folder, **changes):
    path = folder / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    torch.save({**content, **changes}, path)


class Evil:
    def __reduce__(self):
        return (Path("owned").touch, ())


def test_a_checkpoint_with_code_is_refused_and_not_run(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change_checkpoint(model, trainer_name=Evil())
    with pytest.raises(UsageError, match=r"checkpoint_final\.pth: refused: .*more than numbers"):
        imported(model, tmp_path / "bundle")
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "bundle").exists()


def test_damaged_checkpoints(model, tmp_path):
    path = model / "fold_0" / "checkpoint_final.pth"
    whole = path.read_bytes()
    for content in (b"", b"nonsense", whole[: len(whole) // 2], pickle.dumps([1])):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"checkpoint_final\.pth: "):
            imported(model, tmp_path / "bundle")
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UsageError, match=r"not a checkpoint of nnU-Net v2"):
        imported(model, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


CONFIGURATION = "configurations__3d_fullres__"
NETWORK = f"{CONFIGURATION}architecture__"
REFUSED = {
    "residual": (
        {f"{NETWORK}network_class_name": "x.unet.ResidualEncoderUNet"},
        "ResidualEncoderUNet cannot be imported: its encoder adds skip connections",
    ),
    "other network": ({f"{NETWORK}network_class_name": "x.UMamba"}, "network UMamba"),
    "one convolution": ({f"{NETWORK}arch_kwargs__n_conv_per_stage": 1}, "n_conv_per_stage is"),
    "normalisation": ({f"{CONFIGURATION}normalization_schemes": ["ZScore"]}, "normalization_sch"),
    "2D": ({f"{CONFIGURATION}patch_size": [8, 8]}, "patch_size of a 3D network is 2"),
    "cascade": ({f"{CONFIGURATION}previous_stage": "3d_lowres"}, "previous_stage is 3d_lowres"),
    "resampling": ({f"{CONFIGURATION}resampling_fn_data": "torch"}, "resampling_fn_data is torch"),
    "reader": ({"image_reader_writer": "NaturalImage2DIO"}, "images read by NaturalImage2DIO"),
    "transpose": ({"transpose_forward": [0, 0, 1]}, "not the plans of an nnU-Net"),
    "channels": (
        {f"{NETWORK}arch_kwargs__features_per_stage": [10**9] * 3},
        r"channels=.*out of bounds",
    ),
    "width": ({f"{NETWORK}arch_kwargs__features_per_stage": [4, 6, 10]}, "checkpoint of one model"),
    "depth": (
        {
            f"{NETWORK}arch_kwargs__features_per_stage": [4, 6],
            f"{NETWORK}arch_kwargs__kernel_sizes": [[3, 3, 3]] * 2,
            f"{NETWORK}arch_kwargs__strides": [[1, 1, 1], [2, 2, 2]],
            f"{NETWORK}arch_kwargs__n_conv_per_stage": [2, 2],
            f"{NETWORK}arch_kwargs__n_conv_per_stage_decoder": [2],
        },
        "out of bounds",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_give_another_answer_is_refused(model, tmp_path, case):
    changes, message = REFUSED[case]
    edit(model / "plans.json", **changes)
    with pytest.raises(UsageError, match=message):
        imported(model, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"background": 0, "organ": 1}}, "0 background, 1 pancreas and 2 lesion"),
        ({"labels": {"background": 0, "whole": [1, 2], "lesion": 2}}, "regions"),
        ({"channel_names": {"0": "CT", "1": "PET"}}, "one CT channel"),
    ],
)
def test_datasets_of_another_task_are_refused(model, tmp_path, changes, message):
    edit(model / "dataset.json", **changes)
    with pytest.raises(UsageError, match=message):
        imported(model, tmp_path / "bundle")


def test_plans_from_before_nnunet_2_3(model):
    path = model / "plans.json"
    content = json.loads(path.read_text())
    network = content["configurations"]["3d_fullres"].pop("architecture")["arch_kwargs"]
    content["configurations"]["base"] = content["configurations"]["3d_fullres"] | {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 6,
        "conv_kernel_sizes": network["kernel_sizes"],
        "pool_op_kernel_sizes": network["strides"],
        "n_conv_per_stage_encoder": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
    }
    content["configurations"]["3d_fullres"] = {"inherits_from": "base"}
    path.write_text(json.dumps(content))
    plan = read_plan(model, "3d_fullres").plan
    assert plan.channels == (4, 6, 6)
    today = read_plan(STORED / "isotropic", "3d_fullres").plan
    assert replace(plan, channels=today.channels) == today


def test_files_that_are_not_there(model, tmp_path):
    with pytest.raises(UsageError, match=r"fold_3.checkpoint_final\.pth: not found"):
        imported(model, tmp_path / "bundle", fold=3)
    (model / "plans.json").unlink()
    with pytest.raises(UsageError, match=r"plans\.json: not found; model_folder is"):
        imported(model, tmp_path / "bundle")


def test_nothing_is_overwritten_unasked(tmp_path):
    imported(STORED / "isotropic", tmp_path / "bundle")
    with pytest.raises(UsageError, match=r"holds a bundle: .* or overwrite=true"):
        imported(STORED / "anisotropic", tmp_path / "bundle")
    imported(STORED / "anisotropic", tmp_path / "bundle", overwrite=True)
    assert load_bundle(tmp_path / "bundle").plan.kernels[0] != (3, 3, 3)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_bundle_is_never_replaced(tmp_path, overwrite):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UsageError, match="run is not empty: give another"):
        imported(STORED / "isotropic", tmp_path / "run", overwrite=overwrite)
    assert (tmp_path / "run" / "checkpoints").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        imported(STORED / "isotropic", tmp_path / "file", overwrite=overwrite)
