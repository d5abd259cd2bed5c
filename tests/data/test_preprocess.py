import json
import threading
from dataclasses import replace

import numpy as np
import pytest

from pancreas_mtl.data.preprocess import normalise, preprocess, preprocess_case
from pancreas_mtl.errors import CaseError
from pancreas_mtl.types import UNKNOWN, Case, Intensity


@pytest.fixture
def case(tmp_path, write_nifti) -> Case:
    rng = np.random.default_rng(0)
    image = rng.integers(-100, 200, size=(12, 10, 6)).astype(np.int16)
    mask = np.zeros(image.shape, dtype=np.uint8)
    mask[3:9, 2:8, 1:5] = 1
    mask[5:7, 4:6, 2:4] = 2
    write_nifti(tmp_path / "a_0000.nii.gz", image)
    write_nifti(tmp_path / "a.nii.gz", mask)
    return Case("a", tmp_path / "a_0000.nii.gz", tmp_path / "a.nii.gz", 1)


def test_at_the_plans_spacing_nothing_is_resampled(case, plan, tmp_path):
    entry = preprocess_case(case, plan=_with_spacing(plan, (4.0, 2.0, 1.5)), cache_dir=tmp_path)
    array = entry.open()
    assert array.shape == (2, 6, 10, 12)
    assert entry.lesion_vox == 8
    assert np.array_equal(np.unique(array[1]), [0, 1, 2])
    assert all(array[1][tuple(at)] == 2 for at in entry.lesion_at)


def test_entry_is_kept_and_does_not_depend_on_the_cases_name(case, plan, tmp_path):
    first = preprocess_case(case, plan=plan, cache_dir=tmp_path)
    written = first.path.stat().st_mtime_ns
    again = preprocess_case(case, plan=plan, cache_dir=tmp_path)
    assert again.path.stat().st_mtime_ns == written
    assert len(list(tmp_path.glob("*.npy"))) == 1


def test_another_plan_or_content_makes_another_entry(case, plan, tmp_path, write_nifti):
    preprocess_case(case, plan=plan, cache_dir=tmp_path)
    preprocess_case(case, plan=_with_spacing(plan, (3.0, 2.0, 2.0)), cache_dir=tmp_path)
    write_nifti(case.image, np.zeros((12, 10, 6), np.int16))
    preprocess_case(case, plan=plan, cache_dir=tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 3


@pytest.mark.parametrize("damage", ["flip a byte", "truncate", "no facts", "bad facts"])
def test_damaged_entry_is_made_again(case, plan, tmp_path, damage):
    entry = preprocess_case(case, plan=plan, cache_dir=tmp_path)
    good = np.array(entry.open())
    facts = entry.path.with_suffix(".json")
    if damage == "flip a byte":
        content = bytearray(entry.path.read_bytes())
        content[-7] ^= 0x40
        entry.path.write_bytes(content)
    elif damage == "truncate":
        entry.path.write_bytes(entry.path.read_bytes()[:-100])
    elif damage == "no facts":
        facts.unlink()
    else:
        facts.write_text(json.dumps({"format": 1}))
    again = preprocess_case(case, plan=plan, cache_dir=tmp_path)
    np.testing.assert_array_equal(again.open(), good)


def test_missing_mask_is_unknown_everywhere(case, plan, tmp_path):
    entry = preprocess_case(Case("a", case.image), plan=plan, cache_dir=tmp_path)
    assert not entry.has_mask
    assert (entry.open()[1] == UNKNOWN).all()


def test_mask_of_another_shape_is_named(case, plan, tmp_path, write_nifti):
    write_nifti(case.mask, np.zeros((12, 10, 5), np.uint8))
    with pytest.raises(CaseError, match=r"a.nii.gz is not on its image's grid"):
        preprocess_case(case, plan=plan, cache_dir=tmp_path)


def test_order_of_the_cases_is_kept_and_one_bad_case_is_reported(case, plan, tmp_path):
    cases = [case, Case("b", case.image, None), Case("c", tmp_path / "absent.nii.gz")]
    with pytest.raises(CaseError, match=r"absent\.nii\.gz"):
        preprocess(cases, plan, tmp_path / "cache", workers=1)
    entries = preprocess(cases[1::-1], plan, tmp_path / "cache", workers=1)
    assert [entry.name for entry in entries] == ["b", "a"]


def test_the_look_into_the_cache_tells_how_far_it_is(case, plan, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("pancreas_mtl.data.pool.LOG_EVERY_S", 0.0)
    cases = [replace(case, name=name) for name in "abc"]
    with caplog.at_level("INFO"):
        preprocess(cases, plan, tmp_path, workers=1)
    assert "look into the cache: 1 of 3, about" in caplog.text


def test_every_bad_case_is_named_or_in_the_log(case, plan, tmp_path, caplog):
    bad = [Case(f"bad{n}", tmp_path / f"absent{n}.nii.gz", None, None) for n in range(5)]
    message = (
        r"^5 of 6 cases cannot be used: bad0: .*absent0.*; bad1: .*; bad2: .*; 2 more are in the "
        r"log\. Mend them, or leave them out$"
    )
    with pytest.raises(CaseError, match=message):
        preprocess([case, *bad], plan, tmp_path / "cache", workers=1)
    assert all(f"preprocess: bad{n}: " in caplog.text for n in range(5))


def test_nothing_half_written_is_left(case, plan, tmp_path):
    cache = tmp_path / "cache"
    preprocess([case], plan, cache, workers=1)
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".npy"]


def test_normalise_clips_then_standardises():
    hu = np.array([-1000.0, 60.0, 1000.0], dtype=np.float32)
    result = normalise(hu, Intensity(60.0, 50.0, -100.0, 250.0))
    np.testing.assert_allclose(result, [-3.2, 0.0, 3.8], atol=1e-6)
    assert hu[0] == -1000.0


def _with_spacing(plan, spacing_mm):
    return type(plan)(**{**vars(plan), "spacing_mm": spacing_mm})


def test_shards_that_meet_in_one_cache_agree(case, plan, tmp_path):
    cases = [replace(case, name=f"copy{n}") for n in range(4)]
    found = {}

    def shard(index):
        found[index] = preprocess(cases, plan, tmp_path / "cache", workers=1)

    threads = [threading.Thread(target=shard, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert {entry.path for entries in found.values() for entry in entries} == {found[0][0].path}
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".json", ".npy"]
    (tmp_path / "alone").mkdir()
    alone = preprocess_case(case, plan=plan, cache_dir=tmp_path / "alone")
    assert np.array_equal(found[3][3].open(), alone.open())
