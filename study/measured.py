"""The measures that a study declares, each with a tag: what its file is called in every trial's folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainables.recipe import digest


def tags(measures: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Each measure's (name, settings) by its tag, such as `perturbation-5f3a09bc`.

    The tag has a hash of the settings: other settings are another measurement, beside the one that is there.

    Args:
        measures: resolved settings by name, as a checked study holds them.
    """
    return {f"{name}-{digest('measure', name, dict(s))[:8]}": (name, dict(s)) for name, s in measures.items()}
