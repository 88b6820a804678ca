"""What can be known before a cluster is started: that the weights that a study starts from fit their networks."""

from __future__ import annotations

from study.plan import Plan


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
