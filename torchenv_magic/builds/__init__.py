"""Which PyTorch builds exist: `Backend`, and the catalog that knows every one of them."""
