"""How fast compressed networks are where they are used: measured, and predicted layer by layer."""

from compress_env.latency.engines import ENGINES, Session, int8_sessions, open_session
from compress_env.latency.layer_table import LatencyTable
from compress_env.latency.measuring import (
    LatencyReport,
    LatencyRow,
    latency_table,
    measure_latency,
)

__all__ = [
    "ENGINES",
    "LatencyReport",
    "LatencyRow",
    "LatencyTable",
    "Session",
    "int8_sessions",
    "latency_table",
    "measure_latency",
    "open_session",
]
