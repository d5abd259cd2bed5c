import math

import pytest
import torch

from pancreas_mtl.losses.joint import LossConfig, joint_loss, subtype_weight
from pancreas_mtl.losses.segmentation import level_weights, segmentation_loss
from pancreas_mtl.losses.subtype import lesion_weight, subtype_loss
from pancreas_mtl.types import UNKNOWN, Batch, Evidence, Label, MultitaskOutput


def one_hot_logits(mask, scale=20.0):
    return torch.nn.functional.one_hot(mask[:, 0].long(), 3).movedim(-1, 1).float() * scale


def random_mask(batch=2):
    torch.manual_seed(0)
    return torch.randint(0, 3, (batch, 1, 4, 6, 8))


def test_perfect_segmentation_costs_nothing():
    mask = random_mask()
    assert segmentation_loss([one_hot_logits(mask)], mask) < 1e-3


def test_dice_and_cross_entropy_by_closed_form():
    mask = random_mask()
    p = torch.full((2, 3, 4, 6, 8), 1 / 3)
    dice = 0.0
    for label in (1, 2):
        reference = (mask == label).float().sum()
        dice += 1 - 2 * reference / 3 / (p[:, label].sum() + reference)
    expected = dice / 2 + math.log(3)
    assert segmentation_loss([torch.zeros_like(p)], mask) == pytest.approx(
        float(expected), rel=1e-4
    )


def test_levels_weigh_half_of_the_one_before_and_the_coarsest_nothing():
    assert level_weights(1) == [1.0]
    assert level_weights(3) == pytest.approx([2 / 3, 1 / 3, 0])


def test_coarse_levels_count():
    mask = torch.zeros(1, 1, 4, 8, 8, dtype=torch.long)
    mask[:, :, :, :4] = 2
    fine, half = one_hot_logits(mask), one_hot_logits(mask[..., ::2, ::2])
    quarter = torch.zeros(1, 3, 4, 2, 2)
    assert segmentation_loss([fine, half, quarter], mask) < 0.05
    assert segmentation_loss([fine, half.flip(3), quarter], mask) > 0.3


def test_cases_without_mask_are_left_out():
    mask = random_mask()
    logits = torch.randn(2, 3, 4, 6, 8, requires_grad=True)
    alone = segmentation_loss([logits[:1]], mask[:1])
    mask[1] = UNKNOWN
    both = segmentation_loss([logits], mask)
    torch.testing.assert_close(both, alone)
    both.backward()
    assert (logits.grad[1] == 0).all()
    assert (logits.grad[0] != 0).any()


def test_no_mask_at_all_gives_zero_with_a_gradient():
    logits = torch.randn(1, 3, 4, 4, 4, requires_grad=True)
    loss = segmentation_loss([logits], torch.full((1, 1, 4, 4, 4), UNKNOWN))
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("label", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_uniform_masks_and_huge_logits_stay_finite(label, dtype):
    mask = torch.full((1, 1, 32, 48, 48), label)
    logits = torch.randn(1, 3, 32, 48, 48).mul(1e4).to(dtype).requires_grad_()
    loss = segmentation_loss([logits], mask)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_subtype_loss_is_the_weighted_mean_over_known_cases():
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
    subtype = torch.tensor([0, 2, UNKNOWN])
    weight = torch.tensor([1.0, 0.5, 1.0])
    first = math.log(math.exp(2) + 2) - 2
    expected = (first + 0.5 * math.log(3)) / 2
    assert subtype_loss(logits, subtype, weight) == pytest.approx(expected)


def test_unknown_subtypes_give_zero_with_a_gradient():
    logits = torch.randn(2, 3, requires_grad=True)
    loss = subtype_loss(logits, torch.full((2,), UNKNOWN), torch.ones(2))
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_a_patch_weighs_by_its_share_of_the_lesion():
    mask = torch.zeros(4, 1, 4, 4, 4, dtype=torch.long)
    mask[1, 0, 0, 0, :1] = Label.LESION  # 1 of 8
    mask[2, 0, 0, :2, :4] = Label.LESION  # 8 of 8
    mask[3] = UNKNOWN
    weight = lesion_weight(mask, torch.tensor([8.0, 8.0, 8.0, 0.0]))
    torch.testing.assert_close(weight, torch.tensor([0.0, 0.25, 1.0, 1.0]))


def test_subtype_weight_waits_then_rises():
    config = LossConfig(subtype_weight=0.4, wait=0.2, ramp=0.4)
    values = [subtype_weight(config, progress) for progress in (0, 0.2, 0.4, 0.6, 1)]
    assert values == pytest.approx([0, 0, 0.2, 0.4, 0.4])
    steep = LossConfig(subtype_weight=0.4, wait=0.2, ramp=0)
    assert [subtype_weight(steep, progress) for progress in (0.19, 0.2)] == [0.0, 0.4]


def test_joint_loss_is_the_weighted_sum_of_its_parts():
    mask = random_mask()
    output = MultitaskOutput(
        (torch.randn(2, 3, 4, 6, 8),),
        torch.randn(2, 3),
        Evidence(torch.ones(2, 1), torch.ones(2, 1)),
    )
    batch = Batch(mask, mask, torch.tensor([0, 1]), torch.tensor([9.0, 9.0]), mask, ["a", "b"])
    parts = joint_loss(output, batch, LossConfig(subtype_weight=0.4, ramp=0.2), progress=0.1)
    torch.testing.assert_close(parts.total, parts.segmentation + 0.2 * parts.subtype)


def test_unweighted_patches_without_lesion_count_fully():
    mask = torch.zeros(2, 1, 4, 6, 8, dtype=torch.long)
    mask[1, 0, :2, :2, :2] = Label.LESION
    levels, logits = (torch.randn(2, 3, 4, 6, 8),), torch.tensor([[0.0, 0.0, 3.0], [0.0] * 3])
    output = MultitaskOutput(levels, logits, Evidence(torch.ones(2, 1), torch.ones(2, 1)))
    batch = Batch(mask, mask, torch.tensor([0, 1]), torch.tensor([8.0, 8.0]), mask, ["a", "b"])
    wrong, uniform = math.log(2 + math.exp(3)), math.log(3)
    weighted = joint_loss(output, batch, LossConfig(), progress=1.0)
    assert weighted.subtype == pytest.approx(uniform / 2)
    plain = joint_loss(output, batch, LossConfig(lesion_weighted=False), progress=1.0)
    assert plain.subtype == pytest.approx((wrong + uniform) / 2)
