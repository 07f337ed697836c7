"""Hold what the made wheel's `torchrun` script imports."""
