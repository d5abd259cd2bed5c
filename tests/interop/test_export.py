"""Exports against torch and against `Predictor`; each needs an extra and skips without it."""

import json
import logging
import re
import shlex
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from extras import needs
from hydra.core.global_hydra import GlobalHydra

from pancreas_mtl import export as export_command
from pancreas_mtl.data.images import read_image, to_source
from pancreas_mtl.data.preprocess import prepare_image
from pancreas_mtl.errors import CaseError, UsageError
from pancreas_mtl.inference.bundle import load_bundle, save_bundle
from pancreas_mtl.inference.calibration import Calibration
from pancreas_mtl.inference.exportable import ExportableClassifier, ExportableWindow
from pancreas_mtl.inference.predictor import Predictor
from pancreas_mtl.interop import export, parity
from pancreas_mtl.interop.export import FORMATS, export_bundle
from pancreas_mtl.interop.processing import processing
from pancreas_mtl.models.network import MultitaskUNet, NetworkConfig

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/how-to/deployment.md").read_text()
COMMANDS = {  # of that page, each of which is run below
    *("format=onnx", "format=openvino", "format=monai_bundle"),
    *("docs/examples/onnx_case.py", "monai.bundle run"),
}
MODEL = {"head": "lesion", "stages": [0, 1], "hidden": 8, "dropout": 0.0, "detach_head": False}
AXIS_CODES = ("A", "R", "S")


@pytest.fixture(scope="module")
def model(plan, tmp_path_factory):
    """A bundle with a calibration that changes its answers."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("model") / "bundle"
    network = MultitaskUNet(plan, NetworkConfig(**MODEL | {"stages": (0, 1)}))
    calibration = Calibration(subtype_temperature=1.7, lesion_bias=-0.1, largest_lesion=True)
    save_bundle(folder, network.state_dict(), plan, {"model": MODEL}, calibration)
    return folder


@pytest.fixture(scope="module")
def ct(tmp_path_factory):
    """A CT of several windows, anisotropic, in a file whose axes run to the front, right, head."""
    rng = np.random.default_rng(0)
    affine = np.zeros((4, 4))
    affine[:, 3] = 20.0, -30.0, 40.0, 1.0
    affine[1, 0], affine[0, 1], affine[2, 2] = 1.3, 1.1, 6.0
    coarse = torch.from_numpy(rng.normal(60, 60, (1, 1, 6, 6, 4)).astype(np.float32))
    hu = torch.nn.functional.interpolate(coarse, (31, 37, 9), mode="trilinear")[0, 0].numpy()
    path = tmp_path_factory.mktemp("ct") / "case_0000.nii.gz"
    nib.save(nib.Nifti1Image(hu, affine), path)
    assert nib.aff2axcodes(affine) == AXIS_CODES
    return path


@pytest.fixture(scope="module")
def expected(model, ct):
    """What the predictor answers, with the labels in the axes of the file."""
    volume = read_image(ct)
    bundle = load_bundle(model)
    answer = Predictor([bundle], device="cpu", precision="fp32").predict(volume)
    raw = replace(bundle, calibration=replace(bundle.calibration, lesion_bias=0.0))
    plain = Predictor([raw], device="cpu", precision="fp32").predict(volume)
    assert len(np.unique(answer.labels)) > 1
    assert (answer.labels != plain.labels).any()
    return to_source(answer.labels, volume.source), answer.subtype_probabilities


def facts_of(folder):
    return json.loads((folder / "processing.json").read_text())


def page_commands():
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def command_of(part, **places):
    """The page's only command with this part, its words in capitals and folders replaced."""
    (line,) = [line for line in page_commands() if part in line]
    for word, place in places.items():
        line = re.sub(rf"(?<![\w/]){word}(?![\w.])", str(place), line)
    return line.replace("python ", f"{sys.executable} ")


