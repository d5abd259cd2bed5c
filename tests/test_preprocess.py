"""The command that plans a dataset and fills the cache before any training."""

import pytest
from commands import call
from trainings import OVERRIDES

PLAN = [one for one in OVERRIDES if one.startswith("plan")]


@pytest.fixture
def prepare(tiny_quiz, tmp_path):
    """Call it for one folder, with more keys."""

    def prepare(*keys):
        places = [
            f"data.root={tiny_quiz}",
            f"paths.cache={tmp_path / 'cache'}",
            "workers=1",
            "audit=false",
        ]
        return call(
            "pancreas_mtl.preprocess", *PLAN, *places, f"output_dir={tmp_path / 'p'}", *keys
        )

    return prepare


def test_shards_fill_one_cache_and_share_the_plan(prepare, tmp_path):
    plans = []
    for index in range(2):
        done = prepare(f"shard.index={index}", "shard.count=2")
        assert done.code == 0, done.stderr
        assert f"{tmp_path / 'cache'}: 5 of 10 cases are in the cache" in done.stdout
        plans.append((tmp_path / "p" / "plan.json").read_text())
    assert plans[0] == plans[1]
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 10


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("fold=1", "holds a plan with fold=0, not 1: leave it as it was"),
        ("plan.batch_size=3", "holds a plan with plan.batch_size="),
    ],
)
def test_other_settings_are_not_ignored(prepare, tmp_path, key, message):
    assert prepare().code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "p").iterdir()}
    refused = prepare(key)
    assert refused.code == 2
    assert message in refused.last_line
    assert {path: path.read_bytes() for path in (tmp_path / "p").iterdir()} == before


def test_settings_that_made_no_plan_may_be_changed(prepare, tmp_path):
    refused = prepare("plan.patch_size=[17,17,17]")
    assert refused.code == 2, refused.stderr
    assert not (tmp_path / "p" / "plan.json").exists()
    assert prepare().code == 0


def test_a_plan_of_unknown_settings_is_left_alone(prepare, tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "plan.json").write_text("{}")
    refused = prepare()
    assert refused.code == 2
    assert "holds a plan, but no preprocess.yaml" in refused.last_line
