"""The collectives as they are run: buffers, the call, and what every element must hold afterwards."""
