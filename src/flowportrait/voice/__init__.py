"""Text to speech: sentences, voices that are installed or at an address, and sound as it is spoken."""
