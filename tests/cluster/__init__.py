"""A real Slurm cluster on one machine: hosts as namespaces (hosts.py), their Slurm (slurm.py), the lab of both (lab.py, running.py)."""
