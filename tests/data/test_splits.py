from pathlib import Path

import numpy as np
import pytest

from pancreas_mtl.data.splits import make_splits, save_splits
from pancreas_mtl.errors import UsageError
from pancreas_mtl.types import Case


def cases(counts=(62, 106, 84), split="train"):
    return [
        Case(f"{split}_{subtype}_{i:03}", Path("x"), Path("y"), subtype, split)
        for subtype, count in enumerate(counts)
        for i in range(count)
    ]


def test_folds_are_a_partition_stratified_by_subtype():
    splits = make_splits(cases())
    validation = [name for fold in splits.folds for name in fold.validation]
    assert sorted(validation) == sorted(case.name for case in cases())
    for fold in splits.folds:
        assert not set(fold.train) & set(fold.validation)
        assert len(fold.train) + len(fold.validation) == 252
        assert len(fold.validation) in (50, 51)
        per_subtype = np.bincount([int(name.split("_")[1]) for name in fold.validation])
        np.testing.assert_allclose(per_subtype, np.array([62, 106, 84]) / 5, atol=1)


def test_folds_do_not_depend_on_the_order_of_the_cases():
    assert make_splits(cases()) == make_splits(cases()[::-1])


def test_official_validation_is_in_no_fold():
    splits = make_splits(cases() + cases((9, 15, 12), "validation") + cases((72,), "test"))
    assert len(splits.choose("official").train) == 252
    assert len(splits.choose("official").validation) == 36
    for fold in splits.folds:
        assert not any(name.startswith(("validation", "test")) for name in fold.validation)


def test_given_folds_are_used_as_they_are():
    splits = make_splits(cases((3, 3, 3)), [(["train_0_000"], ["train_1_000"])])
    assert splits.choose(0).train == ("train_0_000",)
    with pytest.raises(UsageError, match="fold=1"):
        splits.choose(1)


def test_cases_without_any_label_are_left_out():
    bare = [Case(f"bare{i}", Path("x")) for i in range(9)]
    splits = make_splits(cases((3, 3, 3)) + bare)
    assert not any("bare" in name for fold in splits.folds for name in fold.train)


def test_unknown_folds():
    splits = make_splits(cases())
    for fold in (5, -1, "first", "official"):
        with pytest.raises(UsageError, match=f"fold={fold}"):
            splits.choose(fold)


def test_too_few_cases():
    with pytest.raises(UsageError, match="4 labelled training cases"):
        make_splits(cases((4, 0, 0)))


def test_file_is_written_once(tmp_path):
    path = tmp_path / "splits.json"
    save_splits(make_splits(cases()), path)
    save_splits(make_splits(cases()), path)
    with pytest.raises(UsageError, match=r"cases have changed .*; give another output_dir$"):
        save_splits(make_splits(cases((62, 106, 85))), path)
