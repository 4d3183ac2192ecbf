"""How each data set is found, split and decoded; :mod:`compress_env.data` is the way in."""
