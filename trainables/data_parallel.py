"""One replicate, each batch shared by several processes: what makes its steps those of a single process.

The paper's batch is the whole one (it uses no m-sharpness), so nothing of a step may be a process's own:

- The gradient of each pass is the whole batch's before anybody looks at it. DistributedDataParallel adds the parts up
  in backward, so eps and the Fisher's diagonal (g^2, eq 12) are formed from the mean over all images. f is not linear
  in g: the mean of the processes' own squares would be another method.
- BatchNorm normalises by the whole batch's statistics (`WholeBatchNorm`), as torch's SyncBatchNorm does, which has no
  CPU version that a test could run.
- Dropout draws the whole batch's mask and uses its part (`WholeDropout`). Augmentation, too, is drawn for the whole
  batch and carried out on the part (`trainables.data.ahead`).
- Parts are weighted by their number of images, which in a last short batch differ or are 0.

With `m` each group of m examples has a probe, BatchNorm statistics and dropout masks of its own in a single process
too. Whole groups are dealt out, nothing is exchanged before their gradients are averaged, and running statistics are
put together as if the groups had come one after the other (`merge_statistics`).

Sums are rounded in another order than in one process: equal to rounding, not bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel


class Share:
    """What this process does of each batch, in the default process group of torch.distributed.

    Attributes:
        rank: of this process. processes: their number.
        images: of the batch that is being trained, all processes together.
        part: which of them are this process's.
    """

    def __init__(self) -> None:
        self.rank, self.processes = dist.get_rank(), dist.get_world_size()
        self.images, self.part = 0, slice(0, 0)

    def part_of(self, images: int, m: int | None = None) -> slice:
        """This process's part of so many images: contiguous, whole groups of m, sizes as equal as can be.

        The first processes have the longer parts; the last may have none.
        """
        unit = m or 1
        units = -(-images // unit)
        each, more = divmod(units, self.processes)
        start = self.rank * each + min(self.rank, more)
        stop = start + each + (self.rank < more)
        return slice(min(start * unit, images), min(stop * unit, images))

    def begin(self, images: int, m: int | None) -> slice:
        """Take note of the next batch, for the layers that have to know, and return this process's part of it."""
        self.images, self.part = images, self.part_of(images, m)
        return self.part

    def shares(self, weights: Sequence[float]) -> list[float]:
        """Numbers of examples as shares of the batch."""
        return [w / self.images for w in weights]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Sum each tensor over the processes, in place; one exchange per dtype."""
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        for same in by_dtype.values():
            flat = torch.cat([t.reshape(-1) for t in same])
            dist.all_reduce(flat)
            parts = flat.split([t.numel() for t in same])
            torch._foreach_copy_(same, [part.view(t.shape) for part, t in zip(parts, same, strict=True)])

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model, made to train as a whole batch: its layers in place, its gradients by what is returned."""
        for layer in list(model.modules()):
            if isinstance(layer, _BatchNorm):
                layer.__class__ = WholeBatchNorm
                vars(layer)["share"] = self
            elif isinstance(layer, nn.Dropout):
                layer.__class__ = WholeDropout
                vars(layer)["share"] = self
        ids = [device.index] if device.type == "cuda" else None
        # Buffers are equal already, and a step of the optimiser would see a broadcast in its second pass.
        return DistributedDataParallel(model, device_ids=ids, forward_sync_buffers=False)

    def check_equal(self, model: nn.Module) -> None:
        """Refuse to go on with processes whose networks have come apart.

        Raises:
            RuntimeError: they have.
        """
        sums = torch.stack([t.detach().double().sum() for t in model.state_dict().values()])
        ends = torch.cat([sums, -sums]).nan_to_num()
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        largest, smallest = ends[: len(sums)], -ends[len(sums) :]
        if not torch.equal(largest, smallest):
            raise RuntimeError("the processes of one replicate have come to different parameters")


