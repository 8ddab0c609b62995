"""Voice agents with a face: one of local models, one of a hosted model, one for LiveKit."""
