"""The machinery that makes the root's code fast and robust. Skip it on a first read."""
