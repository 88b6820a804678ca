"""The golden study: every status in one grid. Its builders are in `made_study`."""

import numpy as np
import pandas as pd
import pytest
from made_study import ETAS, EVERY_STATUS, GAMMAS, FakeReader, figure_five, history_of


@pytest.fixture
def golden():
    """Figure 5's grid with every status in it."""
    return figure_five(EVERY_STATUS)


@pytest.fixture
def golden_reader(golden):
    decisions = pd.DataFrame(
        [
            ("trial-fsam-1.0-0.0001", "fsam-1.0-0.0001", 1, 3, 0.55, 0.81, 9, 9, True, "run-1", 0),
            ("trial-fsam-0.1-1.0", "fsam-0.1-1.0", 1, 3, 0.93, np.nan, 1, 1, False, "run-1", 1),
        ],
        columns=["trial", "cell", "rung", "epoch", "value", "cutoff", "rank", "n", "stop", "run", "sequence"],
    )
    runs = [
        {
            "run": "run-1",
            "started": "2025-01-01T10:00:00",
            "code": {"commit": "abc123", "uncommitted_changes": False},
            "devices": ["CPU", "GPU"],
            "versions": {"torch": "2.15"},
        }
    ]
    spec = {
        "recipe": {"dataset": "digits"},
        "grid": {"gamma": list(GAMMAS), "eta": list(ETAS)},
        "seeds": [0, 1, 2],
        "scheduler": {"name": "asha", "grace_period": 3},
    }
    return FakeReader(golden, history_of(golden), decisions, spec, runs)