def exported(model, name, tmp_path_factory):
    """An export by the page's command, and that it stands in its folder alone."""
    parent = tmp_path_factory.mktemp(name)
    line = command_of(f"format={name}", BUNDLE=model)
    line = re.sub(r"output_dir=\S+", f"output_dir={parent / 'out'}", line)
    handlers = logging.getLogger().handlers[:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["export.py", *shlex.split(line)[3:]])
        GlobalHydra.instance().clear()
        export_command.main()
    logging.getLogger().handlers[:] = handlers
    assert [path.name for path in parent.iterdir()] == ["out"]
    return parent / "out"


def test_the_pages_commands_are_those_run_here():
    named = {command_of(part) for part in COMMANDS}
    assert named == {line.replace("python ", f"{sys.executable} ") for line in page_commands()}


# ONNX


@pytest.fixture(scope="module")
def needs_onnx():
    needs("onnx")


@pytest.fixture(scope="module")
def onnx_folder(needs_onnx, model, tmp_path_factory):
    return exported(model, "onnx", tmp_path_factory)


@pytest.mark.slow
def test_onnx_states_opset_axes_and_parity(onnx_folder):
    import onnx

    graph = onnx.load(onnx_folder / "window.onnx")
    assert {one.domain: one.version for one in graph.opset_import}[""] == 18
    (image,) = graph.graph.input
    assert [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim] == [
        *("batch", 1, "depth", "height", "width")
    ]
    assert [one.name for one in graph.graph.output] == ["logits", "sums", "weights"]
    found = facts_of(onnx_folder)["parity"]
    assert found["runtime"].endswith("opset 18")
    assert set(found["largest_difference"]) == {"logits", "sums", "weights", "subtype"}
    assert max(found["largest_difference"].values()) <= found["tolerance"] == 1e-4


@pytest.mark.slow
def test_the_example_predicts_a_case_from_the_export_alone(onnx_folder, ct, expected, tmp_path):
    assert "pancreas_mtl" not in re.findall(
        r"import (\w+)", (ROOT / "docs/examples/onnx_case.py").read_text()
    )
    line = command_of("onnx_case.py", CT=ct)
    line = line.replace("exports/onnx", str(onnx_folder))
    line = line.replace("exports/mask", str(tmp_path / "mask"))
    run = subprocess.run(shlex.split(line), cwd=ROOT, check=True, capture_output=True, text=True)
    mask = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(mask.affine, nib.load(ct).affine)
    assert mask.shape == expected[0].shape
    assert (np.asanyarray(mask.dataobj) != expected[0]).mean() < 1e-3
    np.testing.assert_allclose([float(p) for p in run.stdout.split()], expected[1], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"head": "attention"}, {"head": "gap"}, {"regions": True}])
def test_onnx_agrees_with_any_head_and_with_regions(changes, needs_onnx, plan, ct, tmp_path):
    settings = MODEL | changes
    torch.manual_seed(1)
    network = MultitaskUNet(plan, NetworkConfig(**settings | {"stages": (0, 1)}))
    save_bundle(tmp_path / "bundle", network.state_dict(), plan, {"model": settings})
    found = export_bundle(tmp_path / "bundle", tmp_path / "out", format_name="onnx")
    assert set(found["largest_difference"]) == {"logits", "sums", "weights", "subtype"}
    command = [
        sys.executable,
        "docs/examples/onnx_case.py",
        tmp_path / "out",
        ct,
        tmp_path / "m.nii",
    ]
    run = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    volume = read_image(ct)
    answer = Predictor.from_bundle(tmp_path / "bundle", device="cpu").predict(volume)
    mask = np.asanyarray(nib.load(tmp_path / "m.nii").dataobj)
    assert (mask != to_source(answer.labels, volume.source)).mean() < 1e-3
    probabilities = [float(p) for p in run.stdout.split()]
    np.testing.assert_allclose(probabilities, answer.subtype_probabilities, atol=1e-4)


