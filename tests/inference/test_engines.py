import sys

import numpy as np
import pytest
import torch

from pancreas_mtl.errors import UsageError
from pancreas_mtl.inference.engines import TorchEngine, make_engine
from pancreas_mtl.inference.engines.slim import drop_zero_planes
from pancreas_mtl.models.network import MultitaskUNet, NetworkConfig


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def images(size, batch=2):
    torch.manual_seed(3)
    return torch.randn(batch, 1, *size)


def random_network(plan, head):
    torch.manual_seed(0)
    return MultitaskUNet(plan, NetworkConfig(head=head, stages=(0, 1))).eval()


def assert_agree(answer, reference, *, tolerance):
    """`tolerance` is a share of the largest value."""
    for ours, theirs in zip((answer[0], *answer[1]), (reference[0], *reference[1]), strict=True):
        assert ours.dtype == torch.float32
        assert ours.shape == theirs.shape
        if theirs.numel():
            assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


TOLERANCE = {"fp32": 1e-5, "bf16": 0.05}


@pytest.mark.parametrize("precision", TOLERANCE)
def test_torch_agrees_with_fp32(plan, precision):
    network = random_network(plan, "lesion")
    x = images((8, 16, 16))
    reference = TorchEngine(network, device="cpu", precision="fp32")(x)
    engine = TorchEngine(network, device="cpu", precision=precision)
    assert_agree(engine(x), reference, tolerance=TOLERANCE[precision])
    assert engine.classify(reference[1]).shape == (2, 3)


def openvino_engine(network, plan, **settings):
    pytest.importorskip("openvino")
    return make_engine("openvino", network, plan, device="cpu", **settings)


@pytest.mark.parametrize("head", ["lesion", "none"])
def test_openvino_agrees_with_torch_at_any_size(plan, head):
    network = random_network(plan, head)
    engine = openvino_engine(network, plan, precision="fp32")
    for size, batch in (((8, 16, 16), 2), ((4, 8, 20), 1), ((8, 16, 16), 1)):
        x = images(size, batch)
        reference = TorchEngine(network, device="cpu", precision="fp32")(x)
        assert_agree(engine(x), reference, tolerance=1e-4)
        torch.testing.assert_close(engine.classify(reference[1]), network.classify(reference[1]))


def test_openvino_in_bf16_agrees_or_is_refused(plan):
    openvino = pytest.importorskip("openvino")
    native = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    network, x = random_network(plan, "lesion"), images((8, 16, 16))
    if not native:
        with pytest.raises(UsageError, match="precision=bf16: this CPU has no bf16"):
            openvino_engine(network, plan, precision="bf16")
        assert openvino_engine(network, plan, precision="auto").precision == "fp32"
        return
    engine = openvino_engine(network, plan, precision="bf16")
    reference = TorchEngine(network, device="cpu", precision="fp32")(x)
    assert_agree(engine(x), reference, tolerance=TOLERANCE["bf16"])


def test_openvino_answers_are_not_overwritten_by_the_next_call(plan):
    engine = openvino_engine(random_network(plan, "lesion"), plan, precision="fp32")
    first = engine(images((8, 16, 16), 1))[0]
    kept = first.clone()
    engine(torch.zeros(1, 1, 8, 16, 16))
    np.testing.assert_array_equal(first, kept)


def test_openvino_says_nothing_to_anyone(plan, monkeypatch, tmp_path):
    telemetry = pytest.importorskip("openvino_telemetry")
    monkeypatch.setenv("HOME", str(tmp_path))
    started = []
    monkeypatch.setattr(telemetry.Telemetry, "init", lambda *_, **__: started.append(1))
    openvino_engine(random_network(plan, "none"), plan, precision="fp32")
    assert started == []
    assert not (tmp_path / "intel").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cuda:0", "precision": "fp32"}, "device=cuda:0: engine=openvino runs on the"),
        ({"device": "cpu", "precision": "fp16"}, "precision=fp16: engine=openvino has fp32"),
    ],
)
def test_openvino_bad_choices(plan, settings, message):
    pytest.importorskip("openvino")
    with pytest.raises(UsageError, match=message):
        make_engine("openvino", random_network(plan, "none"), plan, **settings)


def test_openvino_not_installed(plan, monkeypatch):
    module = "pancreas_mtl.inference.engines.openvino_engine"
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(UsageError, match=r"pip install 'pancreas-mtl\[openvino\]'"):
        make_engine("openvino", random_network(plan, "none"), plan, device="cpu", precision="fp32")


def test_unknown_engine(plan):
    with pytest.raises(UsageError, match="engine=tensorrt: choose one of torch, openvino"):
        make_engine("tensorrt", random_network(plan, "none"), plan, device="cpu", precision="fp32")


def test_kernels_lose_their_zero_planes_and_nothing_else(plan):
    network, x = random_network(plan, "lesion"), images((8, 16, 16))
    block = network.upsamples[-1].conv_block
    with torch.no_grad():
        for conv in (block.conv1.conv, block.conv2.conv, network.downsamples[0].conv1.conv):
            conv.weight[:, :, [0, 2]] = 0
        block.conv1.conv.weight[..., [0, 2]] = 0
        before = network.window(x)
        drop_zero_planes(network)
        after = network.window(x)
    assert block.conv1.conv.kernel_size == (1, 3, 1)
    assert block.conv2.conv.kernel_size == (1, 3, 3)
    assert network.downsamples[0].conv1.conv.kernel_size == (1, 3, 3)
    assert network.bottleneck.conv1.conv.kernel_size == (3, 3, 3)
    assert_agree(after, before, tolerance=1e-5)
