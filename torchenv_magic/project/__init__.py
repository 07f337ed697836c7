"""From one notebook to a project: its file, its cells, its lock, and what is exported of it."""
