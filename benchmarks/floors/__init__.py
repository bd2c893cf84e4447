"""Floors: the least that a lock over Redis can cost. They run in contests like a peer, and do less than one."""
