"""A study file is checked whole, at the door, and every message names a key and a way out."""

import pytest

from study.spec import Study, StudyError

GOOD = """\
name: small
question: Does it work?
recipe: {dataset: digits, model: digits_cnn, epochs: 4, batch_size: 64}
arms:
  fsam: {optimiser: fsam}
  sam: {optimiser: sam}
  sgd: {optimiser: sgd}
grid:
  gamma: [0.01, 0.1]
  eta: [1e-4, 1, 10]
seeds: [0, 1]
"""


@pytest.fixture
def load(tmp_path):
    def load(text, *overrides):
        file = tmp_path / "study.yaml"
        file.write_text(text)
        return Study.load(file, overrides)

    return load


def problems(load, text, *overrides):
    with pytest.raises(StudyError) as caught:
        load(text, *overrides)
    return [str(p) for p in caught.value.problems]


def cells(study):
    return [(arm, r.gamma, r.eta) for arm, r in study.points]


def test_each_arm_crosses_the_axes_that_it_uses(load):
    found = cells(load(GOOD))
    assert found.count(("sgd", None, None)) == 1
    assert [c for c in found if c[0] == "sam"] == [("sam", 0.01, None), ("sam", 0.1, None)]
    assert len([c for c in found if c[0] == "fsam"]) == 6


def test_an_arm_that_sets_an_axis_itself_is_pinned_there(load):
    found = cells(
        load(
            GOOD.replace("sam: {optimiser: sam}", "sam: {optimiser: sam, gamma: 0.05}", 1).replace(
                "fsam: {optimiser: sam, gamma: 0.05}", "fsam: {optimiser: fsam}"
            )
        )
    )
    assert {c for c in found if c[1] == 0.05} <= {("sam", 0.05, None), ("fsam", 0.05, 1e-4)}
    pinned = GOOD.replace("  sam: {optimiser: sam}", "  sam: {optimiser: sam, gamma: 0.05}")
    assert [c for c in cells(load(pinned)) if c[0] == "sam"] == [("sam", 0.05, None)]


def test_one_e_minus_four_is_a_number(load):
    assert load(GOOD).grid["eta"] == [1e-4, 1, 10]
    assert next(r.eta for arm, r in load(GOOD).points if arm == "fsam") == 1e-4


