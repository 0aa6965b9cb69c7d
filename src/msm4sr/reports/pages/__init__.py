"""HTML pages of runs, grids, data sets, features and recommendations.

Each page is one self-contained file: styles and images are inside it, it runs no script, and its content security
policy forbids any request. The templates escape everything that comes from data.
"""
