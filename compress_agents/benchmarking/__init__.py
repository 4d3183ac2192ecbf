"""Agents compared at equal evaluations: runs, intervals, entries that anybody can check."""