@pytest.mark.slow
def test_an_onnx_file_of_another_network_is_refused(needs_onnx, model, plan, tmp_path, monkeypatch):
    from pancreas_mtl.interop import onnx

    other = MultitaskUNet(plan, NetworkConfig(**MODEL | {"stages": (0, 1)})).eval()
    trace = onnx.trace_window
    monkeypatch.setattr(onnx, "trace_window", lambda one: trace(replace(one, network=other)))
    with pytest.raises(CaseError, match="disagrees with torch"):
        export_bundle(model, tmp_path / "new" / "out", format_name="onnx")
    assert list(tmp_path.iterdir()) == []


# OpenVINO


@pytest.mark.slow
def test_openvino_agrees_at_any_size(model, tmp_path_factory, caplog):
    needs("openvino")
    from pancreas_mtl.inference.engines.openvino_engine import core

    folder = exported(model, "openvino", tmp_path_factory)
    assert "decomp" not in caplog.text
    network = load_bundle(model).network
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    window = core().compile_model(folder / "window.xml", "CPU", exact)
    classifier = core().compile_model(folder / "classifier.xml", "CPU", exact)
    image = torch.randn(3, 1, 6, 12, 20)
    with torch.inference_mode():
        logits, sums, weights = ExportableWindow(network)(image)
        subtype = ExportableClassifier(network)(sums, weights)
    answer = window({"image": image.numpy()})
    np.testing.assert_allclose(answer["logits"], logits, atol=1e-4)
    evidence = {name: answer[name] for name in ("sums", "weights")}
    np.testing.assert_allclose(classifier(evidence)["subtype"], subtype, atol=1e-3)


# MONAI


@pytest.fixture(scope="module")
def monai_folder(model, tmp_path_factory):
    needs("monai-bundle")
    return exported(model, "monai_bundle", tmp_path_factory)


@pytest.mark.slow
def test_monai_runs_the_bundle_with_both_outputs(monai_folder, ct, expected, tmp_path):
    line = command_of("monai.bundle run", IMAGES=ct.parent, OUTPUT=tmp_path)
    line = line.replace("exports/monai", str(monai_folder))
    subprocess.run(["bash", "-c", line], cwd=ROOT, check=True, capture_output=True)
    mask = nib.load(tmp_path / "case.nii.gz")
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_allclose(mask.affine, nib.load(ct).affine, atol=1e-5)
    assert (np.asanyarray(mask.dataobj) != expected[0]).mean() < 1e-3
    header, row = (tmp_path / "subtype_probabilities.csv").read_text().splitlines()
    assert header == "Names,p0,p1,p2"
    assert row.split(",")[0] == "case.nii.gz"
    np.testing.assert_allclose([float(p) for p in row.split(",")[1:]], expected[1], atol=1e-4)


@pytest.mark.slow
def test_the_bundle_stands_on_its_own(monai_folder):
    for path in (monai_folder / "scripts").rglob("*.py"):
        assert "from pancreas_mtl" not in path.read_text(), path
        assert "hydra" not in path.read_text(), path
    assert (monai_folder / "LICENSE").exists()
    metadata = json.loads((monai_folder / "configs" / "metadata.json").read_text())
    assert set(metadata["network_data_format"]["outputs"]) == {"segmentation", "subtype"}
    assert torch.load(monai_folder / "models" / "model.pt", weights_only=True)


def test_monais_transforms_prepare_an_image_as_we_do(model, ct):
    needs("monai-bundle")
    from monai.bundle import ConfigParser

    from pancreas_mtl.interop.monai_config import inference_config

    bundle = load_bundle(model)
    text = json.dumps(inference_config(bundle)).replace('"scripts.', '"pancreas_mtl.')
    transform = ConfigParser(json.loads(text)).get_parsed_content("preprocessing")
    image = transform({"image": str(ct)})["image"]
    ours = prepare_image(read_image(ct), bundle.plan.intensity, bundle.plan.spacing_mm)
    np.testing.assert_allclose(image[0], ours, atol=1e-4)
    corner = image.affine @ torch.tensor([-0.5, -0.5, -0.5, 1.0], dtype=image.affine.dtype)
    source = image.meta["source_affine"]
    np.testing.assert_allclose(corner, source @ torch.tensor([-0.5, -0.5, -0.5, 1.0]).to(source))


