import torch

from pancreas_mtl.models.window import CaseClassifier, WindowNetwork


def test_the_modules_are_the_network_in_two_steps(network):
    image = torch.randn(2, 1, 8, 16, 16)
    with torch.inference_mode():
        expected = network(image)
        logits, sums, weights = WindowNetwork(network)(image)
        subtype = CaseClassifier(network)(sums, weights)
    torch.testing.assert_close(logits, expected.segmentation[0])
    torch.testing.assert_close(sums, expected.evidence.sums)
    torch.testing.assert_close(weights, expected.evidence.weights)
    torch.testing.assert_close(subtype, expected.subtype)


def test_they_share_the_networks_weights(network):
    traced = {id(p) for p in WindowNetwork(network).parameters()}
    assert traced == {id(p) for p in network.parameters()}
