"""Turn folders of pictures into videos: a daemon whose queue is a set of folders."""

__version__ = "0.1.0"
