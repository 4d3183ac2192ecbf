"""Graph networks in DGL, and what plugs them into Stable-Baselines3."""
