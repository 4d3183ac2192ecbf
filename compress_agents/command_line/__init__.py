"""The parts of the command line that `compress_agents.cli` puts together."""
