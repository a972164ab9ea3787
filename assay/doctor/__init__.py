"""Whether this machine is fit to be measured at all."""
