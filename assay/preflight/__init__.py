"""Before a long job: does every host answer, with the same software and code, right clocks, devices, room and network?

One process a host, started by any launcher. The first one listens, the others come, all look at their own host and knock
at each other's doors; the first one judges and prints. No torch.
"""
