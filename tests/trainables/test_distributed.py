"""Several processes in one trial: the same numbers as one process, and a clear end when one of them goes."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from test_trial import Memory, job, rows, timeless

from trainables.data import DataError
from trainables.devices import DeviceError, resolve_device, resolve_devices, unshareable
from trainables.distributed import ProcessDied, ProcessFailed, Team
from trainables.memory import OutOfMemory
from trainables.models import MODELS, build
from trainables.recipe import Recipe
from trainables.replicate import Replicate
from trainables.trial import Trial

#: BatchNorm, label smoothing, momentum, weight decay; batches of 50, 50, 50 and 3 images.
RECIPE = {"dataset": "digits", "model": "digits_cnn", "epochs": 3, "batch_size": 50, "train_size": 153,
          "validation_size": 101, "precision": "float64", "device": "cpu", "lr": 0.05}  # fmt: skip

EXACT = [
    {"optimiser": "sgd"},
    {"optimiser": "sam", "gamma": 0.5},
    {"optimiser": "asam"},
    {"optimiser": "asam", "asam_convention": "eq5"},
    {"optimiser": "fsam", "gamma": 0.5, "eta": 1e2},
    {"optimiser": "fsam", "gamma": 0.5, "eta": 1e2, "fisher": "per_example"},
    {"optimiser": "sgd", "natural_gradient": True, "eta": 10.0},
    {"optimiser": "sam", "train_size": 151},  # the last batch is one image: one process has none
    {"optimiser": "sam", "dropout": 0.3},
    {"optimiser": "sam", "dropout": 0.3, "same_dropout": True},
    {"optimiser": "sam", "augmentation": ["crop", "flip", "cutout"]},
    {"optimiser": "sam", "augmentation": ["resized_crop", "autoaugment"], "image_side": 12, "train_size": 151},
    {"optimiser": "sam", "base": "adamw", "lr": 0.005, "label_noise": 0.3},
    {"optimiser": "fsam", "m": 10, "eta": 1e2},  # five groups for two processes, and a last batch of one group
    {"optimiser": "fsam", "m": 10, "eta": 1e2, "fisher": "per_example"},
    {"optimiser": "sam", "m": 25, "dropout": 0.3},
    {"optimiser": "sam", "m": 17, "natural_gradient": True, "eta": 10.0},
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Kept:
    """One team for several tests, which starts anew after those that end it: torch takes its seconds to import."""

    def __init__(self, **more):
        self.more, self.team = more, None

    def __call__(self):
        if self.team is None or self.team.closed:
            self.team = Team(["cpu", "cpu"], **self.more)
        return self.team

    def close(self):
        if self.team is not None:
            self.team.close()


@pytest.fixture(scope="module")
def parallel():
    with contextlib.closing(Kept(data_parallel=True)) as kept:
        yield kept


@pytest.fixture(scope="module")
def side_by_side():
    with contextlib.closing(Kept()) as kept:
        yield kept


def farthest(a, b):
    """The largest relative distance of two states' tensors, the model's and the optimiser's."""
    pairs = [(a["model"][key], b["model"][key]) for key in a["model"]]
    for index, state in a["optimiser"]["state"].items():
        other = b["optimiser"]["state"][index]
        pairs += [(v, other[key]) for key, v in state.items() if isinstance(v, torch.Tensor)]
    return max(float((x - y).double().norm() / x.double().norm().clamp_min(1e-300)) for x, y in pairs)


@pytest.mark.parametrize("way", EXACT, ids=str)
def test_two_processes_take_the_steps_of_one(way, parallel):
    recipe = Recipe.of({**RECIPE, **way})
    alone, team = Replicate(recipe, 3), parallel()
    team.build(recipe, [3])
    for _ in range(recipe.epochs):
        expected, (row,) = alone.train_epoch(), team.each("train_epoch")
        for key in expected.keys() - {"train_seconds"}:
            assert row[key] == pytest.approx(expected[key], rel=1e-10, nan_ok=True), key
        assert farthest(alone.state_dict(), team.each("state_dict")[0]) < 1e-10
    assert team.each("final")[0] == pytest.approx(alone.final(), rel=1e-10)
    assert team.replicates[0].label_hash == alone.label_hash


def test_the_distance_that_is_asked_for_sees_a_probe_of_each_process_s_own():
    """m = half the batch is what data parallelism without the exchange before eps would train."""
    whole, own = (Replicate(Recipe.of({**RECIPE, "optimiser": "fsam", "eta": 1e2, **m}), 3) for m in ({}, {"m": 25}))
    whole.train_epoch()
    own.train_epoch()
    assert farthest(whole.state_dict(), own.state_dict()) > 1e-4


