"""Programs that run in the environment that is measured, which has none of the benchmarks."""
