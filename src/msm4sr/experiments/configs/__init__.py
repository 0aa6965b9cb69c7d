"""The grids that ship with the package: a YAML file each, one for each table."""
