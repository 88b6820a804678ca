"""The benchmarks measure what they say: the peer trains as ours does, and records hold what a reader needs."""

import copy
import getpass
import json
import platform
from pathlib import Path

import pytest
import torch
from recorded import ended
from torch.nn import functional as F

from benchmarks import davda54, measure, steps
from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.control_plane import Beside, Ran, _ran, further_trial
from benchmarks.operations import Operations
from trainables.models import build
from trainables.recipe import Recipe
from trainables.replicate import Replicate

SMALLEST = steps.Plan(
    (steps.Case("digits_cnn", 8, 1, 8, rounds=3, repeats=5),),
    steps.Case("resnet20", 2, 3, 16, rounds=1, repeats=1),
)
SUMMARY = {"unit", "n", "median", "min", "max"}


def _digits_network():
    torch.manual_seed(0)
    return build("digits_cnn", classes=10, channels=1, side=8).double()


def _train(model, layout, contender):
    generator = torch.Generator().manual_seed(1)
    step = steps.contenders(model, steps.LAYOUTS[layout])[contender]
    return [
        float(
            step(
                torch.randn(16, 1, 8, 8, generator=generator, dtype=torch.float64),
                torch.randint(10, (16,), generator=generator),
            )
        )
        for _ in range(8)
    ]


@pytest.mark.parametrize("layout", steps.LAYOUTS)
@pytest.mark.parametrize(("ours", "peer"), [("our sam", "davda54 sam"), ("our sgd", "plain sgd")])
def test_ours_and_the_peer_take_the_same_steps_in_float64(layout, ours, peer):
    model = _digits_network()
    assert _train(model, layout, ours) == pytest.approx(_train(model, "contiguous", peer), rel=1e-9)


@pytest.mark.parametrize("metric", [None, "sam", "fsam"])
def test_our_contender_has_the_optimiser_that_a_replicate_makes(metric):
    network = _digits_network()
    recipe = {"dataset": "digits", "model": "digits_cnn", "optimiser": metric or "sgd", "device": "cpu"}
    knobs = {"gamma": steps.GAMMA, "eta": steps.ETA}
    used = {"sam": ("gamma",), "fsam": ("gamma", "eta")}.get(metric, ())
    recipe |= {"lr": steps.BASE["lr"], **{key: knobs[key] for key in used}}
    trained, timed = Replicate(Recipe.of(recipe), seed=0).optimiser, steps.sharpness_aware(network, metric)
    assert timed.base.defaults == trained.base.defaults
    assert timed.base.defaults["fused"]
    assert timed.defaults == trained.defaults
    assert (timed.metric, type(timed.base), timed.module is network) == (trained.metric, type(trained.base), True)


def test_the_contenders_are_different_optimisers():
    model = _digits_network()
    last = {name: _train(model, "contiguous", name)[-1] for name in ("our sgd", "our sam", "our fsam")}
    assert len({round(loss, 9) for loss in last.values()}) == 3


def test_the_peers_weights_and_running_statistics_end_as_ours_do():
    model = _digits_network()
    mine, peers = copy.deepcopy(model), copy.deepcopy(model)
    ours = steps.sharpness_aware(mine, "sam")
    sam = davda54.SAM(peers.parameters(), torch.optim.SGD, rho=steps.GAMMA, **steps.BASE)
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        x = torch.randn(16, 1, 8, 8, generator=generator, dtype=torch.float64)
        y = torch.randint(10, (16,), generator=generator)

        def closure(x=x, y=y):
            ours.zero_grad()
            loss = F.cross_entropy(mine(x), y)
            loss.backward()
            return loss

        ours.step(closure)
        davda54.sam_step(peers, sam, F.cross_entropy, x, y)
    for (name, a), b in zip(mine.state_dict().items(), peers.state_dict().values(), strict=True):
        if not name.endswith("num_batches_tracked"):  # the published loop counts the second pass
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=name)


def test_ours_issues_few_operations_where_the_peer_issues_some_for_every_parameter():
    counts = steps.measure(steps.Plan((), SMALLEST.counted)).counts
    ours, peer = (counts[f"resnet20: operations a step, {name}"] for name in ("our sam", "davda54 sam"))
    parameters = sum(1 for _ in build("resnet20", classes=10, channels=3, side=16).parameters())
    assert ours < parameters
    assert peer > 8 * parameters


def test_operations_are_counted_by_name():
    x = torch.ones(3)
    with Operations() as operations:
        torch._foreach_add_([x, x], 1.0)
        x.mul_(2)
    x.mul_(2)
    assert operations.total == 2
    assert operations.by_name["aten.mul_.Tensor"] == 1


