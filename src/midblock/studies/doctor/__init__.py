"""What a run would meet on this machine, before it starts: packages, devices, the pair, memory, time and disk."""
