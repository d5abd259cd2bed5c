from dataclasses import replace

import pytest
import torch
from monai.networks.nets import DynUNet

from pancreas_mtl.errors import UsageError
from pancreas_mtl.models.classifiers import HEADS
from pancreas_mtl.models.network import MultitaskUNet, NetworkConfig
from pancreas_mtl.types import NUM_LABELS, NUM_SUBTYPES


@pytest.fixture
def image():
    torch.manual_seed(1)
    return torch.randn(2, 1, 8, 16, 16)


@pytest.mark.parametrize("head", list(HEADS))
def test_shapes(plan, image, head):
    output = MultitaskUNet(plan, NetworkConfig(head=head, stages=(0, -1)))(image)
    assert [tuple(level.shape) for level in output.segmentation] == [
        (2, NUM_LABELS, 8, 16, 16),
        (2, NUM_LABELS, 8, 8, 8),
    ]
    assert output.subtype.shape == (2, NUM_SUBTYPES)
    assert output.subtype.dtype == torch.float32
    assert (output.evidence.weights >= 0).all()


def test_flat_loop_equals_monais_nested_network(plan, image):
    plan = replace(plan, kernels=((3, 3, 3),) * 3)
    reference = DynUNet(
        3,
        1,
        NUM_LABELS,
        plan.kernels,
        plan.strides,
        plan.strides[1:],
        filters=plan.channels,
        norm_name=("INSTANCE", {"affine": True}),
        trans_bias=True,
        act_name=("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
    ).eval()
    ours = MultitaskUNet(plan, NetworkConfig(stages=(0,))).eval()
    for name in ("input_block", "downsamples", "bottleneck", "upsamples"):
        getattr(ours, name).load_state_dict(getattr(reference, name).state_dict())
    ours.segmentation_heads[0].load_state_dict(reference.output_block.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours.window(image)[0], reference(image))
    for network in (ours.train(), reference.train()):
        answer = network(image) if network is reference else network.window(image)[0]
        answer.square().mean().backward()
    found, expected = (dict(one.input_block.named_parameters()) for one in (ours, reference))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name].grad, weight.grad)


def test_a_decoder_level_has_the_kernel_of_its_stage(plan):
    kernels = ((1, 3, 3), (3, 1, 3), (3, 3, 3))
    network = MultitaskUNet(replace(plan, kernels=kernels), NetworkConfig(stages=(0,)))
    blocks = [up.conv_block for up in network.upsamples]
    assert [block.conv1.conv.kernel_size for block in blocks] == [(3, 1, 3), (1, 3, 3)]
    assert [block.conv2.conv.kernel_size for block in blocks] == [(3, 1, 3), (1, 3, 3)]


def test_weights_begin_as_dynunets_do(plan):
    torch.manual_seed(0)
    wide = replace(plan, channels=(32, 64, 64))
    for name, weight in MultitaskUNet(wide, NetworkConfig(stages=(0,))).named_parameters():
        if name.startswith(("downsamples", "upsamples")) and name.endswith("conv.weight"):
            spread = weight.detach().std() * (weight[0].numel() * (1 + 0.01**2) / 2) ** 0.5
            assert spread == pytest.approx(1, abs=0.1), name


def test_window_agrees_with_forward(network, image):
    with torch.no_grad():
        output, (logits, evidence) = network(image), network.window(image)
        torch.testing.assert_close(logits, output.segmentation[0])
        torch.testing.assert_close(network.classify(evidence), output.subtype)


@pytest.mark.parametrize("detach", [False, True])
def test_detached_head_leaves_the_encoder_alone(plan, image, detach):
    network = MultitaskUNet(plan, NetworkConfig(stages=(0, 1), detach_head=detach))
    network(image).subtype.sum().backward()
    touched = [p.grad is not None for p in network.input_block.parameters()]
    assert all(touched) != detach
    assert any(touched) != detach
    assert all(p.grad is not None for p in network.subtype_head.parameters())


def test_subtype_has_no_gradient_into_the_decoder(plan, image):
    network = MultitaskUNet(plan, NetworkConfig(stages=(0, 1)))
    network(image).subtype.sum().backward()
    assert all(p.grad is None for p in network.upsamples.parameters())


def test_heads_run_in_float32_under_autocast(network, image):
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(image)
    assert output.segmentation[0].dtype == torch.bfloat16
    assert output.evidence.sums.dtype == output.subtype.dtype == torch.float32


@pytest.mark.parametrize(
    ("head", "stages"), [("lesion", (3,)), ("lesion", (-4,)), ("gap", ()), ("attention", ())]
)
def test_stages_that_are_not_there(plan, head, stages):
    with pytest.raises(UsageError, match=r"model\.stages.*stages, 0 to 2"):
        MultitaskUNet(plan, NetworkConfig(head=head, stages=stages))


def test_the_lesion_head_can_do_with_the_image_alone(plan, image):
    network = MultitaskUNet(plan, NetworkConfig(stages=())).eval()
    with torch.no_grad():
        output, one = network(image), network.look(image[:1])
        torch.testing.assert_close(output.subtype[:1], network.classify(one[1]))
    assert output.evidence.sums.shape[1] == 24
    assert one[2].shape[1] == 8


def test_unknown_head(plan):
    with pytest.raises(
        UsageError, match=r"model\.head=oracle: choose one of gap, attention, lesion"
    ):
        MultitaskUNet(plan, NetworkConfig(head="oracle"))


def test_guide_replaces_the_predicted_mask_patch_by_patch(network, image):
    guide = torch.zeros(2, 1, 8, 16, 16, dtype=torch.int16)
    guide[0, :, 2:5, 4:9, 4:9] = 2
    guide[1] = -1
    with torch.no_grad():
        free, guided = network(image), network(image, guide)
    torch.testing.assert_close(free.evidence.sums[1], guided.evidence.sums[1])
    lesion_vox = guided.evidence.weights[0, 9:21:3].sum()  # of the shells inside
    torch.testing.assert_close(lesion_vox, torch.tensor(3.0 * 5 * 5))


def test_without_a_head_there_is_a_mask_alone(plan, image):
    network = MultitaskUNet(plan, NetworkConfig(head="none")).eval()
    output = network(image)
    assert not network.has_subtype
    assert output.evidence.sums.shape == (2, 0)
    assert not output.subtype.any()
    assert MultitaskUNet(plan, NetworkConfig(stages=(0,))).has_subtype
