"""The machinery: what makes the paper's code at the root fast and robust. Skip it on a first read."""
