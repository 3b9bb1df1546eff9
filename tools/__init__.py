"""Programs beside training: benchmark, data doctor, dry run, export, plots, the tour."""