def test_seeds_may_be_a_count(load):
    assert load(GOOD.replace("seeds: [0, 1]", "seeds: 3")).seeds == (0, 1, 2)


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("epochs: 4", "epoks: 4", 3, ["recipe.epoks", "unknown", "did you mean epochs?"]),
        ("gamma: [", "gama: [", 9, ["grid.gama", "did you mean gamma?"]),
        ("0.01, 0.1", "0.01, -0.1", 9, ["grid.gamma", "-0.1 is not above 0"]),
        ("0.01, 0.1", "0.01, large", 9, ["grid.gamma", "'large' is not a number"]),
        ("0.01, 0.1", "0.01, true", 9, ["grid.gamma", "true is not a number"]),
        ("0.01, 0.1", "0.01, .nan", 9, ["grid.gamma"]),
        ("0.01, 0.1", "0.01, .inf", 9, ["grid.gamma", "finite"]),
        ("0.01, 0.1", "0.1, 0.1", 9, ["grid.gamma: has a value twice"]),
        ("[0.01, 0.1]", "[]", 9, ["grid.gamma: has no values"]),
        ("model: digits_cnn", "model: digit_cnn", 3, ["unknown model 'digit_cnn'", "did you mean digits_cnn?"]),
        ("dataset: digits", "dataset: cifar", 3, ["unknown data set 'cifar'", "cifar10"]),
        ("optimiser: sgd", "optimiser: sdg", 7, ["arms.sgd.optimiser", "did you mean sgd?"]),
        ("optimiser: sgd", "optimiser: sgd, gamma: 0.1", 7, ["arms.sgd.gamma", "optimiser sgd does not use it"]),
        ("optimiser: sam}\n  sgd", "optimiser: sam, eta: 1}\n  sgd", 6, ["arms.sam.eta", "does not use it", "gamma"]),
        ("seeds: [0, 1]", "seeds: [0, 0]", 11, ["seeds", "twice"]),
        ("seeds: [0, 1]", "seeds: 0", 11, ["seeds", "at least one"]),
        ("seeds: [0, 1]", "seeds: [0, -1]", 11, ["seeds", "-1"]),
        ("seeds: [0, 1]", "sedes: [0, 1]", 11, ["sedes", "did you mean seeds?"]),
        ("seeds: [0, 1]", "epochs: 3", 11, ["epochs", "belongs under recipe"]),
        ("seeds: [0, 1]", "scheduler: ash", 11, ["scheduler.name", "'ash'", "fifo or asha"]),
        ("seeds: [0, 1]", "scheduler: {name: fifo, grace_period: 2}", 11, ["grace_period", "asha"]),
        ("seeds: [0, 1]", "scheduler: {name: asha, grace_period: 4}", 11, ["4 of 4 epochs"]),
        ("seeds: [0, 1]", "resources: {cpus: 1}", 11, ["resources.cpus", "did you mean cpu?"]),
        ("seeds: [0, 1]", "resources: {gpu: 1.5}", 11, ["resources.gpu", "whole number"]),
        ("seeds: [0, 1]", "checkpoints: {every: 1, seconds: 3}", 11, ["either every or seconds"]),
        ("name: small", "name: ../small", 1, ["name", "letters, digits"]),
        ("epochs: 4", "epochs: 4, epochs: 5", 3, ["epochs is given twice"]),
        ("epochs: 4", "momentum: 0, nesterov: true", 3, ["nesterov", "momentum above 0"]),
        ("model: digits_cnn", "model: resnet18, train_size: 65", 3, ["batch_size", "one image"]),
        ("batch_size: 64", "batch_size: 64, validation_size: 5000", 3, ["validation_size", "no training images"]),
        ("batch_size: 64", "batch_size: 64, cutout_size: 4", 3, ["cutout_size", "no arm uses it"]),
        ("batch_size: 64", "batch_size: 64, gamma: 0.3", 9, ["grid.gamma", "in one place"]),
        ("question: Does it work?\n", "", None, ["question", "missing"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_place_and_a_way_out(load, old, new, line, words):
    assert old in GOOD
    found = problems(load, GOOD.replace(old, new, 1))
    assert len(found) == 1, found
    for word in words:
        assert word in found[0]
    if line:
        assert f"study.yaml:{line}: " in found[0] or f"study.yaml: line {line}: " in found[0], found[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seeds: 100000000000", "at most"),
        ("seeds: [18446744073709551616]", "2^63"),
        ("resources: {gpu: .inf}", "resources.gpu"),
        ("seeds: 1:30", "seeds"),
        ("arms: &x {a: *x}", "contains itself"),
        ("arms: {on: {optimiser: sam}, 1: {}}", "put it in quotes"),
    ],
)
def test_yaml_that_would_be_misread_or_break_later_is_refused(load, text, words):
    base = "name: a\nquestion: b\nrecipe: {optimiser: sam}\n"
    assert words in " ".join(problems(load, base + text + "\n"))


def test_on_and_010_are_what_they_look_like(load):
    study = load("name: on\nquestion: yes\nrecipe: {optimiser: sam}\nseeds: 010\n")
    assert (study.name, study.question, len(study.seeds)) == ("on", "yes", 10)


def test_a_merge_key_merges(load):
    text = "name: a\nquestion: b\narms:\n  x: &x {optimiser: sam}\n  y: {<<: *x, gamma: 0.3}\n"
    assert {(arm, r.gamma) for arm, r in load(text).points} == {("x", 0.05), ("y", 0.3)}


def test_set_changes_one_place_where_an_alias_stands_in_two(load):
    text = "name: a\nquestion: b\narms:\n  x: &x {optimiser: sam}\n  y: *x\n"
    study = load(text, "arms.x.gamma=0.3")
    assert [(arm, r.gamma) for arm, r in study.points] == [("x", 0.3), ("y", 0.05)]


def test_a_problem_of_a_set_value_points_at_set_and_not_at_a_line(load):
    (found,) = problems(load, GOOD, "grid.gamma=[0.1, -1]")
    assert found.startswith("--set: grid.gamma[1]")


def test_set_opens_a_section_that_is_empty_or_in_its_short_form(load):
    study = load(GOOD + "scheduler: asha\nresources: auto\ncheckpoints:\n", "scheduler.grace_period=2",
                 "resources.cpu=2", "checkpoints.every=3")  # fmt: skip
    assert (study.scheduler.grace_period, study.resources.cpu, study.checkpoints.every) == (2, 2, 3)


def test_every_mistake_is_reported_at_once(load):
    text = GOOD.replace("epochs: 4", "epoks: 4").replace("0.01, 0.1", "-1").replace("seeds: [0, 1]", "sedes: 3")
    found = " ".join(problems(load, text))
    for word in ("epoks", "-1 is not above 0", "sedes"):
        assert word in found


@pytest.mark.parametrize(
    "text", ["", "- 1", "just text", "a: [1", "a: !!python/object/apply:os.system ['true']", "1: 2"]
)
def test_what_is_no_study_is_one_line(load, text):
    found = problems(load, text)
    assert len(found) >= 1
    assert all("\n" not in p for p in found)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(StudyError, match="no such file"):
        Study.load(tmp_path / "nothing.yaml")


def test_set_reaches_every_level_and_is_checked(load):
    study = load(GOOD, "epochs=2", "grid.gamma=[0.5]", "seeds=1", "arms.sam.gamma=0.2", "storage=elsewhere")
    assert {r.epochs for _, r in study.points} == {2}
    assert ("sam", 0.2, None) in cells(study)
    assert study.seeds == (0,)
    assert study.storage == "elsewhere"
    assert "did you mean epochs?" in problems(load, GOOD, "recipe.epoks=3")[0]
    assert "write key=value" in problems(load, GOOD, "epochs")[0]


def test_a_study_without_arms_has_one_named_after_its_optimiser(load):
    text = "name: a\nquestion: b\nrecipe: {optimiser: sam}\ngrid: {gamma: [0.1, 0.2]}\n"
    assert cells(load(text)) == [("sam", 0.1, None), ("sam", 0.2, None)]


def test_an_axis_that_no_arm_uses_is_an_error(load):
    text = "name: a\nquestion: b\nrecipe: {optimiser: sam}\ngrid: {gamma: [0.1], eta: [1]}\n"
    assert "no arm uses it" in problems(load, text)[0]


def test_asha_refuses_cells_of_different_length(load):
    text = GOOD.replace("optimiser: sgd", "optimiser: sgd, epochs: 8") + "scheduler: asha\n"
    assert "one length" in problems(load, text)[0]
