"""Pages and tables of runs, grids, data sets and features."""
