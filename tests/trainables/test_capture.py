"""Recorded steps against plain ones, on a tape that does on a CPU what a CUDA graph does."""

import gc
import math
import weakref

import pytest
import torch

from benchmarks.tape import Tape
from trainables.capture import WARM_UP, Captured, _distance, recorder_of
from trainables.devices import DeviceError
from trainables.recipe import Recipe
from trainables.replicate import Replicate
from trainables.sharpness.kept import KeptParameters

BASE = {
    "dataset": "digits", "epochs": 4, "batch_size": 32, "train_size": 300, "precision": "float64", "lr": 0.05,
    "augmentation": ["crop"],
}  # fmt: skip

#: 300 images in batches of 32: nine whole ones, four of them watched, and one of 12.
RECIPES = {
    "sgd": {"optimiser": "sgd"},
    "sam": {"optimiser": "sam"},
    "sam, m": {"optimiser": "sam", "m": 16},
    "asam": {"optimiser": "asam"},
    "asam eq5": {"optimiser": "asam", "asam_convention": "eq5"},
    "fsam": {"optimiser": "fsam"},
    "fsam, natural": {"optimiser": "fsam", "natural_gradient": True},
    "natural": {"optimiser": "sgd", "natural_gradient": True, "eta": 1.0},
    "adamw": {"optimiser": "fsam", "base": "adamw", "lr": 1e-3},
    "adam": {"optimiser": "sam", "base": "adam", "lr": 1e-3},
    "nesterov": {"optimiser": "sam", "nesterov": True},
    "no momentum": {"optimiser": "sam", "momentum": 0.0},
    "noise": {"optimiser": "fsam", "label_noise": 0.2},
    "float32": {"optimiser": "fsam", "precision": "float32"},
    "bfloat16": {"optimiser": "fsam", "precision": "bfloat16"},
}  # fmt: skip


def recipe(**settings):
    return Recipe.of({**BASE, **settings})


def rows_of(replicate, epochs):
    rows = [replicate.train_epoch() for _ in range(epochs)]
    return [{k: v for k, v in row.items() if k != "train_seconds"} for row in rows]


def assert_same(one, other):
    for name, value in one.model.state_dict().items():
        assert torch.equal(value.nan_to_num(7), other.model.state_dict()[name].nan_to_num(7)), name
    for p, q in zip(one.optimiser.written(), other.optimiser.written(), strict=True):
        assert torch.equal(p, q)


def equal(a, b):
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


@pytest.mark.parametrize("settings", RECIPES.values(), ids=RECIPES)
def test_recorded_steps_train_as_plain_ones_bit_for_bit(settings):
    plain, recorded = Replicate(recipe(**settings), 3), Replicate(recipe(**settings), 3, recorder=Tape())
    assert not plain.capturing
    assert recorded.capturing
    expected, found = rows_of(plain, 4), rows_of(recorded, 4)
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        assert all(equal(one[key], other[key]) for key in one)
    assert_same(plain, recorded)
    # All steps of the last epochs came from a recording: whole batches, watched and not, and the short one.
    assert recorded.recorded == 3
    assert recorded.take_remarks() == []


def test_a_state_that_is_loaded_goes_on_as_if_nothing_had_been_recorded():
    settings = recipe(optimiser="fsam")
    plain, first = Replicate(settings, 0), Replicate(settings, 0, recorder=Tape())
    expected = rows_of(plain, 4)
    found = rows_of(first, 2)
    state = first.state_dict()
    rows_of(first, 1)
    first.load_state_dict(state)  # its recordings are of tensors that are no longer the optimiser's
    found += rows_of(first, 2)
    assert_same(plain, first)
    second = Replicate(settings, 0)
    second.load_state_dict(state)  # and a plain one goes on with what a recorded one saved
    assert [row["validation_loss"] for row in rows_of(second, 2)] == [row["validation_loss"] for row in expected[2:]]
    assert [row["validation_loss"] for row in found] == [row["validation_loss"] for row in expected]


