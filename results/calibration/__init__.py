"""`dualfocus calibrate`: selection rules with numbers that are fitted on the traces of runs."""
