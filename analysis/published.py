"""The numbers that Kim et al. (ICML 2022) print, and ours beside them.

`published.csv` holds every number of Tables 1 to 4 and of section 5.7, and the settings of Figures 4 and 5, whose
numbers are not in the text. What the paper does not say is empty there. It never says how many runs a mean stands for,
nor what its ± is; nor which images it held out to choose gamma and eta by.

A cell of ours stands for a published number where data set, optimiser and rate of label noise are the paper's, and the
network: in Table 1, whose rows are networks, the same one; elsewhere, where one network serves a whole table, one of
its kind. The two numbers are comparable where every setting that the paper states is ours too. Rows that are not are
kept, with each difference named.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd

from analysis.intervals import LEVEL, Floats
from analysis.tables import best_cells, cells
from analysis.words import absent, setting

_COUNTS = ("n", "epochs", "batch_size")
_NUMBERS = ("gamma", "eta", "alpha", "label_noise", "lr", "momentum", "weight_decay", "label_smoothing")

#: Training images of the paper's data sets, of which the Recipe's `validation_size` are held out; Flowers-102's are its
#: training and validation images together. A test holds them equal to `trainables.data.DATASETS`.
TRAIN_IMAGES = {
    "cifar10": 50_000,
    "cifar100": 50_000,
    "imagenet": 1_281_167,
    "stanford_cars": 8_144,
    "flowers102": 2_040,
}

#: The paper chose gamma and eta by a grid search and does not say on which images. Holding out up to one image in this
#: many is one reading of that; holding out more is training on other data.
_HELD_OUT = 10

#: Settings of which the paper states a value, in the Recipe's order; compared where the CSV has one.
_STATED = (
    "label_noise_kind", "gamma", "eta", "fisher", "base", "lr", "momentum", "weight_decay", "schedule", "epochs",
    "batch_size", "label_smoothing",
)  # fmt: skip

#: Settings that change the numbers and of which the paper says nothing, or nothing for some tables.
_OPEN = (
    "pretrained", "image_side", "validation_size", "validation_labels", "crop_padding", "autoaugment_policy",
    "cutout_size", "normalisation", "gamma", "eta", "asam_convention", "momentum", "label_smoothing",
)  # fmt: skip

#: Values that go without saying: worth a word only where ours is another.
_PLAIN = {"dropout": 0.0, "nesterov": False, "precision": "float32", "same_dropout": False}

#: What the paper says it does without: the m-sharpness trick (section 5) and the natural gradient (footnote 3).
_WITHOUT = {"m": "m {} instead of the whole batch", "natural_gradient": "natural gradient instead of the plain one"}

#: Kinds of network by the letters that their names begin with, where those do not say it.
_KINDS = {"deit": "vit"}

#: Pixels of an image's side in CIFAR-10 and CIFAR-100.
_CIFAR_SIDE = 32

BOUND = (
    "the paper's ± taken as the standard error of its mean, which is at most that; t of our n - 1 degrees of freedom"
)
WELCH = "the paper's ± taken as the standard deviation over its n runs; Welch's t"


@cache
def _read() -> pd.DataFrame:
    source = resources.files("analysis").joinpath("published.csv")
    with source.open("r", encoding="utf-8") as file:
        # Only an empty field is missing: `none` is a value of augmentation.
        frame = pd.read_csv(file, dtype="str", keep_default_na=False, na_values=[""])
    frame = frame.astype(dict.fromkeys(_NUMBERS, "float64"))
    frame = frame.astype(dict.fromkeys(_COUNTS, "Int64"))
    frame["pretrained"] = frame["pretrained"].map({"yes": True, "no": False}).astype("boolean")
    scale = frame["unit"].map({"%": 0.01, "s": 1.0}).astype("float64")
    for name, printed in (("mean", "printed"), ("spread", "printed_spread")):
        # Decimal digits are moved, not multiplied: 91.83 % is the float 0.9183.
        frame[name] = (frame[printed].astype("float64") * scale).round(6)
    first = ["table", "section", "cell", "metric", "mean", "spread", "n", "spread_is"]
    return frame[[*first, *(c for c in frame if c not in first)]]


def published() -> pd.DataFrame:
    """Every number of Tables 1-4 and section 5.7, and the settings of Figures 4 and 5: one row a number.

    Returns:
        `table` ("Table 1", "Figure 5", "Section 5.7"), `section`, `cell` (row and column as printed), `metric`
        (test_accuracy, test_top5_accuracy, seconds_per_batch), `mean` and `spread` (what stands after ±; accuracies as
        fractions, times in seconds; NaN for the figures), `n` (runs) and `spread_is` (what ± means), which are missing
        and "not said" throughout, because the paper says neither; the settings under the Recipe's names (missing where
        the paper does not say or the optimiser does not use them; `pretrained` is a bool; `augmentation` has what the
        paper names, and "none" for Figure 5), `alpha` (Figure 4's axis), `printed`, `printed_spread`, `unit` (as in the
        paper, to the last zero), `assumed` (settings that the number's own section does not state and that are taken
        from section 5.1, joined by +) and `note` (what is odd in the paper; nothing is mended).
    """
    return _read().copy()


def beside(table: pd.DataFrame, paper: pd.DataFrame | None = None) -> pd.DataFrame:
    """Our cells beside the numbers that they stand for.

    Args:
        table: what `tables.cells` returns, of complete cells or not; its `metric` decides which numbers are looked up.
        paper: rows of `published()`, all by default. Where their `n` is filled in, by whoever knows it, `spread` is
            read as a standard deviation over n runs.

    Returns:
        One row a published number and arm that stands for it, in the paper's order: `table`, `paper_cell`, `arm`,
        `cell`, `chosen_by`, `status`, `epoch`, the cell's `dataset`, `model`, `optimiser`, `gamma`, `eta` and
        `label_noise`, `metric`; ours: `n`, `mean`, `std`, `low`, `high`; the paper's: `paper_n`, `paper_mean`,
        `paper_spread`; `difference` (ours - paper) with `difference_low`, `difference_high` (95 %) and `assumes` (under
        what); `comparable` (bool), `why_not` (each stated setting that differs, "epochs 8 instead of 200"; "(section
        5.1's)" where the number's own section is silent; "" where comparable) and `left_open` (what ours is where the
        paper says nothing), both joined by "; ". No rows where nothing matches.

        Only complete and partial cells have figures: their replicates are trained in full. Of a stopped, diverged or
        failed cell nothing is compared, and `why_not` says which it is.

        Of several cells (a gamma x eta grid) those at the paper's gamma and eta stand for the number, of these the ones
        that differ least in the rest, and then the one that validation chooses (`tables.best_cells`); without a cell at
        the paper's gamma and eta each arm stands with its own. `chosen_by` says what has decided. Test accuracy chooses
        nothing.

        The interval: the paper explains neither its ± nor its n. Be ± a standard deviation over runs, a standard error
        or half an interval, the standard error of the paper's mean is at most ±. The interval is made from the square
        root of (std^2 / n + spread^2) with Student's t of our n - 1 degrees of freedom: wide rather than narrow, unless
        the paper's ± is a standard deviation over far fewer runs than ours. It is missing where n < 2 or the paper
        gives no ±.
    """
    paper = _read() if paper is None else paper
    metric = table["metric"].iloc[0] if len(table) and "metric" in table else ""
    numbers = paper[paper["mean"].notna() & (paper["metric"] == metric)]
    rows: list[dict[str, Any]] = []
    if {"dataset", "model", "optimiser"} <= set(table):
        here = numbers[numbers["dataset"].isin(table["dataset"])]
        for _, number in here.iterrows():
            found = table[_stands_for(table, number)]
            rows += [_row(own, number, why) for own, why in _chosen(found, number)]
    out = pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)
    return _with_interval(out)


def beside_study(replicates: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """`beside` for each metric that the paper prints and a study has, in the paper's order.

    Args:
        replicates: `reader.replicates()`. table: `cells` of them for test accuracy.
    """
    parts = [beside(table)]
    top5 = "test_top5_accuracy"
    if len(parts[0]) and top5 in replicates and replicates[top5].notna().any():
        parts.append(beside(cells(replicates, top5)))
    return pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]


#: The columns of `beside` and their types; the interval's are added where it is computed.
_COLUMNS = {
    "table": "object", "paper_cell": "object", "arm": "object", "cell": "object", "chosen_by": "object",
    "status": "object", "epoch": "float64", "dataset": "object", "model": "object", "optimiser": "object",
    "gamma": "float64", "eta": "float64", "label_noise": "float64", "metric": "object",
    "n": "int64", "mean": "float64", "std": "float64", "low": "float64", "high": "float64",
    "paper_n": "Int64", "paper_mean": "float64", "paper_spread": "float64", "difference": "float64",
    "comparable": "bool", "why_not": "object", "left_open": "object",
}  # fmt: skip


def _kind(model: Any) -> str:
    """The letters that a network's name begins with: resnet8 and resnet32 are of a kind, as are vit_b16 and deit_b."""
    match = re.match(r"[a-z]+", str(model))
    letters = match.group() if match else str(model)
    return _KINDS.get(letters, letters)