def test_quick_steps_writes_a_record_with_its_fields_and_nothing_of_where_it_ran(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(steps, "QUICK", SMALLEST)
    assert main(["--quick", "--record", "--folder", str(tmp_path), "steps"]) == 0
    (path,) = tmp_path.iterdir()
    text = path.read_text()
    record = json.loads(text)
    assert path.name == f"{record['date'][:10]}-steps.json"
    assert record["command"] == ["python", "-m", "benchmarks", "--quick", "steps"]
    assert {"processor", "cpus", "usable_cpus", "memory_gib", "load_average_before"} <= set(record["machine"])
    assert torch.__version__.startswith(record["versions"]["torch"])
    assert record["settings"]["precision"] == "float32"
    assert record["settings"]["threads"] == 1
    assert len(record["samples"]) == 10
    assert all(set(s) == SUMMARY and s["n"] == 3 for s in record["samples"].values())
    sam = record["ratios"]["digits_cnn: our sam / our sgd, channels_last"]
    assert sam["min"] <= sam["median"] <= sam["max"]
    assert sam["median"] > 1  # two passes cost more than one
    for private in (platform.node(), str(Path.home()), str(Path.cwd()), str(tmp_path), getpass.getuser()):
        assert f'"{private}' not in text
        assert f"{private}/" not in text
    printed = capsys.readouterr().out.splitlines()
    rows = [line for line in printed if line.startswith("digits_cnn")]
    assert "our sam / our sgd" in rows[0]
    assert len({len(line) for line in rows if line.endswith(" ms")}) == 1  # aligned


def test_nothing_is_written_unless_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "QUICK", steps.Plan((), SMALLEST.counted))
    main(["--quick", "--folder", str(tmp_path), "steps"])
    assert not list(tmp_path.iterdir())


def test_an_unknown_name_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["step"])
    assert ended.value.code == 2
    assert f"step (known: {', '.join(BENCHMARKS)})" in " ".join(capsys.readouterr().err.split())
    known = {"steps", "epoch", "augmentation", "control_plane", "ninety", "overhead", "bookkeeping", "replay", "soak"}
    assert {*known, "resume", "fault_matrix"} == set(BENCHMARKS)


def test_rounds_run_everything_in_turn():
    calls = []
    seconds = measure.interleaved(
        {name: lambda name=name: calls.append(name) for name in "abc"}, rounds=2, repeats=2, warm_up=1
    )
    assert "".join(calls) == "abc" + "aabbcc" * 2
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2, "c": 2}


def test_a_ratio_compares_neighbours_so_that_a_slow_minute_cancels():
    found = measure.ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0])
    assert (found.median, found.min, found.max, found.n, found.unit) == (2, 2, 2, 3, "ratio")


def test_what_a_further_trial_costs_is_free_of_its_training_and_of_the_start():
    def run(trials):
        # 3 s of start, 0.5 s of control plane a trial, 4 s of training a trial on 2 cores, evaluation 0.2 s
        record = {
            "seconds": 3 + trials * (0.5 + 4.2 / 2),
            "train_seconds": trials * 4.0,
            "trials": {"complete": trials},
        }
        return _ran(20.0, record, [3] * trials, cores=2, beside=Beside(build=0.05, validation=0.04, test=0.03))

    few, many = run(4), run(24)
    assert few.trials == 4
    assert few.start_up == pytest.approx(20 - few.run_seconds)
    assert further_trial(few, many) == pytest.approx(0.5)


def test_a_study_without_a_gap_on_its_cores_is_ideal():
    ran = Ran(command_seconds=12, run_seconds=10, train_seconds=20, bare_seconds=20, trials=4, cores=2)
    assert ran.run_seconds / ran.ideal(ran.train_seconds) == 1
    assert ran.start_up == 2


def test_a_studys_record_has_its_results_and_no_place_of_the_machine(tmp_path):
    from benchmarks.studies import document
    from study.plan import make_plan
    from study.spec import Study
    from study.store import StudyFolder

    spec = {
        "name": "s",
        "question": "q",
        "recipe": {"dataset": "synthetic", "model": "mlp", "optimiser": "sgd", "epochs": 1},
        "seeds": [0, 1],
        "storage": str(tmp_path),
        "data": str(tmp_path),
    }
    (tmp_path / "w.safetensors").write_bytes(b"weights")
    spec["recipe"]["pretrained"] = str(tmp_path / "w.safetensors")
    study = Study.of(spec)
    folder = StudyFolder(str(tmp_path / "s"))
    plan = make_plan(study, folder)
    folder.save_study(study.model_dump(mode="json"), "", plan.rows())
    folder.save_run("r", {"run": "r", "started": "2026-11-25T00:00:00+00:00", "command": ["study", str(tmp_path)]})
    rows = [
        {"cell": plan.cells[0].id, "seed": seed, "status": "complete", "epoch": 1, "run": "r", "scheduler": None,
         "validation_accuracy": 0.5, "test_accuracy": 0.5 + 0.1 * seed, "test_loss": 1.0, "gradient_evaluations": 3,
         "train_seconds": 1.0}
        for seed in (0, 1)
    ]  # fmt: skip
    ended(folder, plan.todo[0].id, rows)
    record = document(str(tmp_path / "s"), card="one NVIDIA H100")
    assert record["benchmark"] == "study-s"
    assert record["card"] == "one NVIDIA H100"
    assert record["cells"][0]["mean"] == pytest.approx(0.55)
    assert record["cells"][0]["n"] == 2
    assert record["study"]["recipe"]["pretrained"] == "w.safetensors"
    assert str(tmp_path) not in json.dumps(record)
