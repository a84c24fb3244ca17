"""Average precision on cases that are known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from recipes.precision import (
    average_precision,
    box_overlaps,
    covered,
    interval,
    mask_overlaps,
    match,
    mean_precision,
)


def test_the_better_one_takes_the_object():
    matched = match([0.5, 0.9, 0.7], np.array([[0.9, 0.0], [0.6, 0.1], [0.0, 0.4]]))
    assert matched.scores == (0.9, 0.7, 0.5)
    assert matched.right == (True, False, False)
    assert matched.truths == 2


def test_all_found_is_one_and_none_found_nothing():
    one = match([0.9], np.array([[1.0]]))
    assert average_precision([one, one]) == 1
    assert average_precision([match([], np.zeros((0, 3)))]) == 0
    assert np.isnan(average_precision([match([0.3], np.zeros((1, 0)))]))


def test_half_found_reaches_half_of_the_recalls():
    one, none = match([0.9], np.array([[1.0]])), match([], np.zeros((0, 1)))
    assert average_precision([one, none]) == pytest.approx(51 / 101)


def test_a_false_one_before_a_right_one():
    wrong, right = match([0.9], np.array([[0.1]])), match([0.8], np.array([[0.8]]))
    # One of two objects is found, at a precision of a half.
    assert average_precision([wrong, right]) == pytest.approx(51 / 101 / 2)
    assert average_precision([match([0.95], np.array([[0.8]])), wrong]) == pytest.approx(51 / 101)


def test_precision_is_that_of_the_best_higher_recall():
    pictures = [match([s], np.array([[o]])) for s, o in ((0.9, 1.0), (0.8, 0.0), (0.7, 1.0), (0.6, 0.0))]
    # Recall 1/4 at precision 1, then 2/4 at 2/3.
    assert average_precision(pictures) == pytest.approx((26 + 25 * 2 / 3) / 101)


def test_the_mean_is_over_labels_that_occur():
    right, missed = match([0.9], np.array([[1.0]])), match([], np.zeros((0, 1)))
    absent = match([0.4], np.zeros((1, 0)))
    assert mean_precision([{"a": right}, {"b": missed, "c": absent}]) == pytest.approx(0.5)


def test_overlaps():
    boxes = box_overlaps([(0, 0, 10, 10), (20, 20, 30, 30)], [(0, 5, 10, 15)])
    np.testing.assert_allclose(boxes, [[50 / 150], [0]])
    assert box_overlaps([], [(0, 0, 1, 1)]).shape == (0, 1)
    left, whole = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    left[:, :2] = True
    np.testing.assert_allclose(mask_overlaps([left], [whole, left]), [[0.5, 1]])
    assert mask_overlaps([], [whole]).shape == (0, 1)
    assert covered(np.array([[0.9, 0.8], [0.7, 0.1]])) == [0.9, 0.1]
    assert covered(np.zeros((0, 2))) == [0, 0]


def test_intervals_hold_the_value():
    found = interval([0.0, 1.0] * 50, lambda some: float(np.mean(some)))
    assert found["value"] == 0.5
    assert 0.38 < found["low"] < 0.45
    assert 0.55 < found["high"] < 0.62
    assert found["pictures"] == 100
