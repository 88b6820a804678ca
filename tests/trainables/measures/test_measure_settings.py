"""What a study may write under `measures`, and what it is told otherwise."""

import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainables.measures import MEASURES, check
from trainables.measures.settings import Curvature, Perturbation, Sharpness
from trainables.problems import RecipeError
from trainables.sharpness import METRICS


def problems_of(written):
    with pytest.raises(RecipeError) as caught:
        check(written)
    assert all("\n" not in str(p) for p in caught.value.problems)
    return [str(p) for p in caught.value.problems]


def test_a_measure_without_settings_has_its_defaults_written_down():
    found = check({"perturbation": None, "curvature": {}, "sharpness": {}})
    assert found["perturbation"].alpha == (0.1, 0.2, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5)
    assert found["perturbation"].directions == ("adversarial", "random")
    assert found["perturbation"].random_draws == 3
    assert list(found) == list(MEASURES)


@pytest.mark.parametrize("name", MEASURES)
def test_a_default_that_is_written_out_is_the_same_settings(name):
    default = check({name: None})[name]
    plain = default.model_dump(mode="json")
    assert check({name: plain})[name].model_dump_json() == default.model_dump_json()
    # As YAML may spell it: whole numbers for floats
    whole = {k: [int(x) if x == int(x) else x for x in v] if k == "alpha" else v for k, v in plain.items()}
    assert check({name: whole})[name].model_dump_json() == default.model_dump_json()


def test_directions_and_metrics_have_one_spelling():
    one, other = (
        check({"perturbation": {"directions": d}}) for d in (["random", "adversarial"], ["adversarial", "random"])
    )
    assert one == other
    assert check({"sharpness": {"metrics": ["fsam", "sam"]}})["sharpness"].metrics == ("sam", "fsam")


def test_sharpness_takes_every_metric_of_the_family():
    found = check({"sharpness": {"metrics": list(METRICS)}})["sharpness"]
    assert set(found.metrics) == set(METRICS)
    assert [found.etas(m) for m in ("sam", "asam_eq5", "asam_official", "fsam")] == [(None,), (None,), (0.01,), (1.0,)]


def test_each_eta_goes_to_each_metric_that_has_one():
    found = check({"sharpness": {"metrics": list(METRICS), "eta": [0, 10]}})["sharpness"]
    assert [found.etas(m) for m in ("sam", "asam_official", "fsam")] == [(None,), (0, 10), (0, 10)]


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ({"pertubation": {}}, "pertubation: unknown measure; did you mean perturbation?"),
        ({"perturbation": {"alhpa": [1]}}, "perturbation.alhpa: unknown; did you mean alpha?"),
        ({"perturbation": {"alpha": []}}, "perturbation.alpha: has no lengths"),
        ({"perturbation": {"alpha": [1, 0.5]}}, "perturbation.alpha: must increase, but 0.5 follows 1"),
        ({"perturbation": {"alpha": [1, 1]}}, "perturbation.alpha: must increase, but 1 follows 1"),
        ({"perturbation": {"alpha": [-1]}}, "perturbation.alpha: -1 is not above 0"),
        ({"perturbation": {"alpha": [0, 1]}}, "perturbation.alpha: 0 is not above 0; it is measured without being"),
        ({"perturbation": {"alpha": [float("inf")]}}, "perturbation.alpha: inf is not a finite number"),
        ({"perturbation": {"alpha": [float("nan")]}}, "perturbation.alpha: nan is not a finite number"),
        ({"perturbation": {"alpha": 0.5}}, "perturbation.alpha: 0.5 is not a list"),
        ({"perturbation": {"alpha": ["a"]}}, "perturbation.alpha: 'a' is not a number"),
        ({"perturbation": {"alpha": [True]}}, "perturbation.alpha: true is not a number"),
        (
            {"perturbation": {"directions": ["randon"]}},
            "perturbation.directions: 'randon' is not one of adversarial or",
        ),
        ({"perturbation": {"directions": []}}, "perturbation.directions: names nothing"),
        ({"perturbation": {"directions": ["random"] * 2}}, "perturbation.directions: names one of them twice"),
        ({"perturbation": {"batches": 0}}, "perturbation.batches: 0 is below 1"),
        ({"perturbation": {"batch_norm": "keep"}}, "perturbation.batch_norm: 'keep' is not one of kept or recomputed"),
        ({"perturbation": {"recompute_batches": 5}}, "perturbation.recompute_batches: batch_norm has no recomputed"),
        (
            {"perturbation": {"directions": ["adversarial"], "random_draws": 3}},
            "perturbation.random_draws: directions has no random",
        ),
        (
            {"perturbation": {"directions": ["random"], "batches": 3}},
            "perturbation.batches: directions has no adversarial",
        ),
        ({"curvature": [1]}, "curvature: [1] is not a mapping of settings"),
        ({"curvature": {3: 1}}, "curvature: the key 3 is not text"),
        ({"curvature": {"probes": 2.5}}, "curvature.probes: 2.5 is not a whole number"),
        ({"curvature": {"tolerance": 0}}, "curvature.tolerance: 0 is not above 0"),
        ({"curvature": {"tolerance": float("nan")}}, "curvature.tolerance: NaN is not below 1"),
        ({"sharpness": {"metrics": ["asam"]}}, "sharpness.metrics: 'asam' is not one of sam, asam_official"),
        ({"sharpness": {"eta": [1]}}, "sharpness.eta: metrics sam do not use it; fsam and asam_official do"),
        ({"sharpness": {"gamma": [0]}}, "sharpness.gamma: 0 is not above 0"),
        ({"sharpness": {"metrics": ["fsam"], "eta": [-1]}}, "sharpness.eta: -1 is below 0"),
        ({"sharpness": {"per_batch": "yes"}}, "sharpness.per_batch: 'yes' is not true or false"),
        (["curvature"], "['curvature'] is not a mapping from measures"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_its_key(written, sentence):
    (problem,) = problems_of(written)
    assert problem.startswith(sentence)


def test_every_problem_of_every_measure_is_named_at_once():
    found = problems_of(
        {"perturbation": {"alpha": [2, 1], "random_draws": 0}, "curvature": {"probe": 1}, "hessian": {}}
    )
    assert [p.split(":")[0] for p in found] == [
        "perturbation.alpha",
        "perturbation.random_draws",
        "curvature.probe",
        "hessian",
    ]


ANYTHING = st.none() | st.booleans() | st.floats() | st.integers() | st.sampled_from(["sam", "random", "kept", ""])
KEYS = st.sampled_from([*Perturbation.model_fields, *Curvature.model_fields, *Sharpness.model_fields, "y", 1])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from([*MEASURES, "x", 1]),
        ANYTHING | st.dictionaries(KEYS, ANYTHING | st.lists(ANYTHING, max_size=3), max_size=3),
        max_size=2,
    )
)
def test_whatever_is_written_is_checked_or_refused_in_lines(written):
    try:
        found = check(written)
    except RecipeError as refusal:
        lines = [str(problem) for problem in refusal.problems]
    else:
        assert found.keys() == written.keys()
        lines = ["accepted"]
    assert lines
    assert not any("\n" in line for line in lines)


def test_checking_settings_imports_no_torch():
    code = "import sys, trainables.measures as m; m.check({'curvature': None}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
