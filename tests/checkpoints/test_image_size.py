"""Tables of positions at another resolution."""

from __future__ import annotations

import numpy as np
import pytest

from gemmary.checkpoints.image_size import POSITION, resampled, with_image_size
from gemmary.checkpoints.random_weights import random_checkpoint
from gemmary.errors import GemmaryError
from tests.checkpoints.test_big_vision import SMALL
from tests.tiny import TINY


def test_corners_stay_and_what_lies_between_is_interpolated() -> None:
    random = np.random.default_rng(0)
    table = random.normal(size=(9, 5)).astype(np.float32)
    grown = resampled(table, 7).reshape(7, 7, 5)
    old = table.reshape(3, 3, 5)
    for new, first in ((0, 0), (6, 2)):
        for column, second in ((0, 0), (6, 2), (3, 1)):
            np.testing.assert_allclose(grown[new, column], old[first, second], atol=1e-6)
    np.testing.assert_allclose(grown[1, 0], old[0, 0] * 2 / 3 + old[1, 0] / 3, atol=1e-6)
    rows = [np.interp(np.linspace(0, 2, 7), range(3), old[1, :, channel]) for channel in range(5)]
    np.testing.assert_allclose(grown[3], np.stack(rows, axis=1), atol=1e-6)


@pytest.mark.parametrize("side", [1, 2, 3, 8])
def test_a_constant_table_stays_constant(side: int) -> None:
    np.testing.assert_allclose(resampled(np.full((16, 2), 3, np.float32), side), 3, rtol=1e-6)


def test_a_model_at_another_resolution() -> None:
    source = random_checkpoint(SMALL, "random:tiny", None, 0)
    assert with_image_size(source, 12) is source
    larger = with_image_size(source, 20)
    assert larger.config.vision is not None
    assert larger.config.vision.num_patches == 25
    assert larger.lookup(POSITION).shape == (25, 24)
    assert "resampled from 12 to 20 pixels" in larger.notices[-1]
    assert larger.lookup("embed").shape == source.lookup("embed").shape


def test_sizes_that_are_refused() -> None:
    source = random_checkpoint(SMALL, "random:tiny", None, 0)
    with pytest.raises(GemmaryError, match="13 pixels do not divide into patches of 4"):
        with_image_size(source, 13)
    with pytest.raises(GemmaryError, match="more than the model's context"):
        with_image_size(source, 400)
    text = random_checkpoint(TINY["gemma"], "random:x", None, 0)
    with pytest.raises(GemmaryError, match="sees no pictures"):
        with_image_size(text, 12)
