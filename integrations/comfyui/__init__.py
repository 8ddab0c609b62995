"""FlowPortrait in ComfyUI: a portrait and speech in, the frames of a talking video out.

Copy or link this folder into ``custom_nodes`` of ComfyUI, and install ``flowportrait`` into ComfyUI's Python.
"""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
