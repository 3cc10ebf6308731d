"""`python -m ranp_cli.rules` prints every op that has a rule."""

from . import table

if __name__ == "__main__":
    for name, family, law in table():
        print(f"{name:45} {family:12} {law}")
