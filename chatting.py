"""The historical command: talk with the base or the tuned model. Flags: ``python chatting.py --help``."""

from znatok.scripts import chat_main

raise SystemExit(chat_main())
