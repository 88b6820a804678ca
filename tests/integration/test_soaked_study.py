"""A study of many tiny trials whose workers and driver are killed: nothing is lost, and nothing grows."""

import pytest

from benchmarks import soak
from benchmarks.record import document


def lost(counts):
    """What has to be nothing."""
    words = ("lost", "duplicated", "more than once", "unlike", "ends recorded again", "twice, calm")
    found = {name: value for name, value in counts.items() if any(word in name for word in words)}
    assert len(found) == 8
    return {name: value for name, value in found.items() if value}


@pytest.mark.long
def test_a_few_trials_survive_kills_of_workers_and_of_the_driver():
    few = soak.Scale(24, seeds=2, epochs=4, every=2, pause=(0.5, 1.5), drivers=(0.6,), looped=2, most=2)
    found = soak.measure(few)
    assert lost(found.counts) == {}
    assert found.counts["drivers killed"] == 1
    assert 1 <= found.counts["workers killed"] <= 2
    twice = found.counts["replicate epochs trained twice, disturbed"]
    assert twice <= found.counts["replicate epochs trained twice, at most"]
    record = document("soak", found, quick=True)
    assert len(record["series"]["disturbed"]["driver_mib"]) >= 3
    assert found.samples["disturbed: driver's memory"].max < 1500  # MiB


@pytest.mark.long
def test_a_thousand_trials_survive_and_memory_is_flat():
    found = soak.run(quick=False)
    assert lost(found.counts) == {}
    assert found.counts["trials"] >= 1000
    assert found.counts["drivers killed"] == 3
    assert found.counts["workers killed"] >= 10
    twice = found.counts["replicate epochs trained twice, disturbed"]
    assert twice <= found.counts["replicate epochs trained twice, at most"]
    for whose in ("driver's", "a worker's"):
        assert found.samples[f"calm: {whose} growth a trial"].median < soak.FLAT
    assert found.samples["calm: driver's open files"].max < 500