def test_a_gradient_that_is_not_finite_is_skipped_from_a_recording_too():
    settings = recipe(optimiser="sam", precision="float32")
    plain, recorded = Replicate(settings, 0), Replicate(settings, 0, recorder=Tape())
    rows_of(plain, 2), rows_of(recorded, 2)
    for replicate in (plain, recorded):
        bad = replicate._labels.new_zeros(32)
        for value in (math.inf, 1.0, math.nan):
            epoch = replicate.begin_epoch()
            batch = next(epoch.batches)
            replicate.take(batch._replace(x=batch.x * value, watched=False, y=bad))
    assert plain.optimiser.skipped == recorded.optimiser.skipped == 2
    assert_same(plain, recorded)


def made(run, state, dtype=torch.float64):
    return Captured(run, lambda: state, Tape(), dtype)


def test_a_number_that_changes_from_step_to_step_is_noticed():
    theta, lr = torch.zeros(3, dtype=torch.float64), [0.0]

    def step(key, x):
        lr[0] += 0.1  # a recording has the number of the moment
        theta.add_(x, alpha=lr[0])
        return (theta.sum(),)

    captured = made(step, [theta])
    for _ in range(8):
        captured("any", torch.ones(3, dtype=torch.float64))
    assert captured.recorded == 0
    (remark,) = captured.take_remarks()
    assert remark.startswith("steps of 3 images are issued one operation at a time: the recorded step ends ")
    assert captured.take_remarks() == []


def test_where_it_is_noticed_the_plain_step_counts_and_steps_stay_plain():
    theta, calls = torch.zeros(3, dtype=torch.float64), []

    def step(key, x):
        calls.append(float(theta[0]))  # waits
        theta.add_(x)
        return (theta.clone(),)

    captured = made(step, [theta])
    ends = [captured("any", torch.ones(3, dtype=torch.float64))[0][0].item() for _ in range(8)]
    assert ends == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    (remark,) = captured.take_remarks()
    assert "waits for a value" in remark


def test_a_tensor_that_is_replaced_and_not_written_is_noticed():
    kept = {"theta": torch.zeros(2, dtype=torch.float64)}

    def step(key, x):
        kept["theta"] = kept["theta"] + x
        return (kept["theta"],)

    captured = Captured(step, lambda: [kept["theta"]], Tape(), torch.float64)
    for _ in range(WARM_UP + 3):
        captured("any", torch.ones(2, dtype=torch.float64))
    assert captured.recorded == 0
    assert "not written in place" in captured.take_remarks()[0]
    assert kept["theta"].tolist() == [WARM_UP + 3.0] * 2


def test_a_statistic_that_is_off_does_not_drown_in_the_weights():
    weights, mean, host = torch.zeros(1000, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), [0.0]

    def step(key, x):
        host[0] += 1e-2
        weights.add_(1.0)
        mean.add_(host[0])
        return ()

    captured = made(step, [weights, mean])
    for _ in range(6):
        captured("any", torch.zeros(1))
    assert captured.recorded == 0


def test_a_number_that_is_fetched_from_the_host_is_refused():
    theta = torch.zeros(2, dtype=torch.float64)

    def step(key, x):
        theta.add_(torch.where(x > 0, 1.0, x) * torch.tensor(2.0))
        return ()

    captured = made(step, [theta])
    for _ in range(6):
        captured("any", torch.ones(2, dtype=torch.float64))
    assert captured.recorded == 0
    assert "fetches a number from the host" in captured.take_remarks()[0]


def test_a_step_that_moves_nothing_is_no_step_to_judge_a_recording_by():
    theta, lr = torch.zeros(2, dtype=torch.float64, requires_grad=True), [1.0]

    @torch.no_grad()
    def step(key, x):
        # Wrong when recorded, and a step of zeros would not show it.
        theta.add_(x, alpha=lr[0])
        lr[0] += 1
        return ()

    captured = made(step, [theta])
    for _ in range(6):
        captured("any", torch.zeros(2, dtype=torch.float64))
    assert captured.recorded == 0
    assert captured.take_remarks() == []
    captured("any", torch.ones(2, dtype=torch.float64))
    assert captured.recorded == 0
    assert "of its length from the plain one" in captured.take_remarks()[0]
    assert captured.how == "eager"


