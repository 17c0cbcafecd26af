"""`python -m outskirts`, so that torchrun can start it."""

from outskirts.cli import main

if __name__ == "__main__":
    main()
