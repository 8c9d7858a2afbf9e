"""How K points run on a device."""

from lowloss.landscape.engine.loop import Engine

__all__ = ["Engine"]