def test_processes_go_on_from_the_state_of_one_and_one_from_theirs(parallel):
    recipe = Recipe.of({**RECIPE, "optimiser": "fsam", "eta": 1e2})
    alone, team = Replicate(recipe, 1), parallel()
    alone.train_epoch()
    (remote,) = team.build(recipe, [1])
    remote.load_state_dict(alone.state_dict())
    team.each("train_epoch")
    alone.train_epoch()
    assert farthest(alone.state_dict(), remote.state_dict()) < 1e-10
    back = Replicate(recipe, 1)
    back.load_state_dict(remote.state_dict())
    alone.train_epoch()
    back.train_epoch()
    assert farthest(alone.state_dict(), back.state_dict()) < 1e-10


def test_seeds_side_by_side_have_the_numbers_that_they_have_in_turn(side_by_side):
    recipe = Recipe.of({**RECIPE, "precision": "float32", "optimiser": "fsam", "dropout": 0.3,
                        "augmentation": ["crop", "flip"], "label_noise": 0.2})  # fmt: skip
    team, seeds = side_by_side(), [4, 0, 7]
    team.build(recipe, seeds)
    alone = [Replicate(recipe, seed) for seed in seeds]
    for _ in range(2):
        found = team.each("train_epoch")
        assert timeless(found) == timeless([replicate.train_epoch() for replicate in alone])
    for remote, replicate, state, final in zip(
        team.replicates, alone, team.each("state_dict"), team.each("final"), strict=True
    ):
        for key, value in replicate.state_dict()["model"].items():
            assert torch.equal(state["model"][key], value), key
        assert final == replicate.final() == remote.final()
        assert remote.label_hash == replicate.label_hash


def test_seeds_are_trained_at_the_same_time_in_processes_of_their_own(side_by_side):
    team = side_by_side()
    team.build(Recipe.of({**RECIPE, "train_size": 1000, "optimiser": "fsam"}), [0, 1])
    before = [cpu_seconds(pid) for pid in team.pids]
    team.each("train_epoch")
    assert len(set(team.pids)) == 2
    assert os.getpid() not in team.pids
    assert all(after > first for first, after in zip(before, map(cpu_seconds, team.pids), strict=True))


def cpu_seconds(pid):
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


def test_a_process_that_is_killed_ends_the_team_and_is_named(parallel):
    team = parallel()
    team.build(Recipe.of({**RECIPE, "optimiser": "sam", "batch_size": 2, "train_size": 1000}), [0, 1])
    pids = team.pids
    killer = threading.Timer(0.3, os.kill, (pids[1], signal.SIGKILL))
    killer.start()
    with pytest.raises(ProcessDied, match=r"^process 2 of 2 of this trial \(cpu\) was killed by SIGKILL$"):
        team.each("train_epoch")
    assert team.closed
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    with pytest.raises(ProcessDied, match="have ended"):
        team.each("train_epoch")


