"""The historical command: train a LoRA adapter. Flags: ``python train_model.py --help``."""

from znatok.scripts import train_main

raise SystemExit(train_main())