def _stands_for(table: pd.DataFrame, number: pd.Series) -> pd.Series:
    """Which cells stand for a published number."""
    same = table["dataset"] == number["dataset"]
    if number["table"] == "Table 1":
        same &= table["model"] == number["model"]
    else:
        same &= table["model"].map(_kind) == _kind(number["model"])
    epochs = pd.to_numeric(table["epochs"]) if "epochs" in table else pd.Series(np.nan, index=table.index)
    if absent(number["optimiser"]):
        return same & (epochs == 0)  # the network before it is trained: no optimiser has touched it
    noise = pd.to_numeric(table["label_noise"]).fillna(0.0) if "label_noise" in table else 0.0
    return same & (table["optimiser"] == number["optimiser"]) & (epochs != 0) & np.isclose(noise, number["label_noise"])


def _chosen(found: pd.DataFrame, number: pd.Series) -> list[tuple[pd.Series, str]]:
    """The cell of each arm that stands for a number, and what has chosen it."""
    knobs = [f for f in ("gamma", "eta") if not absent(number[f])]
    at_paper = np.ones(len(found), dtype=bool)
    for knob in knobs:
        at_paper &= np.array([knob in found and _equal(v, number[knob]) for v in found.get(knob, found["cell"])], bool)
    use = found[at_paper] if at_paper.any() else found
    planned = found.groupby("arm", dropna=False, sort=False)["cell"].size()
    chosen = []
    for arm, own in use.groupby("arm", dropna=False, sort=False):
        steps = [f"the paper's {' and '.join(knobs)}"] if knobs and at_paper.any() and len(own) < planned[arm] else []
        if len(own) > 1:
            other = [len(_differences(r, number).keys() - {"gamma", "eta"}) for r in _dicts(own)]
            nearest = own[np.asarray(other) == min(other)]
            steps += ["fewest other differences"] if len(nearest) < len(own) else []
            own = nearest
        if len(own) > 1:
            best = best_cells(own, [])
            steps.append("validation" if len(best) else "the plan's order, none complete")
            own = best if len(best) else own.iloc[:1]
        of = f", of {planned[arm]} cells" if steps else ""
        chosen.append((own.iloc[0], (", then ".join(steps) or "the only cell") + of))
    return chosen


