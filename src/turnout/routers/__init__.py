"""Routers: modules that decide (who attends, what they read, how far, which directions), one mechanism a file."""
