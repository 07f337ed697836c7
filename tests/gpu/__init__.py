"""What only a real device can prove: `python -m tests.gpu` on a machine that has one."""
