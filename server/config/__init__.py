"""Configuration: what can be set (model; of placements `pipeline.settings`), and how it is found and validated (load).

`docs/configuration.md` lists every key; its tables are made from the model (reference).
"""

from __future__ import annotations

from recserve.server.config.load import Assignment, ConfigError, load_settings
from recserve.server.config.model import (
    AdmissionSettings,
    AnswerCacheSettings,
    BundleSettings,
    ComputeSettings,
    LogSettings,
    ServerSettings,
    Settings,
    SimilarSettings,
    StateSettings,
    UserVectorCacheSettings,
)
from recserve.server.pipeline.settings import (
    DEFAULT_PLACEMENT,
    CapSettings,
    FreshnessSettings,
    FusionSettings,
    PlacementSettings,
    SourceSettings,
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
