"""`python -m atoll` is the command `atoll`; so `python -m pdb -m atoll …` is the command in a debugger."""

from atoll.cli import main

if __name__ == "__main__":
    main()
