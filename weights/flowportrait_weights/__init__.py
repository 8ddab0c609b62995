"""The weights that ship with FlowPortrait: a folder for each network, with a card that says what may be done with it."""

__version__ = "0.2.0"
