"""`python -m msm4sr.cli`."""

from msm4sr.cli import main

if __name__ == "__main__":
    main()