def _dicts(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in rows.to_dict("records")]


def _row(own: pd.Series, number: pd.Series, chosen_by: str) -> dict[str, Any]:
    has = own["status"] in ("complete", "partial")
    why = _why_not(_differences(own, number), number)
    if own["status"] in ("stopped", "diverged", "failed"):
        at = "" if absent(own["epoch"]) else f" at epoch {own['epoch']:.0f}"
        why.insert(0, f"{own['status']}{at}")
    mean = float(own["mean"]) if has else math.nan
    return {
        "table": number["table"],
        "paper_cell": number["cell"],
        **{k: own.get(k) for k in ("arm", "cell", "status", "epoch", "dataset", "model", "optimiser")},
        **{k: _float(own.get(k)) for k in ("gamma", "eta", "label_noise")},
        "chosen_by": chosen_by,
        "metric": number["metric"],
        "n": int(own["n"]) if has else 0,
        "mean": mean,
        **{k: float(own[k]) if has else math.nan for k in ("std", "low", "high")},
        "paper_n": number["n"],
        "paper_mean": number["mean"],
        "paper_spread": number["spread"],
        "difference": mean - number["mean"],
        "comparable": not why,
        "why_not": "; ".join(why),
        "left_open": "; ".join(_left_open(own, number)),
    }


