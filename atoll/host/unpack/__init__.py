"""Takes root file systems apart that strangers made: a tar stream becomes a tree, in a process that owns nothing.

Standard library only, for it runs as `python -I -S`: without site, packages, environment. Our own reader of tar,
and not tarfile: that one takes a damaged header for the end of the archive, follows header after header by
recursion and reads headers of any size (CVE-2019-20907, CVE-2025-8194), and its filters judge names as strings
(CVE-2024-12718, CVE-2025-4138, CVE-2025-4330, CVE-2025-4517). Here each step of a path is opened without following
links, whatever the names say. host/rootfs.py is the daemon's side of it.
"""
