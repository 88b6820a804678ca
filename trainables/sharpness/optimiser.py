"""One optimiser for the family: climb to the worst point nearby, take the gradient there, step from where it began.

A base optimiser of torch.optim does the stepping; weight decay and momentum are its own, act at theta, and
never enter the probe. See `SharpnessAware` for the ways to drive it.
"""

from __future__ import annotations

import inspect
import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainables.sharpness.diagnostics import Record, measure
from trainables.sharpness.gather import (
    dense_gradients,
    in_blocks,
    in_order,
    inverses,
    same_layout,
)
from trainables.sharpness.kept import KeptBuffers, KeptParameters
from trainables.sharpness.metric import (
    WITH_ETA,
    check_settings,
    climb,
    global_norm,
    scaled_by_role,
)
from trainables.sharpness.randomness import SameDraws

Closure = Callable[[], Tensor]
Fisher = Callable[[], Sequence[Tensor]]


class Others(Protocol):
    """The other processes of a step whose closures are dealt out."""

    def shares(self, weights: Sequence[float]) -> list[float]:
        """The weights as shares of all processes' sum of them."""

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Sum each tensor over all processes, in place."""


class Pass:
    """What a GradScaler needs to see of one backward pass: the parameters, under an identity of its own.

    A GradScaler keeps one state per optimiser object and refuses a second `unscale_` on it before `update()`.
    With one object per pass it unscales each, and its `update()` backs off after an overflow in any of them.
    """

    def __init__(self, owner: SharpnessAware) -> None:
        # Weak: a cycle would keep a model that nobody uses any more on its device until the next garbage collection.
        self._owner = weakref.proxy(owner)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self._owner.param_groups
        return groups


class SharpnessAware(Optimizer):
    """SAM, ASAM, Fisher SAM or, with metric None, the plain base optimiser, all behind one interface.

    Three ways to drive it, all the same step:

        optimiser.step(closure)                    # closure: clear gradients, loss, backward, return the loss

        loss.backward()                            # by hand, with as many averaged backward calls as wanted
        optimiser.first_step(zero_grad=True)
        loss_there.backward()
        optimiser.second_step(zero_grad=True)

        scaler.scale(loss).backward()              # with a GradScaler, also as step(closure, scaler=scaler)
        scaler.unscale_(optimiser.ascent)
        optimiser.first_step(zero_grad=True)
        scaler.scale(loss_there).backward()
        scaler.step(optimiser)
        scaler.update()

    The gradient of the first pass must be the mean over the batch, unscaled, unclipped and the same on every
    process (DistributedDataParallel's backward sees to the last): `fsam` is not invariant to its scale, and the
    paper's batch is the whole one. After a first or second gradient that is not finite, parameters and the base
    optimiser's state stay as they were, and the step counts as skipped; the second pass of a step that will be
    skipped still runs, at a point that need not be finite. A base with `fused=True` decides that on the device: such
    a step reads nothing back. With any other base one number is read, the only synchronisation of a step.

    Args:
        params: parameters or groups, as for any optimiser. A group may have its own `gamma`, `eta` and, for
            `asam_official`, `scaled` (bool: take (abs(theta) + eta)^2). The norm stays one over all groups.
        base: class of torch.optim that steps. It runs with foreach=True unless the settings say otherwise.
        metric: one of `METRICS`, or None: one pass, no probe.
        gamma: radius of the probe (paper's gamma), > 0.
        eta: for `fsam`, `asam_official` and natural gradients.
        natural_gradient: multiply the gradient of the second pass by 1 / (1 + eta f), f from the first
            (footnote 3).
        module: the network that holds the parameters. With it, all its buffers (BatchNorm statistics, their
            counters, any layer's own) end a step as the first pass left them, and `asam_official` finds the
            weights by their role. Without it buffers see both passes, and `asam_official` scales tensors of
            two or more dimensions, which leaves out BatchNorm's gamma, unlike the authors' code.
        base_settings: settings of the base optimiser (lr, momentum, ...), by its names.

    Raises:
        ValueError: settings that cannot be meant (see `check_settings`), maximize with a metric, a base that
            must have a closure itself (LBFGS).
        TypeError: a setting that the base optimiser does not have.

    Groups hold `gamma` and `eta` where the metric uses them: schedulers and `state_dict` see them, loading
    brings the saved values back as it does for lr, and what a caller writes there later holds.
    """

    _step_supports_amp_scaling = True  # GradScaler.step then always calls step(), which must restore theta

    def __init__(
        self,
        params: Iterable[Any],
        base: type[Optimizer] = torch.optim.SGD,
        *,
        metric: str | None = "sam",
        gamma: float | None = None,
        eta: float | None = None,
        natural_gradient: bool = False,
        module: nn.Module | None = None,
        **base_settings: Any,
    ) -> None:
        check_settings(metric, gamma, eta, natural_gradient=natural_gradient)
        accepted = inspect.signature(base).parameters
        closure = inspect.signature(base.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ValueError(f"base: {base.__name__} needs a closure of its own, so it cannot be the base")
        if "foreach" in accepted and base_settings.keys().isdisjoint({"foreach", "fused", "differentiable"}):
            base_settings["foreach"] = True
        self.metric = metric
        self.natural_gradient = natural_gradient
        self.module = module
        self.base = base(params, **base_settings)
        own: dict[str, Any] = {} if metric is None else {"gamma": gamma}
        if metric in WITH_ETA or natural_gradient:
            own["eta"] = eta
        super().__init__(self.base.param_groups, {**self.base.defaults, **own})
        self.param_groups = self.base.param_groups
        self.state = self.base.state

        self.watch = False
        #: What was measured in the steps watched since the last `diagnostics`.
        self.record = Record()
        #: Steps skipped: those that the host knows of, and a device's own count.
        self._skipped = 0
        self._skipped_there: dict[torch.device, Tensor] = {}
        self._skipped_before = 0
        self._weights = scaled_by_role(module) if module is not None and metric == "asam_official" else None
        self._buffers = KeptBuffers(module) if module is not None and metric is not None else None
        self._theta = KeptParameters()
        self._inverse: dict[Tensor, Tensor] = {}
        self._norms: list[Tensor] = []  # of the passes of this step: finite if and only if all their gradients are
        self._pending = False
        self._passes: list[Pass] = []

    # -- the two passes

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False, *, fisher: Sequence[Tensor] | None = None) -> None:
        """Climb: keep theta, add eps in place. Does nothing where metric is None.

        Args:
            zero_grad: clear the gradients afterwards.
            fisher: f for every parameter that requires grad, in place of g^2 (eq 11); in
                `module.parameters()` order if the optimiser knows its module, else in the order of the
                groups.

        Raises:
            RuntimeError: called twice without `second_step` or `restore` between, or a sparse gradient.
            ValueError: fisher where nothing uses it, or of the wrong number or shapes.
        """
        if self._pending:
            raise RuntimeError("first_step: theta is already perturbed; call second_step() or restore() first")
        squares = None if fisher is None else self._by_parameter(fisher)
        self._inverse = inverses(self.param_groups, squares) if self.natural_gradient else {}
        if self.metric is not None:
            blocks = in_blocks(self.param_groups, self.metric, self._weights, squares)
            if self._buffers is not None:
                self._buffers.keep()
            self._pending = True
            if blocks:
                ways, norm = climb(blocks)
                self._norms.append(norm)
                if self.watch:
                    self.record.add(measure(blocks, [way.eps() for way in ways]))
                self._theta.keep([p for block in blocks for p in block.params])
                for way in ways:
                    way.go()
        self.watch = False
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Back to theta exactly, then the base optimiser's step on the gradients that are there now.

        Raises:
            RuntimeError: no `first_step` before it (unless metric is None), or a sparse gradient.
        """
        if not self._pending and self.metric is not None:
            raise RuntimeError("second_step: no first_step() before it; or call step(closure), which does both")
        self._return_to_theta()
        scale: Tensor | None = getattr(self, "grad_scale", None)  # set by GradScaler.step around step()
        if scale is not None:
            for grads in dense_gradients(self.param_groups):
                torch._foreach_mul_(grads, scale.double().reciprocal().to(grads[0]))
        self._precondition()
        self._finish()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def restore(self) -> None:
        """Back to theta exactly, bit for bit, and give the step up. Harmless where there is nothing to restore."""
        self._norms.clear()
        self._inverse = {}
        self._return_to_theta()

    # a step of several probes calls closures in turn, which torch's own signature has no name for
    def step(  # type: ignore[override]
        self,
        closure: Closure | Sequence[Closure] | None = None,
        *,
        weights: Sequence[float] | None = None,
        fisher: Fisher | Sequence[Fisher] | None = None,
        same_draws: bool = False,
        scaler: torch.amp.GradScaler | None = None,
        others: Others | None = None,
    ) -> Tensor | None:
        """Both passes and the update.

        Args:
            closure: clears the gradients, computes the loss, calls backward, returns the loss: run once in
                each pass. Several closures are m-sharpness: each has a probe of its own at its own theta',
                and one update follows on the average of their gradients. None: `second_step()`, which lets
                GradScaler.step call this.
            weights: of the closures in the average, such as their numbers of examples; scaled to sum to 1.
                Default: equal.
            fisher: called after the first backward, returns the list for `first_step`; one per closure if
                there are several.
            same_draws: the second pass draws the same random numbers as the first, hence the same dropout
                mask.
            scaler: a GradScaler; closures then call scaler.scale(loss).backward(), and the caller ends the
                step with scaler.update(). Nothing else is needed.
            others: other processes have closures of the same step. `weights` are then this process's, and
                there may be no closure at all here.

        Returns:
            The loss of the first pass, at theta (its weighted mean over several closures; with `others`, this
            process's share of it).

        Raises:
            Whatever a closure raises, in either pass, after theta has been restored.
            ValueError: no closures, or weights or fisher that do not match them.
        """
        if closure is None:
            if same_draws or any(given is not None for given in (weights, fisher, scaler, others)):
                raise ValueError("step: weights, fisher, same_draws, scaler and others need a closure")
            self.second_step()
            return None
        closures = [closure] if callable(closure) else list(closure)
        shares = _shares(weights, len(closures)) if others is None else others.shares(weights or [])
        fishers: list[Fisher | None] = [None] * len(closures)
        if fisher is not None:
            fishers = [fisher] if callable(fisher) else list(fisher)
            if len(fishers) != len(closures):
                raise ValueError(f"fisher: {len(fishers)} given for {len(closures)} closures")
        if self._pending:
            raise RuntimeError("step: theta is already perturbed; call second_step() or restore() first")

        losses: list[Tensor] = []
        average: dict[Tensor, Tensor] = {}
        if others is not None:
            self.zero_grad()  # with no closure here, the last step's gradients would still be there
        try:
            for i, (run, share, find_fisher) in enumerate(zip(closures, shares, fishers, strict=True)):
                losses.append(self._both_passes(run, find_fisher, same_draws, scaler, i))
                if len(closures) > 1 or others is not None:
                    self._add_to(average, share)
            with torch.no_grad():
                for p, g in average.items():
                    p.grad = g
                if others is not None:
                    self._meet(others)
                self._finish()
        except BaseException:
            self.restore()
            raise
        if len(losses) == 1 and others is None:
            return losses[0]
        if not losses:
            return None
        return torch.stack([loss * share for loss, share in zip(losses, shares, strict=True)]).sum()

    def _both_passes(
        self,
        run: Closure,
        fisher: Fisher | None,
        same_draws: bool,
        scaler: torch.amp.GradScaler | None,
        i: int,
    ) -> Tensor:
        """One closure at theta and at theta'. Leaves theta restored, the gradients unscaled and preconditioned."""
        devices = {p.device for group in self.param_groups for p in group["params"]}
        draws = SameDraws(devices) if same_draws else None
        with torch.enable_grad():
            loss = run()
            if isinstance(loss, Tensor):
                loss = loss.detach()
            if scaler is not None:
                scaler.unscale_(self._pass(2 * i))  # type: ignore[arg-type]  # it reads param_groups only
            squares = fisher() if fisher is not None else None
        self.first_step(fisher=squares)
        if self.metric is not None:
            with torch.enable_grad():
                if draws is None:
                    run()
                else:
                    with draws.again():
                        run()
            self._return_to_theta()
            if scaler is not None:
                scaler.unscale_(self._pass(2 * i + 1))  # type: ignore[arg-type]  # it reads param_groups only
        with torch.no_grad():
            self._precondition()
        return loss

    # -- pieces of a step

    @torch.no_grad()
    def _return_to_theta(self) -> None:
        pending, self._pending = self._pending, False  # first: a device that fails here must not leave a step open
        self._theta.put_back()
        if pending and self._buffers is not None:
            self._buffers.put_back()

    def _precondition(self) -> None:
        """Multiply the gradients by 1 / (1 + eta f) where natural gradients are asked for (footnote 3)."""
        if self.natural_gradient:
            if self.metric is None and not self._inverse:
                self._inverse = inverses(self.param_groups, None)
            both = [(p.grad, inverse) for p, inverse in self._inverse.items() if p.grad is not None]
            if both:
                torch._foreach_mul_([g for g, _ in both], [inverse for _, inverse in both])
        self._inverse = {}

    def _add_to(self, average: dict[Tensor, Tensor], share: float) -> None:
        """Move this closure's gradients, weighted, into the average, out of the next closure's reach."""
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        with torch.no_grad():
            if params:
                weighted = torch._foreach_mul([p.grad for p in params], share)
                known = [(average[p], w) for p, w in zip(params, weighted, strict=True) if p in average]
                if known:
                    torch._foreach_add_([a for a, _ in known], [w for _, w in known])
                average.update((p, w) for p, w in zip(params, weighted, strict=True) if p not in average)
        self.zero_grad()

    def _meet(self, others: Others) -> None:
        """Sum the average's parts over all processes, and know of a gradient that was not finite anywhere."""
        trained = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        for p in trained:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        norms = [*self._norms, torch.zeros((), dtype=torch.float64, device=trained[0].device)]
        norm = torch.stack([n.to(norms[-1].device) for n in norms]).sum()
        others.add([*(p.grad for p in trained if p.grad is not None), norm])
        self._norms = [norm]

    def _finish(self) -> None:
        """Step, unless some gradient of this step was not finite."""
        norms, self._norms = self._norms, []
        grads = dense_gradients(self.param_groups)
        if grads or norms:
            norm = global_norm(grads, also=norms)
            overflow: Tensor | None = getattr(self, "found_inf", None)  # set by GradScaler.step around step()
            if overflow is not None:
                norm = norm.masked_fill(overflow > 0, math.inf)
            if self._decides_on_device():
                self._step_unless(norm)
                return
            if not math.isfinite(norm.item()):
                self._skipped += 1
                return
        self.base.step()

    def _decides_on_device(self) -> bool:
        """Whether the base can be told by a tensor to leave everything as it is."""
        if not all(group.get("fused") for group in self.param_groups):
            return False
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and not same_layout(p, p.grad):
                    # Fused kernels read memory in order, whatever order that is of (torch's CPU ones do not check).
                    p.grad = torch.empty_like(p).copy_(p.grad)
            if not group.get("momentum"):
                continue
            new = [p for p in group["params"] if p.grad is not None and "momentum_buffer" not in self.state[p]]
            if new and group["dampening"]:
                return False  # the first gradient is not dampened, which only a missing buffer says
            for p in new:
                # torch's fused SGD would make it of memory as it finds it, and leave it so if the step is skipped.
                self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)
        return True

    def _step_unless(self, norm: Tensor) -> None:
        """The base's step if `norm` (0-d float64) is finite; else nothing but a count. Reads nothing back."""
        bad = (norm * 0).nan_to_num(1.0)  # infinity times 0 is no number either
        counted = self._skipped_there.get(bad.device)
        self._skipped_there[bad.device] = bad if counted is None else counted.add_(bad)
        # As a GradScaler tells fused optimisers; the gradients are unscaled here.
        self.base.found_inf = bad.to(torch.float32)  # type: ignore[attr-defined]
        try:
            self.base.step()
        finally:
            del self.base.found_inf  # type: ignore[attr-defined]

    @property
    def skipped(self) -> int:
        """Steps skipped because a gradient was not finite; waits for the device where that decides."""
        return self._skipped + sum(int(count) for count in self._skipped_there.values())

    @skipped.setter
    def skipped(self, count: int) -> None:
        self._skipped = count
        for there in self._skipped_there.values():
            there.zero_()

    def written(self) -> list[Tensor]:
        """The tensors that a step leaves changed, of the parameters, the base's state and the count of skipped steps:
        from the second step on the same ones, written in place (where the base is fused)."""
        params = [p for group in self.param_groups for p in group["params"]]
        kept = [value for p in params for value in self.state[p].values() if isinstance(value, Tensor)]
        return [*params, *kept, *self._skipped_there.values()]

    def _by_parameter(self, fisher: Sequence[Tensor]) -> dict[Tensor, Tensor]:
        if self.metric != "fsam" and not self.natural_gradient:
            raise ValueError(f"fisher: given, but nothing uses it with metric {self.metric!r}")
        grouped = [p for group in self.param_groups for p in group["params"]]
        return in_order(grouped if self.module is None else self.module.parameters(), fisher)

    # -- what surrounds a step

    @property
    def ascent(self) -> Pass:
        """What to give `scaler.unscale_` after the first backward."""
        return self._pass(0)

    def _pass(self, i: int) -> Pass:
        while len(self._passes) <= i:
            self._passes.append(Pass(self))
        return self._passes[i]

    def diagnostics(self) -> dict[str, float]:
        """Means over the steps watched since the last call, and the steps skipped since then.

        Set `watch = True` to have the next `first_step` measured; it costs a few extra operations and no
        synchronisation.

        Returns:
            eps_norm, |eps|; cosine_to_sam, the cosine of eps to SAM's probe; eta_vanished, the share of coordinates
            with 1 + eta f == 1 in float32 (`fsam`, else NaN); skipped_steps, a count. NaN where nothing was watched.
        """
        now = self.skipped
        skipped = now - self._skipped_before
        self._skipped_before = now
        return {**self.record.summary(), "skipped_steps": float(skipped)}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its own gamma and eta, if it has any, are checked as the constructor's are."""
        super().add_param_group(param_group)
        try:
            gamma, eta = param_group.get("gamma"), param_group.get("eta")
            check_settings(self.metric, gamma, eta, natural_gradient=self.natural_gradient)
            if param_group.get("maximize") and self.metric is not None:
                raise ValueError("maximize: a probe climbs the loss; negate the loss to maximise")
        except ValueError:
            self.param_groups.pop()
            raise

    def state_dict(self) -> dict[str, Any]:
        """The base optimiser's state and groups, gamma and eta in them, and the count of skipped steps."""
        return {**super().state_dict(), "skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, or a plain base optimiser's state, which leaves gamma and eta as they are.

        `foreach`, `fused` and `capturable` stay as they are.
        """
        before = [{k: g[k] for k in ("gamma", "eta") if k in g} for g in self.param_groups]
        # How a step is computed is this object's: another device's way may be none here.
        how = [{k: g[k] for k in ("foreach", "fused", "capturable") if k in g} for g in self.param_groups]
        saved = state_dict["param_groups"]
        if len(saved) == len(how):  # else torch says what is wrong
            saved = [{**group, **own} for group, own in zip(saved, how, strict=True)]
        super().load_state_dict({**state_dict, "param_groups": saved})
        for group, values in zip(self.param_groups, before, strict=True):
            for name, value in values.items():
                group.setdefault(name, value)
            for p in group["params"] if group.get("fused") else ():
                for name, value in self.state[p].items():
                    if isinstance(value, Tensor) and value.shape == p.shape and not same_layout(p, value):
                        self.state[p][name] = torch.empty_like(p, dtype=value.dtype).copy_(value)
        self.skipped = self._skipped_before = int(state_dict.get("skipped", 0))

    def __getstate__(self) -> dict[str, Any]:
        # torch's keeps groups and state only, and a copy could not step; hooks stay behind, as they do there
        return {k: v for k, v in self.__dict__.items() if k != "step" and not k.startswith("_optimizer_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # load_state_dict replaces both; the base must go on with the same ones, and may fill in newer
        # settings
        self.base.__setstate__({"state": self.state, "param_groups": self.param_groups})


def _shares(weights: Sequence[float] | None, n: int) -> list[float]:
    if n == 0:
        raise ValueError("step: an empty sequence of closures")
    weights = [1.0] * n if weights is None else [float(w) for w in weights]
    total = sum(weights)
    if len(weights) != n or not all(math.isfinite(w) and w >= 0 for w in weights) or total <= 0:
        raise ValueError(f"weights: need {n} finite numbers >= 0 with a sum > 0, not {weights}")
    return [w / total for w in weights]
