"""`tiebreak dpo` as a script that torchrun starts."""

from preference.dpo import main

if __name__ == "__main__":
    main()
