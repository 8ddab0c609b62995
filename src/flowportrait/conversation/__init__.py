"""Two people who talk with each other: who speaks when, how the other listens, and both in one picture."""
