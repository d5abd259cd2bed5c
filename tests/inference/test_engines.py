import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pancreas_mtl.errors import UsageError
from pancreas_mtl.inference.engines import (
    TorchEngine,
    choose_precision,
    cpu_has_bf16,
    make_engine,
)
from pancreas_mtl.models.network import MultitaskUNet, NetworkConfig
from pancreas_mtl.types import Evidence

ROOT = Path(__file__).resolve().parents[2]


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


def check_device(plan, device, precision):
    """Agreement with fp32 on the CPU, and what a second gets done."""
    network = random_network(plan, "lesion")
    x = images((8, 16, 16), batch=8)
    reference = TorchEngine(network, device="cpu", precision="fp32")(x)
    engine = make_engine("torch", network, plan, device=device, precision=precision)
    logits, evidence = engine(x)
    on_cpu = logits.cpu(), Evidence(evidence.sums.cpu(), evidence.weights.cpu())
    assert_agree(on_cpu, reference, tolerance={"fp32": 5e-3}.get(precision, 0.05))  # CUDA: TF32
    start_s = time.perf_counter()
    for _ in range(20):
        engine(x)[0].cpu()
    seconds = (time.perf_counter() - start_s) / 20
    print(f"\n{device}, {precision}: {x.numel() / seconds / 1e6:.1f} million voxels a second")


def test_a_device_is_checked_on_the_cpu_as_on_others(plan, capsys):
    check_device(plan, "cpu", "fp32")
    assert "million voxels a second" in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda_agrees_with_the_cpu(plan, precision):
    check_device(plan, "cuda", precision)


def openvino_engine(network, plan, **settings):
    pytest.importorskip("openvino", reason="needs the extra openvino")
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


@pytest.mark.slow
def test_openvino_in_bf16_agrees_or_is_refused(plan):
    pytest.importorskip("openvino", reason="needs the extra openvino")
    from pancreas_mtl.inference.engines.openvino_engine import core

    native = "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    network, x = random_network(plan, "lesion"), images((8, 16, 16))
    if not native:
        with pytest.raises(UsageError, match="precision=bf16: this CPU has no bf16"):
            openvino_engine(network, plan, precision="bf16")
        assert openvino_engine(network, plan, precision="auto").precision == "fp32"
        return
    engine = openvino_engine(network, plan, precision="bf16")
    reference = TorchEngine(network, device="cpu", precision="fp32")(x)
    assert_agree(engine(x), reference, tolerance=TOLERANCE["bf16"])


@pytest.mark.slow
def test_openvino_answers_are_not_overwritten_by_the_next_call(plan):
    engine = openvino_engine(random_network(plan, "lesion"), plan, precision="fp32")
    first = engine(images((8, 16, 16), 1))[0]
    kept = first.clone()
    engine(torch.zeros(1, 1, 8, 16, 16))
    np.testing.assert_array_equal(first, kept)


TWO_ENGINES = """
import gc, signal, sys
from pathlib import Path
from pancreas_mtl.inference.bundle import load_bundle
from pancreas_mtl.inference.engines.openvino_engine import OpenVinoEngine
bundle = load_bundle(Path(sys.argv[1]))
engines = [OpenVinoEngine(bundle.network, bundle.plan) for _ in range(2)]
while engines:
    engines.pop(0)
    gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("heard"))
signal.raise_signal(signal.SIGTERM)
"""


@pytest.mark.slow
def test_a_signal_after_engines_that_are_gone_is_heard(bundle):
    pytest.importorskip("openvino", reason="needs the extra openvino")
    command = [sys.executable, "-c", TWO_ENGINES, bundle]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr[-2000:]


@pytest.mark.slow
def test_openvino_says_nothing_to_anyone(plan, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    started = []
    try:
        import openvino_telemetry
    except ImportError:  # absent, or kept out by the export
        pass
    else:
        monkeypatch.setattr(
            openvino_telemetry.Telemetry, "init", lambda *_, **__: started.append(1)
        )
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
    pytest.importorskip("openvino", reason="needs the extra openvino")
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


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp16"), ((8, 6), "bf16")])
def test_a_gpu_that_imitates_bf16_gets_fp16(monkeypatch, capability, expected):
    """torch.cuda.is_bf16_supported() is true for both."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision(torch.device("cuda", 1), "auto") == expected


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(), reason="x86 on Linux"
)
def test_bf16_on_the_cpu_is_what_its_flags_say_not_what_onednn_imitates():
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    assert cpu_has_bf16() == bool({"avx512_bf16", "amx_bf16"} & set(flags))
