"""What a study has used is counted as it was held, over all its runs, and a budget says when it is enough."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.budget import WRITE_EVERY, Balance, Meter, Usage, estimated_lines, reached, recorded, unlimited, used
from study.cli import main
from study.plan import make_plan
from study.settings import Budget, Price
from study.spec import Study, StudyError
from study.store import StudyFolder

CONTENT = {
    "name": "small",
    "question": "Is it enough?",
    "recipe": {"dataset": "synthetic", "model": "mlp", "batch_size": 32, "epochs": 4},
    "arms": {"fsam": {"optimiser": "fsam"}, "sgd": {"optimiser": "sgd"}},
    "grid": {"gamma": [0.05, 0.1]},
    "seeds": 2,
}


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("text", "seconds"), [("45 s", 45), ("90 min", 5400), ("12 h", 43200), ("1.5h", 5400), ("2 d", 172800), (7.5, 7.5)]
)
def test_wall_is_seconds_or_text_with_a_unit(text, seconds):
    assert Budget(wall=text).wall == seconds


@pytest.mark.parametrize(
    ("key", "value"), [("wall", "12"), ("wall", "soon"), ("wall", "-1 h"), ("wall", True), ("wall", 0),
                       ("gpu_hours", -1), ("gpu_hours", float("inf")), ("cost", "ten")],
)  # fmt: skip
def test_a_budget_that_is_none_is_refused_with_its_key(key, value):
    with pytest.raises(StudyError, match=rf"^budget\.{key}: "):
        Study.of({**CONTENT, "price": 1, "budget": {key: value}})


def test_a_cost_without_a_price_and_an_unknown_limit_are_refused():
    with pytest.raises(StudyError, match=r"^budget\.cost: needs a price"):
        Study.of({**CONTENT, "budget": {"cost": 10}})
    with pytest.raises(StudyError, match=r"^budget\.gpu_hour: unknown; did you mean gpu_hours\?"):
        Study.of({**CONTENT, "budget": {"gpu_hour": 10}})


def test_a_price_is_a_number_a_number_with_a_currency_or_one_for_each_kind_of_device():
    assert Study.of({**CONTENT, "price": 2}).price == Price(gpu=2, cpu=2)
    assert Study.of({**CONTENT, "price": "2.10 EUR"}).price == Price(gpu=2.1, cpu=2.1, currency="EUR")
    assert Study.of({**CONTENT, "price": {"gpu": 2.5, "currency": "$"}}).price == Price(gpu=2.5, cpu=0, currency="$")
    for wrong in ("free", -1, {"gpu": float("nan")}, {"tpu": 1}):
        with pytest.raises(StudyError, match=r"^price"):
            Study.of({**CONTENT, "price": wrong})


def test_the_budget_and_the_price_are_no_part_of_a_cell(tmp_path):
    plain = make_plan(Study.of(CONTENT), StudyFolder(str(tmp_path / "a")))
    more = {"budget": {"gpu_hours": 1, "wall": "1 h", "cost": 2}, "price": "3 EUR"}
    bound = make_plan(Study.of({**CONTENT, **more}), StudyFolder(str(tmp_path / "b")))
    assert [t.id for t in bound.todo] == [t.id for t in plain.todo]
    assert bound.rows() == plain.rows()


def test_the_frozen_study_can_be_read_back_with_its_budget():
    study = Study.of({**CONTENT, "budget": {"wall": "1 h", "cost": 2}, "price": "3 EUR"})
    again = json.loads(json.dumps(study.model_dump(mode="json")))
    assert (Budget(**again["budget"]), Price(**again["price"])) == (study.budget, study.price)


moments = st.lists(st.tuples(st.floats(0, 1000), st.integers(0, 50)), max_size=30)


@given(moments, st.sampled_from([{"cpu": 2.0, "gpu": 0.0}, {"cpu": 3.0, "gpu": 0.25}, {"cpu": 1.0, "gpu": 4.0}]))
def test_the_meter_is_the_integral_of_the_workers_that_hold_devices(steps, resources):
    clock = Clock()
    meter = Meter(resources, Usage(), Budget(), None, clock=clock)
    area, live, passed = 0.0, 0, 0.0
    for seconds, workers in steps:
        clock.now += seconds
        area, passed = area + live * seconds, passed + seconds
        meter.tick(workers)
        live = workers
    meter.stop()
    usage = meter.usage()
    held = {"gpu": resources["gpu"] * area, "cpu": 0 if resources["gpu"] else resources["cpu"] * area}
    assert (usage.gpu, usage.cpu, usage.wall) == pytest.approx((held["gpu"], held["cpu"], passed))


def test_what_workers_still_hold_while_they_end_is_counted():
    clock = Clock()
    meter = Meter({"cpu": 1, "gpu": 1}, Usage(), Budget(), None, clock=clock)
    meter.tick(2)
    clock.now += 10
    meter.stop()
    assert meter.usage().gpu == 20


@pytest.mark.parametrize(
    ("budget", "after"),
    # Two GPUs from the start, 3600 s used before: 1 GPU hour of 1.5 is left, then wall, then money at 2 an hour.
    [
        (Budget(gpu_hours=1.5), 900),
        (Budget(wall=1000), 500),
        (Budget(cost=2.5), 450),
        (Budget(cost=2.5, wall=700), 200),
    ],
)
def test_a_budget_is_reached_when_all_runs_together_have_used_it(budget, after):
    clock = Clock()
    meter = Meter({"cpu": 4, "gpu": 1}, Usage(gpu=3600, wall=500), budget, Price(gpu=2), clock=clock)
    meter.tick(2)
    clock.now += after - 1
    meter.tick(2)
    assert meter.reached is None
    clock.now += 1
    meter.tick(2)
    assert meter.reached is not None
    assert meter.reached.startswith("budget.")


def test_the_usage_is_written_now_and_then_while_a_run_goes_on():
    clock, written = Clock(), []
    meter = Meter({"cpu": 1, "gpu": 0}, Usage(), Budget(), None, written.append, clock)
    for _ in range(int(3 * WRITE_EVERY)):
        clock.now += 1
        meter.tick(1)
        meter.save()
    assert len(written) == 3
    gaps = [b.wall - a.wall for a, b in pairwise(written)]
    assert gaps == [WRITE_EVERY] * 2
    assert written[-1].cpu == written[-1].wall - 1


def test_usage_is_summed_over_runs_killed_ones_included_and_old_ones_are_a_lower_bound():
    killed = {
        "run": "a",
        "ended": None,
        "resources": {"gpu": 1.0, "cpu": 1.0},
        "usage": {"gpu": 60, "cpu": 0, "wall": 9},
    }
    cpu = {"run": "b", "usage": recorded(Usage(cpu=7200, wall=3600))}
    old = {"run": "c", "resources": {"gpu": 0.5, "cpu": 1.0}, "train_seconds": 100.0, "seconds": 80.0}
    merge = {"run": "d", "merge": {"from": "x"}}
    assert used([killed, cpu, merge]) == Usage(60, 7200, 3609, 0)
    assert used([killed, cpu, old, merge]) == Usage(110, 7200, 3689, 1)
    spec = {"budget": {"cost": 5, "wall": 3600}, "price": {"gpu": 60, "cpu": 1, "currency": "EUR"}}
    balance = Balance.of(spec, used([killed, cpu]))
    assert (balance.cost, balance.left) == (3.0, {"wall": 0.0, "cost": 2.0})
    assert balance.spent == "budget.wall: 1 h 0 min of 1 h 0 min used"
    assert str(balance) == ("used: 0.02 GPU hours and 2.00 CPU hours in 1 h 0 min, 3.00 EUR; left: 0 s, 2.00 EUR")
    assert "at least" in str(Balance.of({}, used([old])))


def test_a_study_of_an_earlier_version_has_no_budget():
    balance = Balance.of({}, Usage(cpu=36))
    assert (balance.left, balance.cost, balance.spent) == ({}, None, None)
    assert reached(Budget(), None, Usage(gpu=1e12, wall=1e12)) is None


def test_gpu_hours_do_not_limit_trials_without_a_gpu_and_that_is_said():
    assert reached(Budget(gpu_hours=1), None, Usage(cpu=1e9)) is None
    assert "does not limit" in unlimited(Budget(gpu_hours=1), {"cpu": 1, "gpu": 0})
    assert unlimited(Budget(gpu_hours=1), {"cpu": 1, "gpu": 0.5}) is None
    assert unlimited(Budget(wall=1), {"cpu": 1, "gpu": 0}) is None


def test_an_estimate_warns_of_a_budget_that_will_not_do():
    price, before = Price(gpu=2, currency="EUR"), Usage(gpu=3600)
    enough = estimated_lines(3600, {"gpu": 0.5, "cpu": 1}, Budget(cost=3), price, before)
    assert enough == ["cost: 0.50 GPU hours, 1.00 EUR (of training alone, 0.5 GPU a trial)"]
    (_, warning) = estimated_lines(7200, {"gpu": 1, "cpu": 1}, Budget(cost=3), price, before)
    assert warning.startswith("warning: budget.cost has 1.00 EUR left of 3.00 EUR, less than the 4.00 EUR")


def plan(tmp_path, capsys, text, *more):
    file = tmp_path / "study.yaml"
    file.write_text(json.dumps({**CONTENT, **text}))
    assert main(["plan", str(file), "--storage", str(tmp_path), *more]) == 0
    return capsys.readouterr().out


def test_a_plan_gives_gradients_only_where_nobody_knows_the_time(tmp_path, capsys):
    out = plan(tmp_path, capsys, {"price": "3 EUR", "resources": {"gpu": 0}})
    assert "minibatch gradients" in out
    assert "time and cost: not known" in out
    assert "EUR" not in out
    # 3 cells x 2 seeds x 4 epochs x 150 s = one hour on one CPU.
    out = plan(tmp_path, capsys, {"price": "3 EUR", "resources": {"gpu": 0}}, "--seconds-per-epoch", "150")
    assert "time: 1 h 0 min of training" in out
    assert "cost: 1.00 CPU hours, 3.00 EUR" in out


def test_seeds_side_by_side_take_their_time_together(tmp_path, capsys):
    seconds = ("--seconds-per-epoch", "150")
    side_by_side = {"price": "3 EUR", "resources": {"gpu": 0, "processes": 2}}
    # Half an hour, on the two CPUs that two processes take.
    assert "cost: 1.00 CPU hours, 3.00 EUR" in (out := plan(tmp_path, capsys, side_by_side, *seconds))
    assert "time: 30 min 0 s of training" in out
    shared = {"price": "3 EUR", "resources": {"gpu": 0, "processes": 2, "data_parallel": True}}
    assert "cost: 2.00 CPU hours, 6.00 EUR" in (out := plan(tmp_path, capsys, shared, *seconds))
    assert "time: 1 h 0 min of training" in out


def test_a_plan_as_json_has_estimate_and_balance(tmp_path, capsys):
    text = {"price": {"gpu": 6}, "resources": {"gpu": 0.5}, "budget": {"gpu_hours": 2}}
    found = json.loads(plan(tmp_path, capsys, text, "--json", "--seconds-per-epoch", "150"))
    assert found["estimate"] == {"training_seconds": 3600.0, "gpu_hours": 0.5, "cpu_hours": 0.0, "cost": 3.0}
    assert found["balance"]["left"] == {"gpu_hours": 2.0}
    assert json.loads(plan(tmp_path, capsys, text, "--json"))["estimate"]["cost"] is None


def test_the_speed_of_begun_trials_counts_their_seconds_once(tmp_path, capsys):
    folder = StudyFolder(str(tmp_path / "small"))
    study = Study.of(CONTENT)
    made = make_plan(study, folder)
    folder.save_study(study.model_dump(mode="json"), "", made.rows())
    recording = folder.recording("r1")
    for epoch in (1, 2):
        row = {
            "cell": made.cells[0].id,
            "epoch": epoch,
            "train_seconds": 10.0 * epoch,
            "gradient_evaluations": 20 * epoch,
        }
        recording.history("t1", [{**row, "seed": seed} for seed in (0, 1)])
    recording.close()
    out = plan(tmp_path, capsys, {})
    (gradients,) = [int(part.split()[0].replace(",", "")) for part in out.split(", ") if "gradients" in part]
    assert f"time: {round(gradients / 2) // 60} min" in out
    assert "the 2 replicates begun" in out
