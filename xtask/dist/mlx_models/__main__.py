"""`python -m mlx_models` is the same as `mlx-models`."""

from mlx_models import main

main()
