"""Real faults against real processes: ``python -m tests.faults`` runs the campaign, ``--help`` says how."""