def test_what_is_infinite_does_not_pass_for_equal():
    before, found = [torch.zeros(2)], [torch.tensor([math.inf, 1.0])]
    assert not _distance(before, [torch.ones(2)], found) <= 1e-3
    assert not _distance([torch.tensor([math.inf, 0.0])], [torch.tensor([math.inf, 1.0])], [torch.zeros(2)]) <= 1e-3
    assert _distance(before, [torch.ones(2)], [torch.ones(2)]) == 0


def test_a_recording_may_be_as_far_off_as_plain_steps_are_from_each_other():
    theta, calls = torch.zeros(2, dtype=torch.float64, requires_grad=True), [0]

    @torch.no_grad()
    def step(key, x):
        calls[0] += 1
        theta.add_(x, alpha=1 + 4e-9 * (calls[0] % 2))  # above float64's tolerance
        return ()

    captured = made(step, [theta])
    for _ in range(8):
        captured("any", torch.ones(2, dtype=torch.float64))
    assert captured.recorded == 1
    assert torch.allclose(theta, torch.full((2,), 8.0, dtype=torch.float64), atol=1e-4)


def test_after_a_recording_that_broke_off_the_plain_steps_go_on(monkeypatch):
    class Breaks(Tape):
        def record(self, run):
            begun = run  # the first pass's probe is taken, and then the device gives up

            def first_pass_only():
                raise RuntimeError("capture was invalidated")

            monkeypatch.setattr(KeptParameters, "put_back", lambda self: first_pass_only())
            try:
                begun()
            finally:
                monkeypatch.undo()
            raise AssertionError("the step did not notice")

    settings = recipe(optimiser="sam")
    plain, broken = Replicate(settings, 0), Replicate(settings, 0, recorder=Breaks())
    expected, found = rows_of(plain, 3), rows_of(broken, 3)
    for one, other in zip(expected, found, strict=True):
        assert all(equal(one[key], other[key]) for key in one)
    assert_same(plain, broken)
    remarks = broken.take_remarks()
    assert remarks
    assert all("capture was invalidated" in line for line in remarks)
    assert broken.steps == "eager"


def test_a_replicate_that_nobody_uses_is_gone_at_once():
    replicate = Replicate(recipe(optimiser="fsam"), 0, recorder=Tape())
    replicate.train_epoch()
    gone = weakref.ref(replicate)
    gc.collect()
    gc.disable()
    try:
        del replicate
        assert gone() is None
    finally:
        gc.enable()


def test_keys_and_shapes_have_recordings_of_their_own():
    total = torch.zeros((), dtype=torch.float64)

    def step(key, x):
        total.add_(x.sum() * (2 if key else 1))
        return (total.clone(),)

    captured = made(step, [total])
    expected = 0.0
    for _ in range(8):
        for key, n in ((True, 4), (False, 4), (False, 3)):
            (found,) = captured(key, torch.ones(n, dtype=torch.float64))
            expected += n * (2 if key else 1)
            assert found.item() == expected
    assert captured.recorded == 3


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model": "mlp", "dropout": 0.1}, "dropout draws new masks in every step"),
        ({"optimiser": "fsam", "fisher": "per_example"}, "the Fisher of single images"),
    ],
)
def test_what_cannot_be_recorded_is_not_and_asking_for_it_says_why(settings, reason):
    settings = {"precision": "float32", **settings}
    assert not Replicate(recipe(**settings), 0, recorder=Tape()).capturing
    with pytest.raises(DeviceError, match=f"capture: on, but {reason}"):
        Replicate(recipe(**settings, capture="on"), 0, recorder=Tape())


def test_a_cpu_records_nothing_and_off_is_off():
    assert recorder_of(torch.device("cpu")) is None
    with pytest.raises(DeviceError, match="capture: on, but a CPU's steps are not recorded"):
        Replicate(recipe(capture="on"), 0)
    assert not Replicate(recipe(capture="off"), 0, recorder=Tape()).capturing
    on = Replicate(recipe(capture="on"), 0, recorder=Tape())
    assert on.steps == "eager"  # nothing is recorded yet
    on.train_epoch()
    assert on.steps == "captured"


def test_how_it_runs_is_no_part_of_what_it_is():
    assert recipe(capture="off", seeds_together="on").essence() == recipe().essence()
