"""The command; `python -m benchmarks.stability --help` tells how."""

from benchmarks.stability.command import main

if __name__ == "__main__":
    main()
