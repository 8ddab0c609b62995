"""The studio: everything that a photo and a voice are good for, in a browser on this machine."""
