"""Sharpness: l(theta + eps) - l(theta), eps the worst point of a neighbourhood to first order (eqs 1 to 5, 10, 12).

eps is `trainables.sharpness.probe`'s, the one that training climbs to, from the gradient of all measured images
together. `per_batch` takes one gradient and one eps for each batch and the mean of the batches' losses: what training
with minibatches minimises (Foret et al. 2021 call it m-sharpness, m the batch), up to BatchNorm, which is in
evaluation mode here. The loss is the one that trained, label smoothing included.

`fsam` takes f = (mean gradient)^2 of the images that share an eps (eq 12). That shrinks as the noise averages out, so
at one eta the whole split's neighbourhood is rounder than that of a batch of 128: compare Fisher SAM's sharpness at
equal `per_batch`, and with training's own at `per_batch: true`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from trainables.measures.held import Moved, held
from trainables.measures.passes import mean_gradient, mean_loss
from trainables.measures.settings import Sharpness
from trainables.measures.subject import Batch, Row, Subject
from trainables.sharpness import probe, scaled_by_role

Point = tuple[str, float, float | None]


def measure(subject: Subject, settings: Sharpness) -> list[Row]:
    """One row for each metric, gamma and eta.

    Columns: `metric`, `gamma`, `eta` (None where the metric has none), `per_batch`; `loss` at theta, `perturbed_loss`
    at theta + eps and `sharpness`, their difference, in nats; `images` they are means over. A gradient that is not
    finite has no eps: perturbed loss and sharpness are NaN.

    Raises:
        ValueError: no parameter requires grad, or there are no batches.
    """
    points = [
        (metric, gamma, eta)
        for metric in settings.metrics
        for gamma, eta in product(settings.gamma, settings.etas(metric))
    ]
    sums = dict.fromkeys(points, 0.0)
    loss, images = 0.0, 0
    with held(subject, "sharpness") as params:
        theta = Moved(params)
        for batches in _groups(subject, settings):
            g = mean_gradient(subject, params, batches())
            loss += g.loss * g.images
            images += g.images
            for point in points:
                eps = _eps(subject.model, params, g.gradient, point) if math.isfinite(g.norm) else None
                if eps is None:
                    sums[point] = math.nan
                    continue
                theta.to(eps)
                sums[point] += mean_loss(subject, batches()) * g.images
                theta.back()
    if images == 0:
        raise ValueError("batches: there are none, so there is nothing to measure")
    return [
        {
            "metric": metric,
            "gamma": gamma,
            "eta": eta,
            "per_batch": settings.per_batch,
            "loss": loss / images,
            "perturbed_loss": sums[metric, gamma, eta] / images,
            "sharpness": (sums[metric, gamma, eta] - loss) / images,
            "images": images,
        }
        for metric, gamma, eta in points
    ]


def _groups(subject: Subject, settings: Sharpness) -> Iterator[Callable[[], Iterable[Batch]]]:
    """The batches that share an eps, to be gone through again for each of them."""
    if settings.per_batch:
        for batch in subject.batches("train", settings.batches):
            yield partial(list, [batch])
    else:
        yield partial(subject.batches, "train", settings.batches)


def _eps(model: nn.Module, params: Sequence[nn.Parameter], gradient: Sequence[Tensor], point: Point) -> list[Tensor]:
    metric, gamma, eta = point
    scaled = None
    if metric == "asam_official":
        weights = scaled_by_role(model)
        scaled = [p in weights for p in params]
    # In the dtype that training has: the family's foreach operations want one.
    grads = [g.to(torch.promote_types(p.dtype, torch.float32)) for g, p in zip(gradient, params, strict=True)]
    return probe(params, grads, metric=metric, gamma=gamma, eta=eta, scaled=scaled)
