"""The documentation, and what makes a site of it: `python3 dev.py docs`."""
