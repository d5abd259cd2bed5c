import pytest
import torch
import torch.nn.functional as F

from pancreas_mtl.models.classifiers import HEADS, dilated
from pancreas_mtl.types import Evidence, Label

CHANNELS = (4, 6)
REDUCTIONS = [(1, 1, 1), (1, 2, 2)]


def make(head, stages=(0, 1)):
    torch.manual_seed(0)
    return HEADS[head](CHANNELS, REDUCTIONS, stages=stages, hidden=8, dropout=0.1).eval()


def features(depth=8):
    torch.manual_seed(1)
    return [torch.randn(1, 4, depth, 8, 8), torch.randn(1, 6, depth, 4, 4)]


def probabilities(depth=8):
    torch.manual_seed(2)
    return torch.randn(1, 3, depth, 8, 8).softmax(1)


@pytest.mark.parametrize("head", ["attention"])
def test_evidence_of_two_halves_adds_up_to_the_whole(head):
    model, f, p = make(head), features(), probabilities()
    whole = model.gather(f, p)
    halves = [model.gather([x[:, :, s] for x in f], p[:, :, s]) for s in _halves(8)]
    added = Evidence(*(a + b for a, b in zip(*halves, strict=True)))
    torch.testing.assert_close(added.sums, whole.sums)
    torch.testing.assert_close(model(added), model(whole))


def test_lesion_evidence_adds_up_where_no_ring_crosses_the_cut():
    model, f, p = make("lesion"), features(), probabilities()
    p[:, Label.LESION, 2:6] = 0
    whole = model.gather(f, p)
    halves = [model.gather([x[:, :, s] for x in f], p[:, :, s]) for s in _halves(8)]
    torch.testing.assert_close(halves[0].sums + halves[1].sums, whole.sums)
    torch.testing.assert_close(halves[0].weights + halves[1].weights, whole.weights)


def test_lesion_head_sees_only_the_lesion_its_ring_and_the_pancreas():
    model, f = make("lesion", stages=(0,)), features()
    p = torch.zeros(1, 3, 8, 8, 8)
    p[:, Label.BACKGROUND] = 1
    p[:, Label.BACKGROUND, 3:5, 3:5, 3:5] = 0
    p[:, Label.LESION, 3:5, 3:5, 3:5] = 1
    changed = [x.clone() for x in f]
    changed[0][:, :, 0] = 99.0  # far from the lesion
    torch.testing.assert_close(model(model.gather(f, p)), model(model.gather(changed, p)))
    changed[0][:, :, 3, 3, 3] = 99.0
    assert not torch.allclose(model(model.gather(f, p)), model(model.gather(changed, p)))


def test_lesion_head_pools_means_and_spread():
    model = make("lesion", stages=(0,))
    feature = torch.zeros(1, 4, 4, 4, 4)
    feature[:, :, 1, 1, 1], feature[:, :, 1, 1, 2] = 1.0, 3.0
    p = torch.zeros(1, 3, 4, 4, 4)
    p[:, Label.LESION, 1, 1, 1:3] = 1
    evidence = model.gather([feature], p)
    lesion, _, _, squares = (evidence.sums / evidence.weights.clamp_min(1e-6)).chunk(4, 1)
    torch.testing.assert_close(lesion, torch.full((1, 4), 2.0))
    torch.testing.assert_close(squares - lesion**2, torch.ones(1, 4))


@pytest.mark.parametrize("head", list(HEADS))
def test_no_lesion_at_all_gives_finite_logits_and_gradients(head):
    model = make(head)
    f = [x.requires_grad_() for x in features()]
    p = torch.zeros(1, 3, 8, 8, 8)
    p[:, Label.BACKGROUND] = 1
    logits = model(model.gather(f, p))
    logits.sum().backward()
    assert torch.isfinite(logits).all()
    assert torch.isfinite(f[0].grad).all()


def test_scaling_the_evidence_changes_nothing():
    for head in HEADS:
        model = make(head)
        evidence = model.gather(features(), probabilities())
        twice = Evidence(evidence.sums * 2, evidence.weights * 2)
        torch.testing.assert_close(model(evidence), model(twice), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", list(HEADS))
def test_averages_weighted_by_the_attention_are_those_the_head_takes(head):
    model, f, p = make(head), features(), probabilities()
    weights = model.attention(f, p)[0]
    assert weights.shape[1:] == p.shape[2:]
    assert (weights >= 0).all()
    shares = weights / weights.sum(dim=(1, 2, 3), keepdim=True)
    fine = [F.interpolate(x, p.shape[2:])[0] for x in f]
    averages = {
        "gap": [shares] * 2,
        "attention": shares.chunk(2),
        "lesion": shares.chunk(2),
    }[head]
    expected = [
        torch.einsum("rdhw,cdhw->rc", share, feature).flatten()
        for share, feature in zip(averages, fine, strict=True)
    ]
    evidence = model.gather(f, p)
    found = (evidence.sums / evidence.weights)[0]
    if head == "lesion":  # each stage ends with the squares, which are pooled as the lesion is
        found = torch.cat([part[: -len(part) // 4] for part in found.split(model.widths)])
    torch.testing.assert_close(torch.cat(expected), found)


def _halves(n):
    return slice(0, n // 2), slice(n // 2, n)


@pytest.mark.parametrize("shape", [(2, 1, 5, 6, 7), (1, 1, 1, 2, 1)])
def test_dilation_is_a_max_pool_of_stride_one(shape):
    region = torch.rand(shape)
    torch.testing.assert_close(dilated(region), F.max_pool3d(region, 3, stride=1, padding=1))
