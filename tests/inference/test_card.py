import re

import pytest
import yaml

from pancreas_mtl.inference.bundle import bundle_digest, load_bundle, save_bundle, save_card
from pancreas_mtl.inference.card import Origin, Part

METRICS = {
    "n_cases": 36,
    "whole_pancreas": {
        "dsc": {"mean": 0.912, "ci95": [0.9, 0.923]},
        "nsd": {"mean": 0.81, "ci95": [0.79, 0.83]},
        "hd95_mm": {"mean": 4.25, "ci95": [3.5, 5.0]},
        "nsd_tolerance_mm": 1.0,
    },
    "lesion": {"dsc": {"mean": 0.5, "ci95": None}, "nsd": {"mean": None, "ci95": None}},
    "subtype": {"macro_f1": {"mean": 0.6, "ci95": [0.45, 0.75]}},
    "targets": [
        {"name": "whole_pancreas_dsc", "target": 0.91, "value": 0.912, "met": True},
        {"name": "macro_f1", "target": 0.7, "value": 0.6, "met": False},
        {"name": "lesion_dsc", "target": 0.31, "value": None, "met": None},
    ],
}
PARTS = (Part("train", 252, 250, (62, 106, 84)), Part("validation", 36, 36, (9, 15, 12)))


def card(bundle):
    return (bundle / "README.md").read_text()


def tables_of(text):
    """The tables of a Markdown page, each a list of rows of equal length."""
    found = re.findall(r"(?:^\|.*\|$\n)+", text, re.MULTILINE)
    return [[line.strip("|").split("|") for line in table.splitlines()] for table in found]


def test_every_bundle_has_one(bundle, plan):
    text = card(bundle)
    assert "not a medical device" in text
    assert "4 x 8 x 8" not in text
    assert "8 x 16 x 16 voxels" in text
    assert "4.0 x 1.5 x 2.0 mm" in text
    assert "this bundle has not been evaluated" in text
    assert "Not recorded." in text
    for title in ("Model", "Data", "Metrics", "Intended use", "Limits", "How to run", "Licence"):
        assert f"\n## {title}\n" in text


def test_it_states_data_and_metrics_with_intervals(bundle):
    save_card(bundle, origin=Origin("quiz", phantom=False, parts=PARTS), metrics=METRICS)
    text = card(bundle)
    assert "| train | 252 | 250 | 62 | 106 | 84 |" in text
    assert "| validation | 36 | 36 | 9 | 15 | 12 |" in text
    assert "| Whole-pancreas DSC | 0.912 | 0.900 to 0.923 |" in text
    assert "| Lesion DSC | 0.500 | none, a single case |" in text
    assert "Lesion NSD" not in text
    assert "On the 36 validation cases" in text
    assert "whole_pancreas_dsc 0.91 (reached here), macro_f1 0.7 (missed here)." in text
    assert "phantom" not in text


def test_its_tables_are_tables(bundle):
    save_card(bundle, origin=Origin("quiz", phantom=False, parts=PARTS), metrics=METRICS)
    tables = tables_of(card(bundle))
    assert len(tables) == 3
    for table in tables:
        assert len({len(row) for row in table}) == 1, table
        assert set("".join(table[1])) == {"-"}


def test_phantoms_are_called_phantoms(bundle):
    save_card(bundle, origin=Origin("quiz", phantom=True, parts=PARTS), metrics=METRICS)
    assert "Trained on **phantoms**, which are drawings and not patients" in card(bundle)


def test_weights_that_know_the_cases_are_told_beside_the_figures(bundle):
    origin = Origin("quiz", phantom=False, parts=PARTS, known=("A was trained on fold 1",))
    save_card(bundle, origin=origin, metrics=METRICS)
    text = card(bundle)
    assert "**The weights may have been trained on some of these cases: A was trained on" in text
    assert "\n\n\n" not in text


def test_an_imported_network_tells_where_it_is_from(tmp_path, plan, network):
    nnunet = {
        "dataset": "Dataset172",
        "configuration": "3d_fullres",
        "trainer": "nnUNetTrainer",
        "fold": "0",
        "checkpoint": "checkpoint_final.pth",
    }
    config = {"model": {"head": "none"}, "nnunet": nnunet}
    save_bundle(tmp_path / "b", network.state_dict(), plan, config)
    text = card(tmp_path / "b")
    assert "nnU-Net v2, dataset Dataset172, 3d_fullres, nnUNetTrainer, fold 0" in text
    assert "It tells no subtype." in text
    assert "subtype_probabilities" not in text


def test_the_header_is_yaml_and_the_text_has_no_gap(bundle):
    save_card(bundle, origin=Origin("quiz", phantom=False, parts=PARTS), metrics=METRICS)
    _, header, text = card(bundle).split("---\n", 2)
    assert yaml.safe_load(header)["library_name"] == "pancreas_mtl"
    assert "\n\n\n" not in text
    assert not re.search(r"[{}]{2}|{%|None", text)


def test_the_digest_leaves_it_out(bundle):
    before = bundle_digest(bundle)
    save_card(bundle, metrics=METRICS)
    assert bundle_digest(bundle) == before
    (bundle / "README.md").unlink()
    assert load_bundle(bundle).digest == before


@pytest.mark.parametrize("seed", [0, None])
def test_the_variant_is_named_where_there_is_one(bundle, seed):
    path = bundle / "config.yaml"
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(config | {"experiment": "balanced", "fold": 0, "seed": seed}))
    save_card(bundle)
    assert ("variant balanced, fold 0, seed 0" in card(bundle)) == (seed is not None)
    assert "# Pancreas, lesion and lesion subtype from CT: balanced\n" in card(bundle)
