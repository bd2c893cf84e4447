"""The GPU side: which device a lock means, and whether its memory came back."""
