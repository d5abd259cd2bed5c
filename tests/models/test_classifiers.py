import pytest
import torch
import torch.nn.functional as F

from pancreas_mtl.models.classifiers import HEADS
from pancreas_mtl.models.pooling import texture
from pancreas_mtl.types import Evidence, Intensity, Label, Plan

PLAN = Plan(
    spacing_mm=(3.0, 1.5, 1.5),
    patch_size=(8, 8, 8),
    batch_size=2,
    channels=(4, 6),
    kernels=((1, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2)),
    intensity=Intensity(mean_hu=60.0, std_hu=50.0, low_hu=-100.0, high_hu=250.0),
)


def make(head, stages=(0, 1)):
    torch.manual_seed(0)
    return HEADS[head](PLAN, stages=stages, hidden=8, dropout=0.1).eval()


def features(depth=8):
    torch.manual_seed(1)
    return [torch.randn(1, 4, depth, 8, 8), torch.randn(1, 6, depth, 4, 4)]


def image(depth=8):
    torch.manual_seed(3)
    return torch.randn(1, 1, depth, 8, 8)


def probabilities(depth=8):
    torch.manual_seed(2)
    return torch.randn(1, 3, depth, 8, 8).softmax(1)


@pytest.mark.parametrize("head", ["attention"])
def test_evidence_of_two_halves_adds_up_to_the_whole(head):
    model, i, f, p = make(head), image(), features(), probabilities()
    whole = model.gather(i, f, p)
    halves = [model.gather(i[:, :, s], [x[:, :, s] for x in f], p[:, :, s]) for s in _halves(8)]
    added = Evidence(*(a + b for a, b in zip(*halves, strict=True)))
    torch.testing.assert_close(added.sums, whole.sums)
    torch.testing.assert_close(model(added), model(whole))


def test_lesion_evidence_adds_up_where_no_ring_crosses_the_cut():
    model, i, f, p = make("lesion"), image(), features(), probabilities()
    p[:, Label.LESION, 2:6] = 0
    whole = model.gather(i, f, p)
    halves = [model.gather(i[:, :, s], [x[:, :, s] for x in f], p[:, :, s]) for s in _halves(8)]
    torch.testing.assert_close(halves[0].sums + halves[1].sums, whole.sums)
    torch.testing.assert_close(halves[0].weights + halves[1].weights, whole.weights)


def test_lesion_head_sees_only_the_lesion_its_ring_and_the_pancreas():
    model, i, f = make("lesion", stages=(0,)), image(), features()
    p = torch.zeros(1, 3, 8, 8, 8)
    p[:, Label.BACKGROUND] = 1
    p[:, Label.BACKGROUND, 3:5, 3:5, 3:5] = 0
    p[:, Label.LESION, 3:5, 3:5, 3:5] = 1
    logits = model(model.gather(i, f, p))
    far, near = (0, 0, 0), (3, 3, 3)
    for where, is_seen in ((far, False), (near, True)):
        changed_f, changed_i = [x.clone() for x in f], i.clone()
        changed_f[0][(0, slice(None), *where)] = changed_i[(0, 0, *where)] = 99.0
        for gathered in (model.gather(i, changed_f, p), model.gather(changed_i, f, p)):
            assert torch.allclose(model(gathered), logits) != is_seen


def test_lesion_head_pools_means_and_spread():
    model = make("lesion", stages=(0,))
    feature = torch.zeros(1, 4, 4, 4, 4)
    feature[:, :, 1, 1, 1], feature[:, :, 1, 1, 2] = 1.0, 3.0
    p = torch.zeros(1, 3, 4, 4, 4)
    p[:, Label.LESION, 1, 1, 1:3] = 1
    evidence = model.gather(torch.zeros(1, 1, 4, 4, 4), [feature], p)
    means = evidence.sums / evidence.weights.clamp_min(1e-6)
    lesion, _, _, spread = model.describe(means)[:, model.looks :].chunk(4, 1)
    torch.testing.assert_close(lesion, torch.full((1, 4), 2.0))
    torch.testing.assert_close(spread, torch.ones(1, 4))


