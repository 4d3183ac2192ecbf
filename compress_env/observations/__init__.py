"""What an agent is shown of a plan: every observation as plain arrays."""
