"""Reward functions for other projects' trainers; they ask a running server, and import nothing but `prm_ray.client`."""
