"""What a stage is forecast to make of its components' configs, as far as that can be known before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.artifact import Artifact
from compress.catalogue import Forecast

Fields = Mapping[str, frozenset[str]]  # by component, fields of its config


def unsettled_fields(forecast: Forecast, before: Fields) -> Fields:
    """The config fields that only the work decides: of this stage, or of those before it."""
    none: frozenset[str] = frozenset()
    return {n: forecast.unsettled.get(n, none) | before.get(n, none) for n in (*before, *forecast.unsettled)}


def changed_fields(artifact: Artifact, forecast: Forecast, unsettled: Fields) -> Mapping[str, Mapping[str, Any]]:
    """By component, the config fields that a stage will change, with their values to be.

    What a stage leaves alone is none of its doing: a stage before it may have left it otherwise than was planned.
    """
    return {
        name: {
            key: value
            for key, value in config.items()
            if key not in unsettled.get(name, frozenset()) and value != artifact.config(name).get(key)
        }
        for name, config in forecast.configs.items()
    }