def test_lesion_head_sees_the_image_in_shells():
    """A ball of 1 in a background of 0, and a pancreas of 5: inside 1, outside 0."""
    model = make("lesion", stages=(0,))
    lesion = torch.zeros(1, 1, 5, 21, 21)
    lesion[..., 6:15, 6:15] = 1
    p = torch.cat([1 - lesion, torch.zeros_like(lesion), lesion], 1)
    p[:, :, :, :, :2] = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1, 1)
    picture = lesion.clone()
    picture[..., :2] = 5
    evidence = model.gather(picture, [torch.zeros(1, 4, 5, 21, 21)], p)
    looks = (evidence.sums / evidence.weights)[0, : model.looks].view(8, 3)
    torch.testing.assert_close(looks[:, 0], torch.tensor([0.0, 0, 0, 1, 1, 1, 1, 5]))
    assert looks[2, 1] < 0 < looks[3, 1], "detail changes its sign at the border"
    assert looks[2, 2] > 0.8 < looks[3, 2], "where the gradient is"
    assert looks[0, 2] == looks[6, 2] == 0


def test_what_is_hardly_there_tells_nothing():
    """A lesion of one voxel has no core; its classifier is given the mean of others instead."""
    model = make("lesion", stages=(0,))
    p = torch.zeros(1, 3, 8, 8, 8)
    p[:, Label.BACKGROUND] = 1
    p[0, :, 3, 3, 3] = torch.tensor([0.0, 0.0, 1.0])
    evidence = model.gather(image(), features(), p)
    seen = []
    model.classify.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(evidence)
    look = seen[0][0, : model.looks].view(8, 3)
    assert (look[4:7] == 0).all(), "the shells deeper inside"
    assert (look[3] != 0).all(), "the lesion itself"


@pytest.mark.parametrize("head", list(HEADS))
def test_no_lesion_at_all_gives_finite_logits_and_gradients(head):
    model = make(head)
    f = [x.requires_grad_() for x in features()]
    p = torch.zeros(1, 3, 8, 8, 8)
    p[:, Label.BACKGROUND] = 1
    logits = model(model.gather(image(), f, p))
    logits.sum().backward()
    assert torch.isfinite(logits).all()
    assert torch.isfinite(f[0].grad).all()


def test_scaling_the_evidence_changes_nothing():
    for head in HEADS:
        model = make(head)
        evidence = model.gather(image(), features(), probabilities())
        twice = Evidence(evidence.sums * 2, evidence.weights * 2)
        torch.testing.assert_close(model(evidence), model(twice), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", list(HEADS))
def test_averages_weighted_by_the_attention_are_those_the_head_takes(head):
    model, i, f, p = make(head), image(), features(), probabilities()
    weights = model.attention(f, p)[0]
    assert weights.shape[1:] == p.shape[2:]
    assert (weights >= 0).all()
    shares = weights / weights.sum(dim=(1, 2, 3), keepdim=True)
    fine = [F.interpolate(x, p.shape[2:])[0] for x in f]
    averages = {
        "gap": [shares] * 2,
        "attention": shares.chunk(2),
        "lesion": shares[8:].chunk(2),
    }[head]
    expected = [
        torch.einsum("rdhw,cdhw->rc", share, feature).flatten()
        for share, feature in zip(averages, fine, strict=True)
    ]
    evidence = model.gather(i, f, p)
    found = (evidence.sums / evidence.weights)[0]
    if head == "lesion":  # each stage ends with the squares, which are pooled as the lesion is
        look, *blocks = found.split([model.looks, *model.widths])
        found = torch.cat([look, *(block[: -len(block) // 4] for block in blocks)])
        expected.insert(0, torch.einsum("rdhw,cdhw->rc", shares[:8], texture(i)[0]).flatten())
    torch.testing.assert_close(torch.cat(expected), found)


def _halves(n):
    return slice(0, n // 2), slice(n // 2, n)
