"""What a written video says about itself: container metadata, a signed C2PA manifest, an invisible watermark."""
