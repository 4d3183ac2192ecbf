"""Agents for the environments of `compress_env`: graph networks, searches, a command line."""
