"""Batched environments that live on the device; every random draw is handed in."""
