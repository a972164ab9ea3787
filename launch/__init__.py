"""Runnable: any script on N hosts × M ranks, by torchrun, Slurm or MPI."""
