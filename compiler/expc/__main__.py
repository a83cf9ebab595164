"""`python -m expc` is `expc`."""

from expc.cli import main

raise SystemExit(main())
