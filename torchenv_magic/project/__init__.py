"""From one notebook to a project: its file and cells, the lock in it, and what is exported of it."""
