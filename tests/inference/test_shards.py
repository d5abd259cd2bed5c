import json
import threading

import pytest

from pancreas_mtl.errors import UsageError
from pancreas_mtl.inference.shards import Shard, failures_of, is_complete, is_done, join_shards
from pancreas_mtl.inference.writer import CaseRecord, append, close_output, open_output

NAMES = [f"case{n}" for n in range(7)]


def predict(folder, names, *, failing=(), fingerprint="A"):
    open_output(folder, fingerprint, overwrite=False)
    records = []
    for name in names:
        error = "bad" if name in failing else None
        records.append(CaseRecord(name, f"{name}.nii.gz", (0.2, 0.3, 0.5), error=error))
        append(folder, records[-1])
        if error is None:
            (folder / f"{name}.nii.gz").write_text(name)
            (folder / "previews").mkdir(exist_ok=True)
            (folder / "previews" / f"{name}.png").write_text(name)
    close_output(folder, records, {"versions": {}, "fingerprint": fingerprint})


def contents(folder):
    files = {p.relative_to(folder): p.read_text() for p in folder.rglob("*") if p.is_file()}
    return {str(k): v for k, v in files.items() if k.name not in ("run.json", ".lock")}


def test_parts_cover_everything_once():
    parts = [Shard(index, 3).take(NAMES) for index in range(3)]
    assert sorted(name for part in parts for name in part) == NAMES
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert Shard().take(NAMES) == NAMES


@pytest.mark.parametrize(("index", "count"), [(3, 3), (-1, 3), (0, 0)])
def test_a_part_that_does_not_exist(index, count):
    with pytest.raises(UsageError, match=f"shard.index={index} shard.count={count}"):
        Shard(index, count)


def test_the_last_part_makes_what_one_process_makes(tmp_path):
    whole, output = tmp_path / "whole", tmp_path / "output"
    predict(whole, NAMES, failing=["case4"])
    for index in (2, 0, 1):
        shard = Shard(index, 3)
        predict(shard.folder(output), shard.take(NAMES), failing=["case4"])
        assert join_shards(output, 3) == (index == 1)
    assert contents(output) == contents(whole)
    one, other = (json.loads((folder / "run.json").read_text()) for folder in (whole, output))
    assert other["shards"] == 3
    assert other["failures"] == one["failures"]
    assert [case["name"] for case in other["cases"]] == [case["name"] for case in one["cases"]]


def test_a_part_without_answers_does_not_take_the_sets_from_the_others(tmp_path):
    for index, sets in ((0, (0, 2)), (1, None)):
        folder = Shard(index, 2).folder(tmp_path)
        open_output(folder, "A", overwrite=False)
        probabilities = (0.2, 0.3, 0.5) if sets else None
        record = CaseRecord(f"case{index}", "x", probabilities, conformal_set=sets)
        close_output(folder, [record], {"versions": {}, "fingerprint": "A"})
    assert join_shards(tmp_path, 2)
    table = (tmp_path / "subtype_probabilities.csv").read_text().splitlines()
    assert table == ["Names,p0,p1,p2,conformal_set", "case0.nii.gz,0.2,0.3,0.5,0|2"]


def test_failures_are_told_again_before_and_after_the_join(tmp_path):
    for index in (0, 1):
        shard = Shard(index, 2)
        predict(shard.folder(tmp_path), shard.take(NAMES), failing=["case4"])
    assert [one.name for one in failures_of(tmp_path, Shard(0, 2))] == ["case4"]
    assert failures_of(tmp_path, Shard(1, 2)) == []
    join_shards(tmp_path, 2)
    assert [one.name for one in failures_of(tmp_path, Shard(1, 2))] == ["case4"]


def test_parts_of_another_input_are_not_joined(tmp_path):
    for index in (0, 1):
        folder = Shard(index, 2).folder(tmp_path)
        open_output(folder, "A", overwrite=False)
        close_output(folder, [], {"versions": {}, "fingerprint": "A", "sources": str(index)})
    with pytest.raises(UsageError, match="input has changed between the shards"):
        join_shards(tmp_path, 2)


def test_a_join_that_was_interrupted_is_done_again(tmp_path):
    for index in range(2):
        shard = Shard(index, 2)
        predict(shard.folder(tmp_path), shard.take(NAMES))
    (tmp_path / "shards" / "0-of-2" / "case0.nii.gz").rename(tmp_path / "case0.nii.gz")
    assert join_shards(tmp_path, 2)
    assert all((tmp_path / f"{name}.nii.gz").exists() for name in NAMES)
    assert not (tmp_path / "shards").exists()


def test_parts_that_end_together_join_once(tmp_path):
    for index in range(4):
        shard = Shard(index, 4)
        predict(shard.folder(tmp_path), shard.take(NAMES))
    threads = [threading.Thread(target=join_shards, args=(tmp_path, 4)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(json.loads((tmp_path / "run.json").read_text())["cases"]) == len(NAMES)
    assert len((tmp_path / "subtype_results.csv").read_text().splitlines()) == 1 + len(NAMES)


def test_a_finished_part_is_not_predicted_again(tmp_path):
    shard = Shard(0, 2)
    assert not is_done(tmp_path, shard, "A", overwrite=False)
    predict(shard.folder(tmp_path), shard.take(NAMES))
    assert is_done(tmp_path, shard, "A", overwrite=False)
    assert not is_done(tmp_path, Shard(1, 2), "A", overwrite=False)
    assert not is_complete(tmp_path)
    with pytest.raises(UsageError, match=r"remove .* by hand"):
        is_done(tmp_path, shard, "A", overwrite=True)


@pytest.mark.parametrize("joined", [False, True])
def test_parts_of_another_model_are_not_taken_for_this_ones(tmp_path, joined):
    for index in range(2 if joined else 1):
        shard = Shard(index, 2)
        predict(shard.folder(tmp_path), shard.take(NAMES))
    assert join_shards(tmp_path, 2) == joined
    with pytest.raises(UsageError, match="holds shards with other models or settings"):
        is_done(tmp_path, Shard(1, 2), "B", overwrite=False)


def test_parts_that_began_together_with_different_models_are_not_joined(tmp_path):
    for index, fingerprint in enumerate("AB"):
        shard = Shard(index, 2)
        predict(shard.folder(tmp_path), shard.take(NAMES), fingerprint=fingerprint)
    with pytest.raises(UsageError, match="holds shards with other models or settings"):
        join_shards(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".gz"] == []
