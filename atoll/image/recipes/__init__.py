"""Images that are built on this host from a distribution's packages."""