def test_out_of_memory_in_one_process_is_said_as_one_process_says_it(side_by_side):
    team = side_by_side()
    team.build(Recipe.of({**RECIPE, "optimiser": "sam", "batch_size": 1000, "train_size": 1000}), [0, 1])
    size = int(Path(f"/proc/{team.pids[1]}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(team.pids[1], resource.RLIMIT_AS, (size, size))
    with pytest.raises(OutOfMemory, match=r"^out of memory on the CPU: model digits_cnn, batch_size 1000") as found:
        team.each("train_epoch")
    assert "\n" not in str(found.value)
    assert team.closed


def test_data_that_is_not_there_is_said_as_one_process_says_it():
    recipe = Recipe.of({"dataset": "cifar10", "model": "cifar_cnn", "device": "cpu"})
    with pytest.raises(DataError) as alone:
        Replicate(recipe, 0, None)
    with Team(["cpu"]) as team:
        with pytest.raises(ProcessFailed, match=r"^IndexError: "), contextlib.closing(Team(["cpu"])) as other:
            other.call(0, "final")
        with pytest.raises(DataError) as together:
            team.build(recipe, [0])
    assert str(together.value) == str(alone.value)
    assert "Traceback" in together.value.__notes__[0]


# -- in a trial


def start(keeper, made, **more):
    class Bound(Trial):
        def setup(self, config):
            super().setup(config, keeper=keeper, jobs={made[0]["trial"]: made[1]}, threads=1, checkpoint_every=1,
                          **more)  # fmt: skip

    return Bound(config=made[0])


def run(trial):
    reports = []
    while not reports or not reports[-1].get("done"):
        reports.append(trial.step())
    trial.cleanup()
    return reports


MEASURES = {"perturbation-1": ("perturbation", {"alpha": [0.5], "random_draws": 1})}


def test_a_trial_of_two_processes_reports_what_a_trial_of_one_does():
    made = job(seeds=(0, 1, 2), optimiser="fsam")
    made[1]["measures"] = MEASURES
    alone, together = Memory(), Memory()
    expected, found = run(start(alone, made)), run(start(together, made, processes=2))
    assert timeless(rows(found)) == timeless(rows(expected))
    assert timeless(found[-1]["replicates"]) == timeless(expected[-1]["replicates"])
    assert found[-1]["device"] == "CPU"
    assert together.measures == alone.measures


def test_a_trial_whose_process_is_killed_goes_on_from_its_checkpoint():
    made = job(seeds=(0,), optimiser="sam", precision="float64")
    keeper, more = Memory(), {"processes": 2, "data_parallel": True}
    expected = rows(run(start(Memory(), made)))
    first = start(keeper, made, **more)
    first.step()
    first.step()
    os.kill(first.team.pids[0], signal.SIGKILL)
    with pytest.raises(ProcessDied, match=r"process 1 of 2 .* SIGKILL"):
        first.step()
    first.cleanup()
    second = start(keeper, made, **more)
    assert second.epoch == 2
    reports = run(second)
    assert reports[-1]["device"] == "2 x CPU"
    for row, other in zip(rows(reports), expected, strict=True):
        for key in other.keys() - {"train_seconds", "cell"}:
            assert row[key] == pytest.approx(other[key], rel=1e-10, nan_ok=True), key
    assert second.team.closed


def test_a_process_ends_with_who_started_it():
    """Killed, its owner cannot say goodbye."""
    code = (
        "from trainables.distributed import Team; import sys, time\n"
        "team = Team(['cpu']); print(*team.pids, flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(owner.stdout.readline())
    owner.kill()
    owner.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


# -- devices


def test_a_gpu_that_is_not_seen_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(DeviceError, match=r"^device cuda:1: this process sees 1 GPU \(cuda:0\)$"):
        resolve_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DeviceError, match=r"^device cuda: this process sees no GPU$"):
        resolve_device("cuda")


def test_each_process_has_a_device(monkeypatch):
    assert resolve_devices("cpu", 3) == ["cpu"] * 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_devices("auto", 2) == resolve_devices("cuda", 2) == ["cuda:0", "cuda:1"]
    with pytest.raises(DeviceError, match=r"^device auto for 3 processes: this process sees 2 GPUs"):
        resolve_devices("auto", 3)
    with pytest.raises(DeviceError, match="cuda:1 is one device"):
        resolve_devices("cuda:1", 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_devices("auto", 2) == ["cpu", "cpu"]


@pytest.mark.parametrize(
    ("settings", "images", "said"),
    [
        ({"batch_size": 3}, None, "batch_size 3 is less than one image"),
        ({"m": 20}, None, "m 20 makes 3 groups of a batch of 50"),
        ({"m": 5, "precision": "float16"}, None, "a loss scale of its own"),
        ({"fisher": "per_example"}, 153, "the last batch has 3 images for 4 processes"),
        ({"fisher": "per_example"}, 150, None),
        ({"m": 5}, 153, None),
        ({}, 151, None),
    ],
)
def test_what_four_processes_cannot_share_is_said(settings, images, said):
    found = unshareable(Recipe.of({**RECIPE, **settings}), 4, images)
    assert found is None if said is None else said in found


@pytest.mark.parametrize("name", sorted(MODELS))
def test_no_network_has_a_state_that_sharing_batches_does_not_know(name):
    """Buffers are BatchNorm's, which momentum moves; what draws is `nn.Dropout`."""
    side = {"vit": 224}.get(name[:3], 32)
    if MODELS[name].refusal(side):
        side = 224
    with torch.device("meta"):
        try:
            model = build(name, classes=10, channels=3, side=side, dropout=0.5 if MODELS[name].dropout else None)
        except NotImplementedError:
            pytest.skip("draws its weights on the CPU")
    for layer in model.modules():
        own = [key for key, value in layer.named_buffers(recurse=False) if value is not None]
        assert not own or isinstance(layer, torch.nn.modules.batchnorm._BatchNorm), layer
        assert getattr(layer, "momentum", 0.1) is not None
        assert isinstance(layer, torch.nn.Dropout) or not isinstance(layer, torch.nn.modules.dropout._DropoutNd)
