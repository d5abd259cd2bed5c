from __future__ import annotations

from itertools import combinations, product

import networkx
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pancreas_mtl.metrics.lesions import (
    FROC_RATES,
    Candidates,
    LesionCounts,
    count_lesions,
    froc,
    score_candidates,
)

SHAPE = (6, 12, 16)


def boxes(*spans: tuple[int, int]) -> np.ndarray:
    """A mask of boxes two voxels high, from column to column."""
    mask = np.zeros(SHAPE, bool)
    for start, stop in spans:
        mask[2:4, 4:8, start:stop] = True
    return mask


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ([], [], LesionCounts(0, 0, 0)),
        ([], [(1, 5)], LesionCounts(1, 0, 0)),
        ([(1, 5)], [], LesionCounts(0, 1, 0)),
        ([(1, 5), (8, 12)], [(1, 5), (8, 12)], LesionCounts(2, 2, 2)),
        ([(1, 3), (4, 6)], [(1, 6)], LesionCounts(1, 2, 1)),  # two parts hit one lesion: one counts
        ([(1, 12)], [(1, 5), (7, 12)], LesionCounts(2, 1, 1)),  # one blob covers two lesions
        ([(0, 1)], [(1, 5)], LesionCounts(1, 1, 0)),  # neighbours without overlap
    ],
)
def test_lesions_are_matched_one_to_one(prediction, reference, expected):
    assert count_lesions(boxes(*prediction), boxes(*reference), min_iou=0.1) == expected


def test_a_hit_needs_enough_overlap():
    prediction, reference = boxes((0, 10)), boxes((9, 15))  # 1 of 15 columns in common
    assert count_lesions(prediction, reference, min_iou=1 / 15).found == 1
    assert count_lesions(prediction, reference, min_iou=1.01 / 15).found == 0


def test_matching_finds_as_many_pairs_as_there_are():
    """The wide one overlaps most with the first lesion, which would leave the small one alone."""
    prediction = boxes((0, 2), (3, 12))
    reference = boxes((0, 8), (9, 13))
    assert count_lesions(prediction, reference, min_iou=0.1) == LesionCounts(2, 2, 2)


def test_voxels_that_touch_by_a_corner_are_one_lesion():
    mask = np.zeros(SHAPE, bool)
    mask[1, 1, 1] = mask[2, 2, 2] = True
    assert count_lesions(mask, mask, min_iou=0.1) == LesionCounts(1, 1, 1)


def test_candidates_know_what_they_hit():
    scores = 0.9 * boxes((1, 5)) + 0.4 * boxes((12, 14))
    assert score_candidates(scores, boxes((1, 5), (7, 10)), min_iou=0.1) == Candidates(
        (0.9, 0.4), (0, -1), 2
    )
    assert score_candidates(scores, boxes(), min_iou=0.1) == Candidates((0.9, 0.4), (-1, -1), 0)
    assert score_candidates(0.0 * scores, boxes((1, 5)), min_iou=0.1) == Candidates((), (), 1)


def test_froc_by_hand():
    cases = [
        Candidates((0.9, 0.5), (0, -1), 1),  # found, with a false alarm below
        Candidates((0.8, 0.7), (-1, 0), 1),  # a false alarm above the find
        Candidates((), (), 0),  # nothing there, nothing said
        Candidates((0.6, 0.3), (1, 1), 2),  # one of two found, twice
    ]
    curve = froc(cases)
    assert curve.thresholds == (0.9, 0.8, 0.7, 0.6, 0.5)
    assert curve.sensitivity == (0.25, 0.25, 0.5, 0.75, 0.75)
    assert curve.false_positives_per_case == (0, 0.25, 0.25, 0.25, 0.5)
    expected = [0.25 if rate < 0.25 else 0.75 for rate in FROC_RATES]
    assert curve.mean_sensitivity == pytest.approx(np.mean(expected))


def test_froc_of_cases_without_answer():
    """They miss their lesions, and leave the rate of false positives alone."""
    answered = [Candidates((0.9, 0.5), (0, -1), 1)]
    curve = froc(answered, missed=3)
    assert curve.sensitivity == (0.25, 0.25)
    assert curve.false_positives_per_case == froc(answered).false_positives_per_case == (0, 1)


def random_lesions(rng):
    """A prediction and a reference of several small lesions each."""
    field, error = (gaussian_filter(rng.normal(size=(8, 14, 13)), 1.0) for _ in range(2))
    return field + 0.7 * error > 0.45, field > 0.35


def lesions_by_graph(mask):
    """Sets of voxels that are connected, corners included, by search in a graph."""
    voxels = [tuple(v) for v in np.argwhere(mask).tolist()]
    graph = networkx.Graph()
    graph.add_nodes_from(voxels)
    pairs = combinations(voxels, 2)
    graph.add_edges_from((a, b) for a, b in pairs if np.abs(np.subtract(a, b)).max() == 1)
    return [set(part) for part in networkx.connected_components(graph)]


HIT = 0.35


def iou(one, other):
    return len(one & other) / len(one | other)


@pytest.mark.parametrize("seed", range(4))
def test_lesions_and_froc_agree_with_graphs_and_loops(seed):
    rng = np.random.default_rng(seed)
    cases, candidates, lesions = [], [], 0
    for case in range(3):
        prediction, reference = random_lesions(rng)
        parts, targets = lesions_by_graph(prediction), lesions_by_graph(reference)
        graph = networkx.Graph()
        pairs = product(range(len(parts)), range(len(targets)))
        hits = [(a, b) for a, b in pairs if iou(parts[a], targets[b]) >= HIT]
        graph.add_edges_from((("prediction", a), ("reference", b)) for a, b in hits)
        found = len(networkx.max_weight_matching(graph, maxcardinality=True))
        expected = LesionCounts(len(targets), len(parts), found)
        assert count_lesions(prediction, reference, min_iou=HIT) == expected
        lesions += len(targets)
        scores = np.zeros(prediction.shape)
        for part in parts:
            score = round(rng.uniform(0.1, 0.9), 2)
            scores[tuple(np.transpose(list(part)))] = score
            best = max(range(len(targets)), key=lambda b: iou(part, targets[b]), default=None)
            hit = best is not None and iou(part, targets[best]) >= HIT
            candidates.append((score, (case, best) if hit else None))
        cases.append(score_candidates(scores, reference, min_iou=HIT))
    curve = froc(cases)
    assert len(curve.thresholds) > 3
    assert any(curve.false_positives_per_case)
    for threshold, rate, sensitivity in zip(
        curve.thresholds, curve.false_positives_per_case, curve.sensitivity, strict=True
    ):
        above = [what for score, what in candidates if score >= threshold]
        assert rate == above.count(None) / 3
        assert sensitivity == len({*above} - {None}) / lesions


def test_froc_without_lesions_or_without_candidates():
    assert froc([Candidates((0.5,), (-1,), 0)]) is None
    assert froc([]) is None
    nothing = froc([Candidates((), (), 1)])
    assert nothing.mean_sensitivity == 0
    assert nothing.thresholds == ()
