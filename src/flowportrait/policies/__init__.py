"""Other people's generators as policies: pipelines of diffusers by family, and whatever has three methods."""
