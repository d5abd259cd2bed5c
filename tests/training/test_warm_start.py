import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pancreas_mtl.errors import UsageError
from pancreas_mtl.inference.bundle import save_bundle
from pancreas_mtl.models.network import PARTS, MultitaskUNet, NetworkConfig
from pancreas_mtl.training.module import OptimizerConfig, parameter_groups
from pancreas_mtl.training.warm_start import WarmStart, load_matching, warm_start

HEAD = NetworkConfig(stages=(0, 1))
RUN = {"data": {"layout": "quiz", "root": "DIR"}, "fold": 0}


def other(plan, config=HEAD):
    torch.manual_seed(1)
    return MultitaskUNet(plan, config)


def test_all_weights_of_an_equal_network_are_taken(bundle, network, plan, caplog):
    fresh = other(plan)
    with caplog.at_level(logging.INFO):
        warm_start(fresh, WarmStart(pretrained=str(bundle)), plan, run=RUN)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[name], value)
    assert "encoder 18 of 18, decoder 20 of 20, head 7 of 7" in caplog.text
    assert all(parameter.requires_grad for parameter in fresh.parameters())


def test_what_does_not_fit_is_listed_and_left_as_it_was(bundle, plan, caplog):
    fresh = other(plan, NetworkConfig(head="gap", stages=(-1,), hidden=0))
    before = fresh.subtype_head.classify[1].weight.clone()
    with caplog.at_level(logging.INFO):
        coarse = replace(plan, spacing_mm=(1, 1, 1))
        warm_start(fresh, WarmStart(pretrained=str(bundle)), coarse, run=RUN)
    assert torch.equal(fresh.subtype_head.classify[1].weight, before)
    assert "head 0 of 5" in caplog.text
    assert "not taken, of another head: subtype_head.standardise.mean" in caplog.text
    assert "of the bundle, not in this network: subtype_head.classify.4.weight" in caplog.text
    assert "another spacing" in caplog.text


@pytest.mark.parametrize(
    ("change", "leaks"),
    [
        ({"fold": 1}, True),
        ({}, False),
        ({"fold": 1, "data": {"layout": "quiz", "root": "B"}}, False),
        ({"fold": 1, "data": {"layout": "phantom", "root": f"{Path('DIR').resolve()}/"}}, True),
    ],
    ids=["another fold", "the same run", "other data", "another name of the data"],
)
def test_weights_that_know_the_held_out_cases_are_told(
    bundle, network, plan, caplog, change, leaks
):
    config = {"model": {"head": "lesion", "stages": [0, 1]}} | RUN
    save_bundle(bundle, network.state_dict(), plan, config)
    with caplog.at_level(logging.WARNING):
        warm_start(other(plan), WarmStart(pretrained=str(bundle)), plan, run=RUN | change)
    assert ("fold 0 of the same data" in caplog.text) == leaks


def test_weights_know_what_those_knew_that_they_were_started_from(
    bundle, network, plan, caplog, tmp_path
):
    model = {"head": "lesion", "stages": [0, 1]}
    save_bundle(bundle, network.state_dict(), plan, {"model": model} | RUN)
    second = tmp_path / "second"
    config = {"model": model | {"pretrained": str(bundle)}} | RUN | {"fold": 1}
    save_bundle(second, network.state_dict(), plan, config)
    with caplog.at_level(logging.WARNING):
        warm_start(other(plan), WarmStart(pretrained=str(second)), plan, run=RUN | {"fold": 1})
    assert f"{bundle} was trained on fold 0 of the same data" in caplog.text


def test_a_bundle_that_trained_on_what_it_held_out_knows_it(bundle, network, plan, caplog):
    config = {"model": {"head": "lesion", "stages": [0, 1]}, "overfit_cases": 4} | RUN
    save_bundle(bundle, network.state_dict(), plan, config)
    with caplog.at_level(logging.WARNING):
        warm_start(other(plan), WarmStart(pretrained=str(bundle)), plan, run=RUN)
    assert "fold 0 of the same data, its held-out cases as well, so its weights" in caplog.text


@pytest.mark.parametrize(
    "config",
    [
        NetworkConfig(head="gap", stages=(-1,), hidden=32),
        NetworkConfig(stages=(0, 2)),  # the deeper stages are equally wide in this plan
    ],
    ids=["another kind", "other stages"],
)
def test_a_head_that_pools_otherwise_starts_at_random(plan, config):
    widths = (plan.channels[0], *[plan.channels[1]] * (len(plan.channels) - 1))
    plan = replace(plan, channels=widths)
    ours, theirs = other(plan, config), MultitaskUNet(plan, HEAD)
    before = {name: value.clone() for name, value in ours.subtype_head.state_dict().items()}
    match = load_matching(ours, theirs)
    assert not any(name.startswith("subtype_head") for name in match.taken)
    assert "subtype_head.classify.1.bias" in match.other_head
    for name, value in ours.subtype_head.state_dict().items():
        assert torch.equal(value, before[name])


def test_stages_counted_from_either_end_are_the_same(plan):
    ours = other(plan, NetworkConfig(stages=(0, 1 - len(plan.channels))))
    assert "subtype_head.classify.1.weight" in load_matching(ours, MultitaskUNet(plan, HEAD)).taken


def test_names_by_what_became_of_them(plan, network, monkeypatch):
    weights = network.state_dict()
    weights["new"] = torch.zeros(1)
    del weights["segmentation_heads.0.conv.conv.bias"]
    weights["segmentation_heads.1.conv.conv.bias"] = torch.zeros(7)
    monkeypatch.setattr(network, "state_dict", lambda: weights)
    match = load_matching(other(plan), network)
    assert match.unused == ("new",)
    assert match.missing == ("segmentation_heads.0.conv.conv.bias",)
    assert match.other_shape == ("segmentation_heads.1.conv.conv.bias",)
    assert len(match.taken) == len(network.state_dict()) - 2


def test_a_bundle_of_which_nothing_fits_is_refused(bundle, plan, monkeypatch):
    fresh = other(plan)
    monkeypatch.setattr(fresh, "state_dict", dict)  # as if it had no weight of these names
    with pytest.raises(UsageError, match=r"no weight of it fits.*plan.bundle"):
        warm_start(fresh, WarmStart(pretrained=str(bundle)), plan, run=RUN)


def test_frozen_parts_are_not_trained(network, plan):
    warm_start(network, WarmStart(freeze=("encoder", "decoder")), plan, run=RUN)
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {"subtype_head"}
    groups = parameter_groups(network, OptimizerConfig())
    assert [group["name"] for group in groups] == ["head"]


def test_the_parts_are_the_whole_network(network):
    listed = [id(p) for part in PARTS for p in network.parameters_of(part)]
    assert sorted(listed) == sorted(id(p) for p in network.parameters())


def test_rates_of_the_parts(network):
    config = OptimizerConfig(lr=1.0, head_lr=3.0, encoder_scale=0.1, rate_scale=2.0)
    rates = {group["name"]: group["lr"] for group in parameter_groups(network, config)}
    assert rates == {"encoder": pytest.approx(0.2), "decoder": 2.0, "head": 6.0}


@pytest.mark.parametrize(
    ("freeze", "message"),
    [(("body",), "model.freeze=body: choose of encoder"), (tuple(PARTS), "nothing to train")],
)
def test_bad_choices_are_refused(freeze, message):
    with pytest.raises(UsageError, match=message):
        WarmStart(freeze=freeze)