def test_a_bundle_that_was_made_to_run_code_is_refused_by_type(model):
    needs("monai-bundle")
    from pancreas_mtl.interop.monai_config import inference_config

    bundle = load_bundle(model)
    for key, value in (("hidden", "$exit()"), ("dropout", "$exit()"), ("stages", ["$exit()"])):
        hostile = replace(bundle, config={"model": MODEL | {key: value}})
        with pytest.raises(ValueError, match="exit"):
            inference_config(hostile)
    hostile = replace(bundle, config={"model": MODEL | {"detach_head": "$exit()"}})
    assert "exit" not in json.dumps(inference_config(hostile))


def test_a_bundle_that_answers_otherwise_fails(model, tmp_path, monkeypatch):
    needs("monai-bundle")
    from pancreas_mtl.interop import monai_bundle

    def run(folder, images, output):
        output.mkdir()
        image = nib.load(images / "sample_0000.nii.gz")
        mask = np.zeros(image.shape, np.uint8)
        nib.save(nib.Nifti1Image(mask, image.affine), output / "sample.nii.gz")

    monkeypatch.setattr(monai_bundle, "run_inference", run)
    with pytest.raises(
        CaseError, match=r"disagrees with torch: labels by [\d.]+, tolerance 0\.001"
    ):
        export_bundle(model, tmp_path / "out", format_name="monai_bundle")
    assert list(tmp_path.iterdir()) == []


# What is the same for every format


def fake(monkeypatch, off):
    """A format `fake` whose networks are torch's own, with one answer off."""

    def write(bundle, folder):
        (folder / "window.bin").write_text("x")

        def runner(module):
            def run(arrays):
                with torch.inference_mode():
                    answers = module(*map(torch.from_numpy, arrays))
                answers = answers if isinstance(answers, tuple) else (answers,)
                named = dict(zip(module.output_names, answers, strict=True))
                if (wrong := named.get(off[0])) is not None:
                    named[off[0]] = wrong + off[1] * max(1.0, float(wrong.abs().max()))
                return [value.numpy() for value in named.values()]

            return run

        window = runner(ExportableWindow(bundle.network))
        classifier = runner(ExportableClassifier(bundle.network))
        return {"runtime": "fake", **parity.check_networks(bundle, window, classifier)}

    module = SimpleNamespace(write=write, FILES={"window": "window.bin", "classifier": "c.bin"})
    monkeypatch.setitem(FORMATS, "fake", export.Format("fake", "write", "fake"))
    monkeypatch.setitem(sys.modules, "pancreas_mtl.interop.fake", module)


@pytest.mark.parametrize("name", ["logits", "sums", "weights", "subtype"])
def test_an_export_that_disagrees_fails_and_leaves_nothing(name, model, tmp_path, monkeypatch):
    fake(monkeypatch, (name, 2e-4))
    with pytest.raises(CaseError, match=rf"disagrees with torch: {name} by 0\.0002.*0\.0001"):
        export_bundle(model, tmp_path / "new" / "out", format_name="fake")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_agrees_is_written_with_its_facts(model, plan, tmp_path, monkeypatch):
    fake(monkeypatch, ("logits", 1e-6))
    export_bundle(model, tmp_path / "new" / "out", format_name="fake")
    facts = facts_of(tmp_path / "new" / "out")
    assert "not a medical device" in (tmp_path / "new" / "out" / "README.md").read_text()
    step = {one["step"]: one for one in facts["preprocessing"]}
    assert step["resample"]["spacing_mm"] == list(plan.spacing_mm)
    assert step["standardise"]["mean_hu"] == plan.intensity.mean_hu
    assert facts["windows"]["patch_size"] == list(plan.patch_size)
    assert facts["windows"]["mirror_axes"] == [0, 1, 2]
    assert facts["networks"]["window"]["file"] == "window.bin"
    assert facts["postprocessing"]["calibration"]["subtype_temperature"] == 1.7
    with pytest.raises(UsageError, match=r"holds an export: .* overwrite=true"):
        export_bundle(model, tmp_path / "new" / "out", format_name="fake")
    (tmp_path / "new" / "out" / "stray").touch()
    export_bundle(model, tmp_path / "new" / "out", format_name="fake", overwrite=True)
    assert not (tmp_path / "new" / "out" / "stray").exists()


