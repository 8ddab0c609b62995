"""The weights that ship with FlowPortrait: a folder for each network, with a card that says what it may be used for."""

__version__ = "0.3.0"
