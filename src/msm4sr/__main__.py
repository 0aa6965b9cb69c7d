"""`python -m msm4sr`."""

from msm4sr.cli import main

if __name__ == "__main__":
    main()