def _differences(own: Mapping[str, Any] | pd.Series, number: pd.Series) -> dict[str, str]:
    """Each setting that the paper states and ours is not, by field, in words."""
    said: dict[str, str] = {}
    unknown: list[str] = []
    if own["model"] != number["model"]:
        said["model"] = f"model {own['model']} instead of {number['model']}"
    if not absent(number["pretrained"]):
        if "pretrained" not in own:
            unknown.append("pretrained")
        elif absent(own["pretrained"]) == number["pretrained"]:
            said["pretrained"] = "no pretrained weights" if number["pretrained"] else "pretrained weights"
    if number["epochs"] != 0:
        said |= _other_images(own, number)
    if not absent(own.get("test_size")):
        said["test_size"] = f"test_size {setting(own['test_size'])} instead of all"
    if not absent(number["augmentation"]):
        if "augmentation" not in own:
            unknown.append("augmentation")
        elif other := _other_augmentation(own["augmentation"], str(number["augmentation"])):
            said["augmentation"] = other
    for field in _STATED:
        if absent(number[field]):
            continue
        if field not in own:
            unknown.append(field)
        elif not _equal(own[field], number[field]):
            ours = "none" if absent(own[field]) else setting(own[field])
            said[field] = f"{field} {ours} instead of {setting(number[field])}"
    for field, other in _WITHOUT.items():
        if not absent(own.get(field)) and own[field]:
            said[field] = other.format(setting(own[field]))
    if unknown:
        said["_unknown"] = f"{', '.join(unknown)} not recorded"
    return said


def _why_not(differences: Mapping[str, str], number: pd.Series) -> list[str]:
    """First what the number's own section states, then what only section 5.1 does."""
    assumed = set() if absent(number["assumed"]) else set(str(number["assumed"]).split("+"))
    own = [text for field, text in differences.items() if field not in assumed]
    return own + [f"{text} (section 5.1's)" for field, text in differences.items() if field in assumed]


def _other_images(own: Mapping[str, Any] | pd.Series, number: pd.Series) -> dict[str, str]:
    images = TRAIN_IMAGES[str(number["dataset"])]
    if not absent(own.get("train_size")):
        return {"train_size": f"train_size {setting(own['train_size'])} instead of {images}"}
    held_out = _float(own.get("validation_size"))
    if held_out > images // _HELD_OUT:
        return {"validation_size": f"validation_size {held_out:.0f}, above a tenth of the {images} training images"}
    return {}


def _other_augmentation(ours: Any, stated: str) -> str:
    have = [] if absent(ours) or not ours else str(ours).split("+")
    if stated == "none":
        return f"augmentation {'+'.join(have)} instead of none" if have else ""
    lacking = [part for part in stated.split("+") if part not in have]
    return f"augmentation {'+'.join(have) or 'none'}, without {' and '.join(lacking)}" if lacking else ""


