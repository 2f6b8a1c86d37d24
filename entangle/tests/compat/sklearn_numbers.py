"""scikit-learn gives the same numbers on entangle's joblib backend as on loky."""

from __future__ import annotations

from typing import Any

import joblib
import numpy
import pytest
from sklearn.datasets import make_classification, make_regression
from sklearn.ensemble import BaggingClassifier, RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score, learning_curve
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import entangle.joblib

entangle.joblib.register()

#: X alone has 320 KB, so it is mapped.
X, Y = make_classification(2000, 20, random_state=0)
XR, YR = make_regression(2000, 20, random_state=0)


def _grid() -> Any:
    search = GridSearchCV(SVC(random_state=0), {"C": [0.1, 1, 10], "gamma": [0.01, 0.1]}, cv=3, n_jobs=2).fit(X[:400], Y[:400])
    return search.cv_results_["mean_test_score"], search.cv_results_["std_test_score"], search.best_params_["C"], search.predict(X[400:500])


def _grid_of_pipelines_and_forests() -> Any:
    model = make_pipeline(StandardScaler(), RandomForestClassifier(10, random_state=0, n_jobs=2))
    search = GridSearchCV(
        model, {"randomforestclassifier__max_depth": [2, 4]}, cv=2, n_jobs=2, scoring=["accuracy", "roc_auc"], refit="roc_auc"
    )
    search.fit(X, Y)
    return search.cv_results_["mean_test_accuracy"], search.cv_results_["mean_test_roc_auc"], search.predict_proba(X[:50])


def _forest() -> Any:
    forest = RandomForestClassifier(20, random_state=0, n_jobs=2, oob_score=True).fit(X, Y)
    return forest.feature_importances_, forest.predict_proba(X), forest.oob_score_


def _regressor() -> Any:
    forest = RandomForestRegressor(20, random_state=0, n_jobs=2).fit(XR, YR)
    return forest.feature_importances_, forest.predict(XR)


def _scores() -> Any:
    model = LogisticRegression()
    return cross_val_score(model, X, Y, cv=5, n_jobs=2), cross_val_predict(model, X, Y, cv=3, n_jobs=2, method="predict_proba")


def _bagging() -> Any:
    return BaggingClassifier(SVC(), n_estimators=6, max_samples=0.2, random_state=0, n_jobs=2).fit(X, Y).predict(X[:200])


def _one_versus_rest() -> Any:
    return OneVsRestClassifier(LogisticRegression(), n_jobs=2).fit(X, (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)).decision_function(X)


def _curve() -> Any:
    return learning_curve(LogisticRegression(), X, Y, cv=3, n_jobs=2, train_sizes=[0.3, 1.0])[1:3]


@pytest.mark.parametrize(
    "numbers", [_grid, _grid_of_pipelines_and_forests, _forest, _regressor, _scores, _bagging, _one_versus_rest, _curve]
)
def test_numbers_are_those_of_loky(numbers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backend: Any = entangle.joblib.EntangleBackend
    batches = []
    usual = backend.submit

    def submit(self: Any, func: Any, callback: Any = None) -> Any:
        batches.append(func)
        return usual(self, func, callback)

    monkeypatch.setattr(backend, "submit", submit)
    with joblib.parallel_config(backend="loky"):
        expected = numbers()
    assert not batches
    with joblib.parallel_config(backend="entangle"):
        found = numbers()
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        # The predictions of a forest are summed by threads, in any order.
        numpy.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)
    assert batches, "it never came to our backend"
