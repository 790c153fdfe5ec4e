#!/usr/bin/env python3
"""What the shipped flights data can give, learnt centrally: AUC of two ordinary models on aircraft never trained on.

    python scripts/check_flights.py

Prints one row per (weather, model); a federated run on the same rows is judged against these figures. Takes half a
minute on one core. The trees gain from the day of the year: flights of one day are late together. Exit code 1 when a
figure falls below what was measured when the data was built.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from scipy import sparse
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import OneHotEncoder

from atoll.data import ClientData, Flights, open_data

FLOORS = {
    (False, "logistic"): 0.685,
    (False, "boosted trees"): 0.765,
    (True, "logistic"): 0.72,
    (True, "boosted trees"): 0.775,
}


def training_rows(data: ClientData) -> dict[str, np.ndarray]:
    counts = data.counts()
    clients = np.arange(len(counts))
    longest = int(counts.max())
    block = data.gather(clients, np.broadcast_to(np.arange(longest), (len(counts), longest)))
    real = np.arange(longest) < counts[:, None]
    return {name: values[real] for name, values in block.items()}


def main() -> int:
    failed = 0
    for weather in (False, True):
        data = open_data(Flights(weather=weather))
        train, held_out = training_rows(data), data.held_out()
        encoder = OneHotEncoder(handle_unknown="ignore").fit(train["c"])
        # route, destination and the rest; trees take the codes of columns with few values as categories
        small = [i for i, category in enumerate(data.shape.categories) if category.size <= 255]
        models = {
            "logistic": (
                LogisticRegression(C=0.3, max_iter=150),
                lambda part, encoder=encoder: sparse.hstack([encoder.transform(part["c"]), part["x"]]).tocsr(),
            ),
            "boosted trees": (
                HistGradientBoostingClassifier(
                    max_iter=200, learning_rate=0.1, categorical_features=list(range(len(small))), random_state=0
                ),
                lambda part, small=small: np.concatenate([part["c"][:, small], part["x"]], axis=1),
            ),
        }
        for name, (model, design) in models.items():
            start = time.perf_counter()
            model.fit(design(train), train["y"])
            auc = {
                split: roc_auc_score(part.arrays["y"], model.predict_proba(design(part.arrays))[:, 1])
                for split, part in held_out.items()
            }
            wall_s = time.perf_counter() - start
            kind = "with weather" if weather else "no weather"
            print(f"{kind:13} {name:14} unseen {auc['unseen']:.4f}  seen {auc['seen']:.4f}  {wall_s:.0f} s", flush=True)
            failed |= auc["unseen"] < FLOORS[weather, name]
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
