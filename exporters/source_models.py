"""The models that a forest can come from: how they are read, converted, kept in a bundle, and asked for the truth.

    LightGBM        Booster, LGBMModel, model text     the text decides                    kept as the text
    XGBoost         Booster, XGBModel, JSON or UBJ     Treelite's reading decides          kept as UBJ or the given file
    scikit-learn    forests, (hist) gradient boosting  Treelite's, with what it drops      kept as a Treelite checkpoint
    Treelite        Model, checkpoint                  itself                              kept as a Treelite checkpoint

`SourceModel.margins` is the oracle of whatever was compiled: the library that trained the model, or, where only
Treelite's model is at hand, the leaves that Treelite's predictor finds, added as that library adds them
(`treelite_forest.TreeliteForest.margins`). Some libraries refuse rows that the server may meet (XGBoost infinities,
scikit-learn's gradient boosting NaN); the answer to those is Treelite's as well.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from recserve.bundle.v1.manifest_pb2 import ModelKind
from recserve.exporters.errors import ExportError
from recserve.exporters.forest_source import SourceForest
from recserve.exporters.lightgbm_forest import lightgbm_forest
from recserve.exporters.lightgbm_text import ForestText, parse_forest
from recserve.exporters.quiet import notes_discarded
from recserve.exporters.treelite_forest import Note, TreeliteForest, write_note

if TYPE_CHECKING:
    import lightgbm
    import sklearn.ensemble
    import treelite
    import xgboost

    Model: TypeAlias = (
        lightgbm.Booster
        | lightgbm.LGBMModel
        | xgboost.Booster
        | xgboost.XGBModel
        | sklearn.ensemble.BaseEnsemble
        | treelite.Model
        | str
        | os.PathLike[str]
    )

Rows: TypeAlias = "NDArray[np.float32] | NDArray[np.float64]"

_LIBRARIES: Final = ("lightgbm", "xgboost", "sklearn", "treelite")
_CHECKPOINT: Final = b"\x04\x00\x00\x00"
"""How a Treelite checkpoint begins: with its major version."""
_BASE_SCORE_ROUNDING: Final = 1e-5
"""Relative; Treelite converts XGBoost's base score in double precision."""


