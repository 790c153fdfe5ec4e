"""An exported model as MLflow loads it: this file travels with the model, and imports nothing of atoll.

MLflow runs it when the model is loaded ("models from code"): what is unpacked is the program of `torch.export` and
plain JSON, in a process that may have neither atoll nor the data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch

__all__ = ["ServedModel"]

_SHOWN = 5


class ServedModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Probabilities from raw columns: numbers as they were measured, categories as text."""

    def load_context(self, context: Any) -> None:
        """Reads the program and the encoding beside it."""
        self._encoding: dict[str, Any] = json.loads(Path(context.artifacts["encoding"]).read_text(encoding="utf-8"))
        self._codes = [
            (column["name"], {value: code for code, value in enumerate(column["values"])})
            for column in self._encoding["categories"]
        ]
        self._program = torch.export.load(context.artifacts["program"]).module()

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """One row of probabilities per row of the DataFrame.

        Raises:
            ValueError: numbers that are absent, and category values that the model never saw; all of them at once.
        """
        del context, params
        problems: list[str] = []
        numbers = self._numbers(model_input, problems)
        codes = self._categories(model_input, problems)
        if problems:
            raise ValueError("; ".join(problems))
        outputs: list[str] = self._encoding["outputs"]
        if not len(model_input):
            return pd.DataFrame(np.empty((0, len(outputs))), columns=outputs, index=model_input.index)
        with torch.inference_mode():
            found = self._program(torch.from_numpy(numbers), torch.from_numpy(codes))
        return pd.DataFrame(found.numpy().astype(np.float64), columns=outputs, index=model_input.index)

    def _numbers(self, frame: Any, problems: list[str]) -> np.ndarray[Any, Any]:
        names: list[str] = self._encoding["features"]
        numbers = np.array(frame[names], dtype=np.float64).reshape(len(frame), len(names))
        for name, bad in zip(names, (~np.isfinite(numbers)).sum(axis=0), strict=True):
            if bad:
                problems.append(f"column {name!r}: {bad} values are missing or infinite; need finite numbers")
        return numbers

    def _categories(self, frame: Any, problems: list[str]) -> np.ndarray[Any, Any]:
        codes = np.zeros((len(frame), len(self._codes)), dtype=np.int64)
        for at, (name, known) in enumerate(self._codes):
            values = frame[name].tolist()
            unknown = sorted({str(value) for value in values if value not in known})
            if unknown:
                shown = ", ".join(map(repr, unknown[:_SHOWN])) + (", …" if len(unknown) > _SHOWN else "")
                some = ", ".join(map(repr, list(known)[:_SHOWN]))
                problems.append(
                    f"column {name!r}: {len(unknown)} unknown values ({shown}); need one of the {len(known)} that the "
                    f"model was trained with, such as {some}"
                )
            codes[:, at] = [known.get(value, 0) for value in values]
        return codes


mlflow.models.set_model(ServedModel())
