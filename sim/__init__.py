"""How long it takes, and why: workloads, hardware, mappings and the models that join them."""
