"""PyTorch is installed while a server starts: one install, which several askers share."""
