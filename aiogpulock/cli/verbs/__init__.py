"""One file per verb: its options, and what it does. At the top they import click alone; the rest when the verb runs."""
