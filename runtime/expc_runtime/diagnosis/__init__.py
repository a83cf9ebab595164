"""Who made the NaN, who holds the memory, what is on the wrong device; and faults on order."""