def test_a_failed_export_keeps_the_one_before(model, tmp_path, monkeypatch):
    fake(monkeypatch, ("logits", 0))
    export_bundle(model, tmp_path / "out", format_name="fake")
    fake(monkeypatch, ("logits", 1))
    with pytest.raises(CaseError, match="disagrees"):
        export_bundle(model, tmp_path / "out", format_name="fake", overwrite=True)
    assert (tmp_path / "out" / "window.bin").exists()


def test_bad_usage_is_refused_before_any_work(model, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    with pytest.raises(UsageError, match="format=tflite: choose one of onnx, openvino, monai_bund"):
        export_bundle(model, tmp_path / "out", format_name="tflite")
    with pytest.raises(UsageError, match="full is not empty"):
        export_bundle(model, tmp_path / "full", format_name="onnx", overwrite=True)
    with pytest.raises(UsageError, match="mine is a file"):
        export_bundle(model, tmp_path / "full" / "mine", format_name="onnx")
    with pytest.raises(UsageError, match="model=/nowhere: no such folder"):
        export_bundle(Path("/nowhere"), tmp_path / "out", format_name="onnx")


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("onnx", "onnx", "onnx"),
        ("openvino", "openvino", "openvino"),
        ("monai_bundle", "fire", "monai-bundle"),
    ],
)
def test_a_missing_extra_is_named(name, package, extra, model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"pancreas_mtl.interop.{FORMATS[name].module}", raising=False)
    with pytest.raises(UsageError, match=rf"format={name}: .*'pancreas-mtl\[{extra}\]'"):
        export_bundle(model, tmp_path / "out", format_name=name)
    assert list(tmp_path.iterdir()) == []


def test_the_exports_know_every_part_of_a_calibration():
    """Who adds one has to add it to monai_parts.py and docs/examples/onnx_case.py too."""
    applied = {"subtype_temperature", "lesion_bias", "largest_pancreas", "largest_lesion"}
    described = {"coverage", "conformity"}  # conformal sets: in processing.json
    no_answer = {"mask_temperature", "fitted_on"}  # of an entropy; of a person
    of_ensembles = {"answers", "cases"}
    known = applied | described | no_answer | of_ensembles
    assert {field.name for field in fields(Calibration)} == known


def test_a_model_that_only_segments_has_no_classifier(model, plan):
    bundle = load_bundle(model)
    network = MultitaskUNet(plan, NetworkConfig(head="none"))
    only = replace(bundle, network=network.eval())
    facts = processing(only, files={"window": "w", "classifier": "c"}, parity={})
    assert set(facts["networks"]) == {"dtype", "window"}
    assert set(facts["networks"]["window"]["outputs"]) == {"logits"}
    window = ExportableWindow(network)

    def run(arrays):
        with torch.inference_mode():
            return [window(*map(torch.from_numpy, arrays))[0].numpy()]

    assert set(parity.check_networks(only, run, None)["largest_difference"]) == {"logits"}


def test_a_difference_is_a_share_of_the_largest_magnitude():
    reference = np.array([[200.0, -1.0]])
    assert parity.difference(reference - [0.0, 0.2], reference) == pytest.approx(1e-3)
    assert parity.difference(np.array([0.5]), np.array([0.25])) == 0.25
    assert parity.difference(np.zeros((2, 2)), np.zeros((1, 2))) == np.inf
    assert parity.difference(np.array([np.nan]), np.array([0.0])) == np.inf
