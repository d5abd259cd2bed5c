import numpy as np

from pancreas_mtl.evaluation.benchmarks import compare, loading, resampling


def test_pairs_alternate_after_a_warm_up_and_results_are_compared():
    calls = []

    def way(name, value):
        return name, lambda: calls.append(name) or np.array([1.0, value])

    result = compare("x", way("a", 2.0), way("b", 2.5), pairs=3)
    assert calls == ["a", "b"] * 4
    assert result.difference == 0.5
    assert "largest difference 0.5" in result.line()


def test_resampling_agrees_with_scipy():
    assert resampling(pairs=1).difference < 1e-3


def test_loading_counts():
    result = loading(3, steps=2)
    assert result.cases == 3
    assert result.seconds_per_patch > 0
