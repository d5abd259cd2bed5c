import pytest
import torch

from pancreas_mtl.inference.exportable import (
    ExportableClassifier,
    ExportableWindow,
    example_image,
)
from pancreas_mtl.models.classifiers import HEADS
from pancreas_mtl.models.network import MultitaskUNet, NetworkConfig


@pytest.mark.parametrize("head", [*HEADS, "none"])
def test_a_trace_answers_as_window_does_at_another_size(plan, head):
    torch.manual_seed(0)
    network = MultitaskUNet(plan, NetworkConfig(head=head, stages=(0, 1))).eval()
    module = ExportableWindow(network)
    example = example_image(plan)
    assert tuple(example.shape) == (1, 1, 4, 8, 8)
    image = torch.randn(2, 1, 8, 16, 12)
    with torch.no_grad():
        traced = torch.jit.trace(module, example)(image)
        logits, evidence = network.window(image)
    assert len(traced) == len(module.output_names) == (1 if head == "none" else 3)
    for ours, theirs in zip(traced, (logits, *evidence), strict=False):
        torch.testing.assert_close(ours, theirs)


def test_the_classifier_of_a_windows_evidence_is_the_networks_subtype(network):
    image = torch.randn(2, 1, 8, 16, 16)
    with torch.no_grad():
        _, sums, weights = ExportableWindow(network)(image)
        subtype = ExportableClassifier(network)(sums, weights)
        torch.testing.assert_close(subtype, network(image).subtype)
