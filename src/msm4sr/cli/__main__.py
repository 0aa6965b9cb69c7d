"""`python -m msm4sr.cli`."""

from msm4sr.cli import main

main()
