"""`study audit` prints what replaying a folder's curves finds; `study plan` warns where ASHA has too few cells."""

import json
import random

import pytest
from recorded import ended, trained

from study.cli import main
from study.plan import make_plan
from study.spec import Study
from study.store import StudyFolder

EPOCHS = 6


def study(tmp_path, **more):
    spec = {
        "name": "s",
        "question": "q",
        "recipe": {"dataset": "digits", "model": "mlp", "optimiser": "sam", "epochs": EPOCHS},
        "grid": {"gamma": [0.01, 0.02, 0.05, 0.1, 0.2]},
        "seeds": [0, 1],
        "storage": str(tmp_path),
    }
    return Study.of({**spec, **more})


def folder_of(study, tmp_path, full=None):
    """A folder in which the first `full` cells (all) are complete, and nothing else has begun."""
    folder = StudyFolder(str(tmp_path / study.name))
    plan = make_plan(study, folder)
    folder.save_study(study.model_dump(mode="json"), "", plan.rows())
    draw = random.Random(0)
    for trial in plan.todo[:full]:
        level = draw.random()
        rows, history = [], []
        for seed in trial.seeds:
            values = [min(1.0, level * e / EPOCHS + 0.01 * draw.random()) for e in range(1, EPOCHS + 1)]
            history += [
                {"cell": trial.cell.id, "seed": seed, "epoch": e, "validation_accuracy": v, "train_seconds": float(e)}
                for e, v in enumerate(values, start=1)
            ]
            rows.append(
                {"cell": trial.cell.id, "seed": seed, "status": "complete", "epoch": EPOCHS, "run": "r",
                 "scheduler": None, "validation_accuracy": values[-1], "test_accuracy": values[-1],
                 "train_seconds": float(EPOCHS)}
            )  # fmt: skip
        trained(folder, trial.id, history)
        ended(folder, trial.id, rows)
    return folder


def test_an_audit_is_printed_in_lines_of_readable_length(tmp_path, capsys):
    folder_of(study(tmp_path), tmp_path)
    assert main(["audit", str(tmp_path / "s"), "--orders", "5", "--at-once", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines).startswith(
        "s: 5 of 5 cells have full curves; ASHA replayed over them in 5 random launch orders, 2 at once, an "
        "epoch a step"
    )
    table = [line.split() for line in lines if line[:3] == "  1" or line[:3] == "  2"]
    assert [(row[0], row[1]) for row in table] == [(g, r) for g in "12" for r in "234"]
    assert max(map(len, lines)) <= 140
    assert "n=2 seeds" in " ".join(lines)


def test_an_audit_as_json_holds_the_settings_that_were_asked_for(tmp_path, capsys):
    folder_of(study(tmp_path), tmp_path, full=4)
    arguments = ["audit", str(tmp_path / "s"), "--grace", "1", "3", "--reduction", "2", "--max-t", "4", "--json"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(s["grace_period"], s["reduction_factor"], s["max_t"]) for s in found["settings"]] == [(1, 2, 4), (3, 2, 4)]
    assert (found["cells"], found["orders"], found["at_once"], found["seed"]) == (4, 20, 4, 0)
    assert [row["status"] for row in found["left_out"]] == ["missing"]
    assert all(0 <= s["saved"] < 1 and s["orders"] == 20 for s in found["settings"])
    ranks = {row["epoch"]: row["spearman"] for row in found["rank_correlations"]}
    assert ranks[EPOCHS] == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--grace", "9"], "no setting has a rung below the last of 6 epochs"),
        (["--grace", "0"], "argument --grace: 0 is below 1"),
        (["--reduction", "1"], "argument --reduction: 1 is below 2"),
        (["--orders", "many"], "argument --orders: 'many' is no whole number"),
    ],
)
def test_settings_that_cannot_be_replayed_are_refused_in_a_line(tmp_path, capsys, arguments, said):
    folder_of(study(tmp_path), tmp_path)
    try:
        code = main(["audit", str(tmp_path / "s"), *arguments])
    except SystemExit as left:
        code = left.code
    assert code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("full", "said"), [(0, "no epoch has been recorded yet"), (1, "1 cell of 5 trained in full")])
def test_a_folder_without_two_full_curves_is_refused_in_a_line(tmp_path, capsys, full, said):
    folder_of(study(tmp_path), tmp_path, full=full)
    assert main(["audit", str(tmp_path / "s")]) == 2
    assert said in capsys.readouterr().err


def test_no_study_is_refused_in_a_line(tmp_path, capsys):
    assert main(["audit", str(tmp_path)]) == 2
    assert "holds no study" in capsys.readouterr().err


def planned(tmp_path, capsys, *arguments, **more):
    file = tmp_path / "s.yaml"
    file.write_text(json.dumps(study(tmp_path, **more).model_dump(mode="json", exclude_unset=True)))
    assert main(["plan", str(file), *arguments]) == 0
    return capsys.readouterr().out


def asha(grace, reduction):
    return {"name": "asha", "grace_period": grace, "reduction_factor": reduction}


def test_a_plan_warns_of_arms_with_few_cells_and_says_what_to_do(tmp_path, capsys):
    said = planned(tmp_path, capsys, scheduler=asha(1, 3))
    assert "warning: too few cells for ASHA to choose well: " in said
    assert "(5), fewer than reduction_factor squared (9)" in said
    assert "--set scheduler=fifo" in said
    found = json.loads(planned(tmp_path, capsys, "--json", scheduler=asha(1, 3)))["early_stopping"]
    assert f"it would save {100 * found['saved']:.0f} % of the epochs" in said
    assert list(found["cells"].values()) == [5]
    assert 1 <= found["complete"] < 5


def test_a_plan_warns_of_a_grace_period_that_leaves_little_to_save(tmp_path, capsys):
    said = planned(tmp_path, capsys, scheduler=asha(5, 2))
    assert "warning: ASHA can save little here" in said
    assert "lower grace_period" in said


def test_a_plan_of_many_cells_or_without_asha_has_no_warning(tmp_path, capsys):
    many = {"gamma": [round(0.001 * i, 3) for i in range(1, 31)]}
    assert "warning" not in planned(tmp_path, capsys, scheduler=asha(1, 4), grid=many)
    assert "warning" not in planned(tmp_path, capsys)
    assert json.loads(planned(tmp_path, capsys, "--json"))["early_stopping"] is None
