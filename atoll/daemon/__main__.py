"""`python -m atoll.daemon`: see atoll.daemon.main."""

from atoll.daemon.main import main

main()