def _left_open(own: pd.Series, number: pd.Series) -> list[str]:
    """Ours where the paper says nothing, `validation_size 1000`."""
    if number["epochs"] == 0:
        fields = [f for f in ("pretrained", "image_side", "normalisation") if not absent(own.get(f))]
        return [f"{f} {setting(own[f])}" for f in fields]
    said = []
    if "augmentation" in own and str(number["augmentation"]) != "none":
        have = [] if absent(own["augmentation"]) or not own["augmentation"] else str(own["augmentation"]).split("+")
        stated = [] if absent(number["augmentation"]) else str(number["augmentation"]).split("+")
        more = [part for part in have if part not in stated]
        if more or not stated:
            said.append(f"augmentation {'+'.join(more) or 'none'}" + (" besides" if stated else ""))
    for field in _OPEN:
        if field == "image_side" and str(number["dataset"]).startswith("cifar") and own.get(field) == _CIFAR_SIDE:
            continue  # goes without saying
        # That weights are published is said, which of them is not.
        known = field in number and not absent(number[field]) and field != "pretrained"
        if not known and field in own and not absent(own[field]):
            said.append(f"{field} {setting(own[field])}")
    for field, plain in _PLAIN.items():
        if field in own and not absent(own[field]) and own[field] != plain:
            said.append(f"{field} {setting(own[field])}")
    return said


def _equal(ours: Any, paper: Any) -> bool:
    if absent(ours) or absent(paper):
        return absent(ours) and absent(paper)
    if isinstance(paper, str):
        return str(ours) == paper
    return math.isclose(float(ours), float(paper), rel_tol=1e-9, abs_tol=1e-12)


def _float(value: Any) -> float:
    return math.nan if absent(value) else float(value)


def _with_interval(out: pd.DataFrame) -> pd.DataFrame:
    low, high, assumes = difference_interval(
        out["difference"], out["std"], out["n"], out["paper_spread"], out["paper_n"].astype("float64")
    )
    at = list(out).index("difference") + 1
    out.insert(at, "difference_low", low)
    out.insert(at + 1, "difference_high", high)
    out.insert(at + 2, "assumes", pd.Series(assumes, index=out.index, dtype="object"))
    return out


def difference_interval(
    difference: Any, std: Any, n: Any, spread: Any, paper_n: Any, level: float = LEVEL
) -> tuple[Floats, Floats, list[str]]:
    """Interval of ours minus the paper's from what both say; for the reasons see `beside`.

    Args:
        difference, std, n, spread, paper_n: arrays of one shape; `std` (ddof 1) over our `n` seeds; `paper_n` NaN where
            the paper does not say over how many runs its mean is.
        level: confidence of the two-sided interval.

    Returns:
        Lower and upper end (NaN where ours are fewer than two seeds, or the paper has no spread or one run) and
        what each assumes (`BOUND`, `WELCH`, or "" where there is none).
    """
    from scipy.special import stdtrit

    difference, std, n, spread, paper_n = (np.asarray(a, dtype=float) for a in (difference, std, n, spread, paper_n))
    with np.errstate(divide="ignore", invalid="ignore"):
        ours = std**2 / n
        bound = np.isnan(paper_n)
        theirs = np.where(bound, spread**2, spread**2 / paper_n)
        welch = (ours + theirs) ** 2 / (ours**2 / (n - 1) + theirs**2 / (paper_n - 1))
        freedom = np.where(bound, n - 1, welch)
        known = (n >= 2) & (bound | (paper_n >= 2)) & np.isfinite(freedom) & np.isfinite(ours + theirs + difference)
        half = stdtrit(np.where(known, freedom, 1.0), (1 + level) / 2) * np.sqrt(ours + theirs)
    half = np.where(known, half, np.nan)
    assumes = [("" if not k else BOUND if b else WELCH) for k, b in zip(known, bound, strict=True)]
    return difference - half, difference + half, assumes
