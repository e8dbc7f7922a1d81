"""Command line of semflow. The modules of the commands are imported when a command runs, so that help is fast."""

from .main import main

__all__ = ["main"]
