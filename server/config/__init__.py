"""Configuration: what can be set (model), and how it is found, merged and validated (load).

`docs/configuration.md` lists every key; its tables are made from the model (reference).
"""

from __future__ import annotations

from recserve.server.config.load import Assignment, ConfigError, load_settings
from recserve.server.config.model import (
    DEFAULT_PLACEMENT,
    AdmissionSettings,
    AnswerCacheSettings,
    BundleSettings,
    CapSettings,
    ComputeSettings,
    FreshnessSettings,
    FusionSettings,
    LogSettings,
    PlacementSettings,
    ServerSettings,
    Settings,
    SimilarSettings,
    SourceSettings,
    StateSettings,
    UserVectorCacheSettings,
)

__all__ = [
    "DEFAULT_PLACEMENT",
    "AdmissionSettings",
    "AnswerCacheSettings",
    "Assignment",
    "BundleSettings",
    "CapSettings",
    "ComputeSettings",
    "ConfigError",
    "FreshnessSettings",
    "FusionSettings",
    "LogSettings",
    "PlacementSettings",
    "ServerSettings",
    "Settings",
    "SimilarSettings",
    "SourceSettings",
    "StateSettings",
    "UserVectorCacheSettings",
    "load_settings",
]
