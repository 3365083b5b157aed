"""The benchmark harness: scenarios on real processes, measured in pairs within one run, and their report."""
