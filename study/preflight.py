"""What can be known before a cluster is started: that weights fit their networks, and trials this machine."""

from __future__ import annotations

import os

from study.plan import Plan
from study.spec import Resources


class ClusterError(Exception):
    """The cluster cannot be reached, or can never give what the study asks; one line."""


def check_weights(plan: Plan) -> None:
    """Load each recipe's pretrained weights once, here; published ones are fetched.

    Raises:
        trainables.models.weights.WeightsError: they cannot be found, fetched or read, or are of another network.
    """
    recipes = [(trial.cell.recipe, trial.cell.facts) for trial in plan.todo if not trial.trained]
    recipes += [(recipe, plan.surveyor.survey(recipe).facts) for _, recipe in plan.study.corners()]
    wanted = {
        (r.model, str(r.pretrained), r.image_side, facts.classes, facts.channels): r
        for r, facts in recipes
        if r.pretrained
    }
    if not wanted:
        return
    from trainables.models import build  # torch takes seconds to import: only for this
    from trainables.models.pretrained import load_pretrained

    for (model, pretrained, side, classes, channels), recipe in wanted.items():
        assert side is not None
        assert classes is not None
        network = build(model, classes=classes, channels=channels, side=side, dropout=recipe.dropout)
        load_pretrained(network, pretrained, model=model, classes=classes)


def check_this_machine(asked: Resources, cpus: int | None) -> None:
    """Refuse more CPUs than a cluster of our own will have, before it is started.

    Raises:
        ClusterError: a trial asks for more.
    """
    here = cpus or os.cpu_count() or 1
    cpu = asked.cpu if asked.cpu is not None else asked.several
    if cpu > here:
        raise ClusterError(f"resources: a trial asks for cpu {cpu}; this run has cpu {here} on this machine")
