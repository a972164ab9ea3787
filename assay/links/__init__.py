"""Who talks to whom in which round, and what the times say about ranks and links. Pure functions."""
