"""What training workloads share: models, initial weights, data, engines, the step, and its FLOPs."""