class SourceModel(ABC):
    """A trained forest."""

    kind: ModelKind.ValueType
    """The format of `content`."""
    suffix: str
    """Of a file with it, such as ".txt"."""
    content: bytes
    """What a bundle keeps of it; `read_model` reads it."""
    source: str
    """What trained it, for readers: "LightGBM", "scikit-learn RandomForestClassifier"."""
    forest: SourceForest

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Empty where it was trained without."""
        return ()

    @property
    def probabilities(self) -> bool:
        """Whether margins are the probabilities of classes."""
        return False

    @property
    @abstractmethod
    def sigmoid(self) -> float | None:
        """The slope of a binary model's own map from margin to probability; None where it has none."""

    @property
    def objective(self) -> str:
        """The loss that it was trained for, as far as it is known."""
        return ""

    @abstractmethod
    def margins(self, rows: Rows) -> NDArray[np.float64]:
        """Raw margins of rows [n, features] as the source answers: float64 [n, outputs]."""

    @abstractmethod
    def gains(self) -> NDArray[np.float64]:
        """What the splits on each feature gained in training: float64 [features]."""

    @functools.cached_property
    def ranking_output(self) -> int:
        """The margin that ranks: the only one, or of two probabilities the second, that of the event.

        Raises:
            ExportError: there are others.
        """
        count = len(self.forest.outputs)
        if count == 1:
            return 0
        if count == 2 and self.probabilities:
            return 1
        raise ExportError(
            f"the model has {count} outputs, a ranker has one per objective: train a binary or ranking model for each"
        )

    def ranking_margins(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """The margins that rank: float64 [n]."""
        if not len(rows):
            return np.zeros(0)
        return np.ascontiguousarray(self.margins(rows)[:, self.ranking_output])


class LightGBMModel(SourceModel):
    """A LightGBM model text."""

    kind = ModelKind.LIGHTGBM
    suffix = ".txt"
    source = "LightGBM"

    def __init__(self, content: bytes) -> None:
        self.content = content
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise ExportError(f"the model file cannot be read: {error}") from error
        self.text: ForestText = parse_forest(text)

    @functools.cached_property
    def forest(self) -> SourceForest:  # type: ignore[override]  # computed when asked for
        """See `SourceModel`."""
        return lightgbm_forest(self.text)

    @functools.cached_property
    def booster(self) -> lightgbm.Booster:
        """LightGBM's own reading of the text."""
        import lightgbm  # noqa: PLC0415  slow to import

        try:
            return lightgbm.Booster(model_str=self.content.decode())
        except lightgbm.basic.LightGBMError as error:
            raise ExportError(f"LightGBM cannot load the model: {error}") from error

    @property
    def feature_names(self) -> tuple[str, ...]:
        """See `SourceModel`."""
        names = self.text.feature_names
        unnamed = [f"Column_{number}" for number in range(len(names))]
        return () if names == unnamed else tuple(names)

    @property
    def objective(self) -> str:
        """As in the text, such as "binary sigmoid:1"; empty for a custom one."""
        return self.text.header.get("objective", "")

    @property
    def sigmoid(self) -> float | None:
        """See `SourceModel`."""
        name, *parameters = self.objective.split() or [""]
        values = dict(parameter.partition(":")[::2] for parameter in parameters)
        return float(values["sigmoid"]) if name == "binary" and "sigmoid" in values else None

    def margins(self, rows: Rows) -> NDArray[np.float64]:
        """`predict(raw_score=True)`."""
        found = np.asarray(self.booster.predict(rows, raw_score=True, num_threads=1), np.float64)
        return found.reshape(len(rows), -1)

    def gains(self) -> NDArray[np.float64]:
        """See `SourceModel`."""
        return np.asarray(self.booster.feature_importance("gain"), np.float64)


class TreeliteModel(SourceModel):
    """A Treelite model, by itself."""

    kind = ModelKind.TREELITE
    suffix = ".treelite"

    def __init__(self, model: treelite.Model) -> None:
        self.treelite = TreeliteForest(model)
        self.forest = self.treelite.forest
        self.source = self.treelite.note.source if self.treelite.note else "Treelite"

    @functools.cached_property
    def content(self) -> bytes:  # type: ignore[override]  # computed when asked for
        """See `SourceModel`."""
        return bytes(self.treelite.model.serialize_bytes())

    @property
    def feature_names(self) -> tuple[str, ...]:
        """See `SourceModel`; a checkpoint that nobody converted with names has none."""
        return self.treelite.note.names if self.treelite.note else ()

    @property
    def probabilities(self) -> bool:
        """See `SourceModel`."""
        return self.treelite.probabilities

    @property
    def sigmoid(self) -> float | None:
        """See `SourceModel`."""
        return self.treelite.sigmoid

    def margins(self, rows: Rows) -> NDArray[np.float64]:
        """See `SourceModel`; where the library at hand accepts a row, its answer, else Treelite's."""
        found = self.treelite.margins(rows)
        accepted = self._accepted(rows)
        if accepted.any():
            # The logit of XGBoost's base_score 0.5 is -0.0, and so are some of its sums of leaves of -0.0. Here no sum
            # is: adding +0.0 changes no other number.
            found[accepted] = self._answers(rows[accepted]).reshape(-1, found.shape[1]) + 0.0
        return found

    def gains(self) -> NDArray[np.float64]:
        """See `SourceModel`."""
        return self.treelite.gains()

    def _accepted(self, rows: Rows) -> NDArray[np.bool_]:
        """Rows that the library which trained it answers, where it is at hand."""
        return np.zeros(len(rows), np.bool_)

    def _answers(self, rows: Rows) -> NDArray[np.float64]:
        """That library's margins: [n, outputs]."""
        raise NotImplementedError


class XGBoostModel(TreeliteModel):
    """An XGBoost booster; all of its trees count, as in its own `predict`.

    Args:
        booster: the model.
        content: the file that it was read from, if any.
    """

    kind = ModelKind.XGBOOST
    suffix = ".ubj"

    def __init__(self, booster: xgboost.Booster, content: bytes | None = None) -> None:
        self.booster = booster
        super().__init__(_from_xgboost(booster))
        self.source = "XGBoost"
        self.content = bytes(booster.save_raw("ubj")) if content is None else content
        if _is_json(self.content):
            self.suffix = ".json"

    @property
    def feature_names(self) -> tuple[str, ...]:
        """See `SourceModel`."""
        return tuple(self.booster.feature_names or ())

    @functools.cached_property
    def objective(self) -> str:
        """Such as "rank:ndcg"."""
        return str(json.loads(self.booster.save_config())["learner"]["objective"]["name"])

    def _accepted(self, rows: Rows) -> NDArray[np.bool_]:
        with np.errstate(over="ignore"):
            infinities = np.isinf(rows.astype(np.float32))
        return np.logical_not(infinities.any(axis=1))

    def _answers(self, rows: Rows) -> NDArray[np.float64]:
        import xgboost  # noqa: PLC0415  optional, and slow to import

        data = xgboost.DMatrix(
            rows,
            feature_names=self.booster.feature_names,
            feature_types=self.booster.feature_types,
            enable_categorical=True,
            nthread=1,
        )
        return np.asarray(self.booster.predict(data, output_margin=True), np.float64)


class SklearnModel(TreeliteModel):
    """A scikit-learn ensemble of trees."""

    def __init__(self, estimator: Any) -> None:
        self.estimator = _complete(estimator)
        super().__init__(_from_sklearn(self.estimator))

    @property
    def objective(self) -> str:
        """The loss of boosted trees."""
        return str(getattr(self.estimator, "loss", ""))

    def _accepted(self, rows: Rows) -> NDArray[np.bool_]:
        name = type(self.estimator).__name__
        if name.startswith("Hist"):
            return np.ones(len(rows), np.bool_)
        with np.errstate(over="ignore"):
            single = rows.astype(np.float32)
        refused = np.isinf(single) if not name.startswith("Gradient") else ~np.isfinite(single)
        return np.logical_not(refused.any(axis=1))

    def _answers(self, rows: Rows) -> NDArray[np.float64]:
        model = self.estimator
        boosted = hasattr(model, "_raw_predict")
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.filterwarnings("ignore", message="X does not have valid feature names")
            if boosted and not hasattr(model, "decision_function"):
                # `predict` would be the margin behind the inverse link of the loss.
                found = model._raw_predict(rows.astype(np.float32) if self.treelite.single_inputs else rows)
            elif boosted:
                found = model.decision_function(rows)
            else:
                found = getattr(model, "predict_proba", model.predict)(rows)
        return np.asarray(found, np.float64)


# ------------------------------------------------------------------------------------------------------------- reading


def source_forest(model: Model) -> SourceForest:
    """The forest of any model; see `open_model`."""
    return open_model(model).forest


def open_model(model: Model) -> SourceModel:
    """Read a model.

    Args:
        model: an object of one of the libraries, a file (os.PathLike), or a LightGBM model text (str).

    Raises:
        ExportError: it is none of these, or cannot be followed exactly.
    """
    if isinstance(model, str):
        return LightGBMModel(model.encode())
    if isinstance(model, os.PathLike):
        try:
            content = Path(model).read_bytes()
        except OSError as error:
            raise ExportError(f"the model file cannot be read: {error}") from error
        return read_model(content)
    found: Any = model
    match _library_of(model):
        case "lightgbm":
            booster = getattr(found, "booster_", found)
            return LightGBMModel(booster.model_to_string().encode())
        case "xgboost":
            return XGBoostModel(_booster_of(model))
        case "sklearn":
            return SklearnModel(model)
        case "treelite":
            return TreeliteModel(found)
    raise ExportError(
        f"expected a model of LightGBM, XGBoost, scikit-learn or Treelite, found a {type(model).__module__}."
        f"{type(model).__qualname__}"
    )


def read_model(content: bytes) -> SourceModel:
    """Read the bytes of a model file, of whichever kind it is.

    Raises:
        ExportError: it is no model file, or cannot be followed exactly.
    """
    if content.startswith(b"{"):
        return XGBoostModel(_load_xgboost(content), content)
    if content.startswith(_CHECKPOINT):
        return TreeliteModel(_load_treelite(content))
    if content.startswith(b"\x80"):
        raise ExportError(
            "the model file is a pickle, which runs code when it is read: pass the object, or save it with "
            "recserve.exporters.source_models.to_treelite(model).serialize(path)"
        )
    return LightGBMModel(content)


def to_treelite(model: Model) -> treelite.Model:
    """Convert an XGBoost or scikit-learn model to Treelite, with what Treelite's own conversion drops or rounds.

    Its checkpoint (`.serialize(path)`) is a model file that exports like the model itself.

    Raises:
        ExportError: the model cannot be followed exactly, or comes from LightGBM, whose text is the file to keep.
    """
    found = open_model(model)
    if not isinstance(found, TreeliteModel):
        raise ExportError("Treelite does not hold all of LightGBM's decisions: keep the model as save_model writes it")
    return found.treelite.model


def _library_of(model: object) -> str:
    """The library of the nearest class that belongs to one."""
    roots = (cls.__module__.partition(".")[0] for cls in type(model).__mro__)
    return next((root for root in roots if root in _LIBRARIES), "")


def _is_json(content: bytes) -> bool:
    """Whether XGBoost's file is text: in UBJ, the brace is followed by a type or a length."""
    return content[1:2] in (b'"', b" ", b"\n", b"\r", b"\t")


# ------------------------------------------------------------------------------------------------------------- XGBoost


def _booster_of(model: Any) -> xgboost.Booster:
    """Of an estimator: as far as its own `predict` goes."""
    if not hasattr(model, "get_booster"):
        return cast("xgboost.Booster", model)
    booster: xgboost.Booster = model.get_booster()
    best = booster.attr("best_iteration")
    return booster if best is None else booster[: int(best) + 1]


def _load_xgboost(content: bytes) -> xgboost.Booster:
    try:
        import xgboost  # noqa: PLC0415  optional
    except ImportError as error:
        raise ExportError(
            "the model file is XGBoost's, and XGBoost, which has to confirm every score, is not installed: "
            "`pip install xgboost-cpu`"
        ) from error
    try:
        return xgboost.Booster(model_file=bytearray(content))
    except (xgboost.core.XGBoostError, ValueError) as error:
        raise ExportError(f"XGBoost cannot load the model: {str(error).splitlines()[0]}") from error


def _from_xgboost(booster: xgboost.Booster) -> treelite.Model:
    """Treelite's reading, with XGBoost's own base score."""
    import treelite  # noqa: PLC0415  slow to import
    import xgboost  # noqa: PLC0415  optional, and slow to import

    try:
        booster.num_features()
    except xgboost.core.XGBoostError as error:
        raise ExportError("the XGBoost model has no features: train it before it is exported") from error
    config = json.loads(booster.save_config())["learner"]
    if config["gradient_booster"]["name"] == "gblinear":
        raise ExportError("the XGBoost model is linear (booster=gblinear), not a forest: train with gbtree or dart")
    try:
        with notes_discarded():
            model = treelite.frontend.from_xgboost(booster)
    except treelite.TreeliteError as error:
        raise ExportError(f"Treelite cannot read the XGBoost model: {error}") from error
    header = model.get_header_accessor()
    read = np.array(header.get_field("base_scores"))
    exact = _base_margins(booster)
    if exact.shape != read.shape or not np.allclose(exact, read, rtol=_BASE_SCORE_ROUNDING, atol=_BASE_SCORE_ROUNDING):
        raise ExportError(f"XGBoost begins its sums with {exact.tolist()}, Treelite with {read.tolist()}")
    header.set_field("base_scores", exact)
    write_note(model, Note("XGBoost", single_inputs=True, names=tuple(booster.feature_names or ())))
    return model


def _base_margins(booster: xgboost.Booster) -> NDArray[np.float64]:
    """What XGBoost begins its sums with: the answer of the same model without its trees.

    The base score is stored as a probability, or whatever the objective predicts; the margin depends on the rounding of
    XGBoost's float32 logarithms.
    """
    import xgboost  # noqa: PLC0415  optional, and slow to import

    document = json.loads(booster.save_raw("json"))
    document["learner"]["learner_model_param"]["boost_from_average"] = "0"  # it would be answered as it is stored
    outer = document["learner"]["gradient_booster"]
    inner = outer.get("gbtree", outer)["model"]
    inner["trees"], inner["tree_info"] = [], []
    inner["gbtree_model_param"]["num_trees"] = "0"
    for part, empty in ((inner, {"iteration_indptr": [0]}), (outer, {"weight_drop": []})):
        part.update({key: value for key, value in empty.items() if key in part})
    treeless = xgboost.Booster(model_file=bytearray(json.dumps(document).encode()))
    row = xgboost.DMatrix(np.zeros((1, booster.num_features()), np.float32), nthread=1)
    return np.asarray(treeless.predict(row, output_margin=True, validate_features=False), np.float64).reshape(-1)


# -------------------------------------------------------------------------------------------------------- scikit-learn


def _complete(estimator: Any) -> Any:
    """A fitted estimator that says how many trees early stopping left it, and adds them in their order."""
    from sklearn.exceptions import NotFittedError  # noqa: PLC0415  slow to import
    from sklearn.utils.validation import check_is_fitted  # noqa: PLC0415

    try:
        check_is_fitted(estimator)
    except (NotFittedError, TypeError) as error:
        raise ExportError(f"the scikit-learn model cannot be used: {error}") from error
    changed = copy.copy(estimator)
    if hasattr(changed, "estimators_"):
        changed.n_estimators = len(changed.estimators_)
    if hasattr(changed, "n_jobs"):
        changed.n_jobs = 1
    return changed


def _from_sklearn(estimator: Any) -> treelite.Model:
    """Treelite's conversion, with what it drops or rounds."""
    import treelite.sklearn  # noqa: PLC0415  slow to import

    name = type(estimator).__name__
    if np.any(getattr(estimator, "is_categorical_", None)):
        raise ExportError(
            f"the scikit-learn {name} has categorical features: it takes unseen categories for missing, which Treelite "
            "does not hold; train it without categorical_features, or train with LightGBM or XGBoost"
        )
    try:
        with notes_discarded():
            model = treelite.sklearn.import_model(estimator)
    except (treelite.TreeliteError, NotImplementedError, AssertionError, AttributeError) as error:
        raise ExportError(f"Treelite cannot convert the scikit-learn {name}: {error}") from error
    _correct_gradient_boosting(estimator, model)
    _correct_probabilities(estimator, model)
    names = tuple(map(str, getattr(estimator, "feature_names_in_", ())))
    write_note(model, Note(f"scikit-learn {name}", single_inputs=not name.startswith("Hist"), names=names))
    return model


def _correct_gradient_boosting(estimator: Any, model: treelite.Model) -> None:
    """Its trees compare NaN as any number, so NaN goes right; exponential loss has twice the margin in its sigmoid."""
    from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor  # noqa: PLC0415  slow to import

    if not isinstance(estimator, (GradientBoostingClassifier, GradientBoostingRegressor)):
        return
    for number in range(model.num_tree):
        tree = model.get_tree_accessor(number)
        tree.set_field("default_left", np.zeros_like(tree.get_field("default_left")))
    if estimator.loss == "exponential":
        model.get_header_accessor().set_field("sigmoid_alpha", np.array([2.0], np.float32))


def _correct_probabilities(estimator: Any, model: treelite.Model) -> None:
    """Forests of classifiers: Treelite divides each leaf's probabilities by their sum, which rounds them once more."""
    if not hasattr(estimator, "predict_proba") or not hasattr(estimator, "estimators_") or hasattr(estimator, "loss"):
        return
    for number, fitted in enumerate(estimator.estimators_):
        tree = model.get_tree_accessor(number)
        leaves = np.flatnonzero(np.array(tree.get_field("cleft")) < 0)
        vectors = np.array(tree.get_field("leaf_vector"))
        values = fitted.tree_.value[leaves].reshape(len(leaves), -1)
        starts = np.array(tree.get_field("leaf_vector_begin")).astype(np.int64)[leaves]
        vectors[starts[:, np.newaxis] + np.arange(values.shape[1])] = values
        tree.set_field("leaf_vector", vectors)


# ------------------------------------------------------------------------------------------------------------ Treelite


def _load_treelite(content: bytes) -> treelite.Model:
    import treelite  # noqa: PLC0415  slow to import

    try:
        with notes_discarded():
            return treelite.Model.deserialize_bytes(content)
    except treelite.TreeliteError as error:
        raise ExportError(f"Treelite cannot load the model: {error}") from error
