"""`python -m dualfocus_lmms`, the form that torchrun and accelerate launch start on several processes."""

from dualfocus_lmms.cli import main

if __name__ == "__main__":
    main()