class WholeBatchNorm(_BatchNorm):
    """BatchNorm by the statistics of all processes' images. Its state is BatchNorm's. In evaluation it is BatchNorm."""

    share: Share

    def _check_input_dim(self, input: Tensor) -> None:
        """Of any number of dimensions: (N, C, ...)."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        y, mean, variance = _Normalise.apply(input, self.weight, self.bias, self.eps, self.share)
        with torch.no_grad():
            self._take(mean, variance, self.share.images * _area(input))
        return y

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of all processes' values of each channel, (C,) each, in at least float32."""
        return _statistics(x, self.share)

    def _take(self, mean: Tensor, variance: Tensor, values: int) -> None:
        """Move the running statistics as torch's BatchNorm does: by the unbiased variance."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.mul_(1 - momentum).add_(mean.to(self.running_mean), alpha=momentum)
        unbiased = variance * (values / (values - 1))
        self.running_var.mul_(1 - momentum).add_(unbiased.to(self.running_var), alpha=momentum)


def _area(x: Tensor) -> int:
    area = 1
    for side in x.shape[2:]:
        area *= side
    return area


def _statistics(x: Tensor, share: Share) -> tuple[Tensor, Tensor]:
    wide = x if x.dtype == torch.float64 else x.float()
    dims = [d for d in range(x.ndim) if d != 1]
    values = share.images * _area(x)
    mean = wide.sum(dims)
    dist.all_reduce(mean)
    mean /= values
    # In a second exchange, around the mean: a difference of squares would lose digits.
    variance = (wide - _along(mean, x)).square().sum(dims)
    dist.all_reduce(variance)
    return mean, variance / values


def _along(v: Tensor, x: Tensor) -> Tensor:
    return v.view(1, -1, *[1] * (x.ndim - 2))


class _Normalise(torch.autograd.Function):
    """(x, weight, bias, eps, share) -> y, mean, variance. The loss is the sum of the processes' losses."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, share: Share
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = _statistics(x, share)
        inverse = (variance + eps).rsqrt()
        y = (x - _along(mean, x)) * _along(inverse, x)
        if weight is not None and bias is not None:
            y = y * _along(weight, x) + _along(bias, x)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.share = share
        ctx.mark_non_differentiable(mean, variance)
        return y.to(x.dtype), mean, variance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        x, weight, mean, inverse = ctx.saved_tensors
        dims = [d for d in range(x.ndim) if d != 1]
        dy = gradients[0].to(mean.dtype)
        normal = (x - _along(mean, x)) * _along(inverse, x)
        own = torch.stack([dy.sum(dims), (dy * normal).sum(dims)])
        # This process's part of the parameters' gradients: DistributedDataParallel adds those up itself.
        d_bias, d_weight = own.clone() if weight is not None else (None, None)
        dist.all_reduce(own)
        own /= ctx.share.images * _area(x)
        dx = (dy - _along(own[0], x) - normal * _along(own[1], x)) * _along(inverse, x)
        if weight is not None:
            dx = dx * _along(weight, x)
        return dx.to(x.dtype), d_weight, d_bias, None, None


class WholeDropout(nn.Dropout):
    """Dropout whose mask is drawn for all processes' images, from generators that stand alike in each process."""

    share: Share

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not self.p:
            return input
        # Laid out in memory as the whole batch would be: masks are drawn in that order.
        dense = input.is_contiguous(memory_format=torch.channels_last) and input.ndim == 4
        layout = torch.channels_last if dense else torch.contiguous_format
        shape = (self.share.images, *input.shape[1:])
        whole = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=layout).fill_(1)
        return input * F.dropout(whole, self.p, training=True)[self.share.part]


class Statistics:
    """The running statistics of a network's BatchNorms before a step whose groups are dealt out."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = [
            layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.running_mean is not None
        ]
        self.before = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in self.layers]  # type: ignore[union-attr]

    @torch.no_grad()
    def merge(self, share: Share, m: int) -> None:
        """Leave them as if one process had seen all groups, one after the other.

        Each group moves a statistic by r <- (1 - momentum) r + momentum s: what one process adds fades with every group
        that comes after its own, and is summed over the processes.
        """
        groups = -(-share.images // m)
        upto = -(-share.part.stop // m)
        own = upto - share.part.start // m if share.part.stop > share.part.start else 0
        added: list[Tensor] = []
        for layer, starts in zip(self.layers, self.before, strict=True):
            assert layer.momentum is not None  # no network here averages over all batches
            keep = 1 - layer.momentum
            for value, start in zip((layer.running_mean, layer.running_var), starts, strict=True):
                assert value is not None
                value.sub_(start, alpha=keep**own).mul_(keep ** (groups - upto) if own else 0.0)
                added.append(value)
        if added:
            share.add(added)
        for layer, starts in zip(self.layers, self.before, strict=True):
            for value, start in zip((layer.running_mean, layer.running_var), starts, strict=True):
                assert value is not None
                assert layer.momentum is not None
                value.add_(start, alpha=(1 - layer.momentum) ** groups)
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked.add_(groups - own)
