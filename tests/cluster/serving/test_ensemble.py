"""Temporal ensembling, against the sum written out."""

import numpy as np

from longview.cluster.serving.ensemble import ensembled


def test_actions_for_one_step_are_averaged_by_age() -> None:
    rng = np.random.default_rng(0)
    chunks = [(first, rng.normal(size=(4, 2)).astype(np.float32)) for first in (3, 5, 6)]
    found = ensembled(chunks, 6, decay=0.5)
    assert found.dtype == np.float32
    # Steps 6, 7, 8 and 9 are reached by three, two, two and one of the decisions.
    for row, reaching in enumerate([chunks, chunks[1:], chunks[1:], chunks[2:]]):
        step, weights = 6 + row, np.exp(-0.5 * np.arange(len(reaching)))
        expected = sum(
            w * actions[step - first] for w, (first, actions) in zip(weights, reaching, strict=True)
        )
        np.testing.assert_allclose(found[row], expected / weights.sum(), rtol=1e-6)


def test_a_decision_alone_stays_as_it_is() -> None:
    actions = np.arange(8, dtype=np.float32).reshape(4, 2)
    np.testing.assert_array_equal(ensembled([(0, actions)], 0, decay=0.01), actions)
    old = np.full((4, 2), 100, np.float32)
    np.testing.assert_array_equal(ensembled([(0, old), (4, actions)], 4, decay=0.01), actions)
