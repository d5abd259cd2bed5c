import torch

from pancreas_mtl.losses.segmentation import segmentation_loss
from pancreas_mtl.models.network import MultitaskUNet, NetworkConfig
from pancreas_mtl.models.regions import label_logits
from pancreas_mtl.types import Label


def test_the_largest_logit_is_what_painting_gives():
    torch.manual_seed(0)
    regions = 3 * torch.randn(4, 2, 6, 7, 8)
    whole, lesion = regions.unbind(1)
    painted = torch.where(lesion > 0, Label.LESION, (whole > 0) * int(Label.PANCREAS))
    assert torch.equal(label_logits(regions).argmax(1), painted)


def test_probabilities_far_inside_and_far_from_a_lesion():
    far = torch.tensor([[30.0, 0.4], [-0.7, -30.0]]).view(2, 2, 1, 1, 1)
    shares = label_logits(far).softmax(1).flatten(1)
    torch.testing.assert_close(shares[0, Label.LESION], torch.tensor(0.4).sigmoid())
    torch.testing.assert_close(shares[1, Label.PANCREAS], torch.tensor(-0.7).sigmoid())


def test_the_network_answers_with_labels_and_trains_on_regions(plan):
    torch.manual_seed(0)
    network = MultitaskUNet(plan, NetworkConfig(stages=(0, 1), regions=True))
    image, mask = torch.randn(2, 1, 8, 16, 16), torch.zeros(2, 1, 8, 16, 16, dtype=torch.int16)
    mask[:, :, 2:6, 4:12, 4:12], mask[:, :, 3:5, 6:9, 6:9] = 1, 2
    image += 2 * mask
    assert network.window(image)[0].shape == (2, 3, 8, 16, 16)
    assert network.look(image)[0].shape == (2, 3, 8, 16, 16)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        output = network(image)
        assert output.segmentation[0].shape[1] == 2
        loss = segmentation_loss(output.segmentation, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_the_loss_of_regions_that_are_certain_and_right_is_zero():
    mask = torch.zeros(1, 1, 4, 4, 4)
    mask[..., 1:3], mask[..., 1, 1, 1] = 1, 2
    sure = torch.cat([mask > 0, mask == 2], 1).float() * 60 - 30
    assert segmentation_loss([sure], mask) < 1e-4
    wrong = sure.clone()
    wrong[:, 0] *= -1
    assert segmentation_loss([wrong], mask) > 10
