import json
import os
import pickle

import pytest
import torch
import yaml

from pancreas_mtl.data.files import atomic_folder
from pancreas_mtl.errors import UsageError
from pancreas_mtl.inference.bundle import bundle_digest, load_bundle, save_bundle
from pancreas_mtl.inference.calibration import Calibration, save_calibration


def test_round_trip(bundle, plan, network):
    loaded = load_bundle(bundle)
    assert loaded.plan == plan
    for name, value in network.state_dict().items():
        torch.testing.assert_close(loaded.network.state_dict()[name], value)
    assert not loaded.network.training


def test_holds_no_pickle(bundle):
    assert sorted(path.name for path in bundle.iterdir()) == [
        "README.md",
        "calibration.json",
        "config.yaml",
        "model.safetensors",
        "plan.json",
    ]
    for path in bundle.iterdir():
        with pytest.raises(
            (
                pickle.UnpicklingError,
                ValueError,
                EOFError,
                KeyError,
                IndexError,
                AttributeError,
                ImportError,
                UnicodeDecodeError,
                TypeError,
            ),
            match="",
        ):
            pickle.loads(path.read_bytes())


def test_saving_again_replaces_it_as_a_whole(bundle, plan, network):
    (bundle / "stray").touch()
    save_bundle(
        bundle, network.state_dict(), plan, yaml.safe_load((bundle / "config.yaml").read_text())
    )
    assert not (bundle / "stray").exists()
    assert [path.name for path in bundle.parent.iterdir() if path.name.startswith(".")] == []


def test_folders_of_one_name_may_be_written_at_once(tmp_path):
    (tmp_path / ".a-bundle.0123abcd").mkdir()  # of a process that was killed
    with atomic_folder(tmp_path / "a" / "bundle") as first:
        (first / "x").touch()
        with atomic_folder(tmp_path / "b" / "bundle") as second:
            (second / "y").touch()
    assert [path.name for path in (tmp_path / "a" / "bundle").iterdir()] == ["x"]
    assert [path.name for path in (tmp_path / "b" / "bundle").iterdir()] == ["y"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_digest_names_the_content(bundle):
    before = bundle_digest(bundle)
    save_calibration(bundle, Calibration(largest_lesion=True))
    assert bundle_digest(bundle) != before
    assert load_bundle(bundle).calibration.largest_lesion


@pytest.mark.parametrize("name", ["model.safetensors", "plan.json", "config.yaml"])
@pytest.mark.parametrize("damage", ["remove", "empty", "noise"])
def test_damaged_files_are_named(bundle, name, damage):
    path = bundle / name
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else os.urandom(64))
    with pytest.raises(UsageError, match=name):
        load_bundle(bundle)


def test_another_version_is_refused(bundle):
    path = bundle / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"format": 1}))
    with pytest.raises(UsageError, match="bundle format 1, this version reads 2"):
        load_bundle(bundle)


def test_weights_of_another_network_are_refused(bundle):
    raw = json.loads((bundle / "plan.json").read_text())
    (bundle / "plan.json").write_text(json.dumps(raw | {"channels": [4, 8, 16]}))
    with pytest.raises(UsageError, match=r"does not fit plan\.json"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    "config",
    [
        "format: 2\nmodel: {_target_: os.system, command: 'touch HACKED'}\n",
        "format: 2\nmodel: !!python/object/apply:os.system ['touch HACKED']\n",
        "format: 2\nmodel: [1, 2]\n",
        "format: 2\n",
        "- 1\n",
    ],
)
def test_config_is_never_executed(bundle, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (bundle / "config.yaml").write_text(config)
    with pytest.raises(UsageError, match=r"config.yaml"):
        load_bundle(bundle)
    assert not (tmp_path / "HACKED").exists()


def test_no_folder(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        load_bundle(tmp_path / "absent")


def test_the_folder_of_a_run_is_told_from_its_bundle(tmp_path):
    (tmp_path / "bundle").mkdir()
    with pytest.raises(UsageError, match=f"give model={tmp_path / 'bundle'}"):
        load_bundle(tmp_path)
